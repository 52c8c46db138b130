"""Estimators after the two papers, each beside IWAE at the same k."""

from __future__ import annotations

from pipeline.experiments.known import LATER_ESTIMATORS
from pipeline.published import Place, Setting
from pipeline.reporting.evidence.cells import Cells, dataset_name, find, layers_name, with_parameter
from pipeline.reporting.evidence.effects import Compared
from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.forms.effects import effects_forest, effects_table
from pipeline.reporting.forms.tables import Table, images_note

TITLE = "Are later estimators better than IWAE?"
CAPTION = (
    "IWAE here is trained as the others are; at the papers' schedule that is the very run of Burda's Table 1. The only "
    "paper with numbers in this setting is Li and Turner (2016), for VR-max."
)


def _compared(cells: Cells) -> list[Compared]:
    """Every cell of the experiment by dataset, depth and sample count, IWAE first."""
    compared = []
    for place in sorted(
        (place for place in cells if place.experiment == LATER_ESTIMATORS),
        key=lambda p: (p.dataset, p.layers, p.setting.T, p.setting.objective != "iwae", with_parameter(p.setting)),
    ):
        iwae = Place(LATER_ESTIMATORS, place.dataset, place.layers, Setting("iwae", 1, place.setting.T))
        group = f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, k = {place.setting.T}"
        reference = None if place == iwae else find(cells, iwae)
        compared += [Compared(group, with_parameter(place.setting), cell, reference) for cell in cells[place]]
    return compared


def table(cells: Cells) -> Table | None:
    """NLL and active units of every estimator, and their differences to IWAE's; None before any was run."""
    compared = _compared(cells)
    if not compared:
        return None
    see = "Below zero: better than IWAE with as many samples."
    caption = f"{see}\nNLL in nats, lower is better. {CAPTION} {images_note(cells, LATER_ESTIMATORS)}".strip()
    return effects_table("later_estimators", f"{TITLE} The numbers", caption, compared, "objective", "IWAE")


def forest(cells: Cells) -> Figure | MissingFigure:
    """NLL (nats) of each later estimator minus IWAE's at equal k, as a point with its interval each."""
    caption = f"Left of the line: better than IWAE with as many samples, if the bar stays there.\n{CAPTION}"
    needs = "IWAE and at least one other finished run of later-estimators"
    return effects_forest("later_estimators", TITLE, caption, _compared(cells), "IWAE", needs)
