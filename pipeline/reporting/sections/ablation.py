"""Which details of the protocol matter: each one switched alone, against the scale's protocol as it is."""

from __future__ import annotations

from dataclasses import fields

from pipeline.experiments.known import PROTOCOL_ABLATION
from pipeline.experiments.names import ProtocolName
from pipeline.experiments.protocol import PROTOCOLS, Protocol
from pipeline.reporting.evidence.cells import Cell, Cells, dataset_name, layers_name, setting_name
from pipeline.reporting.evidence.effects import Compared
from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.forms.effects import effects_forest, effects_table
from pipeline.reporting.forms.tables import Table, images_note

TITLE = "Which details of the protocol matter?"
CAPTION = (
    "At a time one detail is switched in which Burda et al.'s code and text differ, or of which the text says nothing; "
    "the last row is the whole protocol of the text. No paper has these numbers."
)
DETAILS = [field.name for field in fields(Protocol)]


def _position(cell: Cell) -> tuple[int, str]:
    """The reference first, then in the order of the protocol's fields, whole protocols last."""
    first = next((field for field, _ in ProtocolName.of(cell.protocol).switches), "")
    return (DETAILS.index(first) if first in DETAILS else len(DETAILS), cell.protocol)


def _compared(cells: Cells) -> list[Compared]:
    compared = []
    for place in (place for place in cells if place.experiment == PROTOCOL_ABLATION):
        names = [ProtocolName.of(cell.protocol) for cell in cells[place]]
        bases = {name.whole for name in names if name.switches}
        reference = next((cell for cell in cells[place] if cell.protocol in bases), None)
        group = f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, {setting_name(place.setting)}"
        if reference:
            compared.append(Compared(group, f"{reference.protocol}, as it is", reference, None))
        for cell in sorted((cell for cell in cells[place] if cell is not reference), key=_position):
            switched = ", ".join(ProtocolName.of(cell.protocol).details).replace("_", " ")
            label = switched or (f"all of protocol {cell.protocol}" if cell.protocol in PROTOCOLS else cell.protocol)
            compared.append(Compared(group, label, cell, reference))
    return sorted(compared, key=lambda one: (one.cell.place.dataset, one.cell.place.layers, one.group))


def table(cells: Cells) -> Table | None:
    """NLL and active units under every switch, and their differences to the reference; None before any was run."""
    compared = _compared(cells)
    if not compared:
        return None
    see = "Below zero: the switch makes the model better."
    caption = f"{see}\nNLL in nats, lower is better. {CAPTION} {images_note(cells, PROTOCOL_ABLATION)}".strip()
    return effects_table("protocol_ablation", f"{TITLE} The numbers", caption, compared, "protocol", "as it is")


def forest(cells: Cells) -> Figure | MissingFigure:
    """NLL (nats) under each switch minus NLL under the protocol as it is, as a point with its interval each."""
    caption = f"Left of the line: the switch makes the model better, if the bar stays there.\n{CAPTION}"
    needs = "finished runs of protocol-ablation, with and without a switch"
    return effects_forest("protocol_ablation", TITLE, caption, _compared(cells), "the protocol as it is", needs)
