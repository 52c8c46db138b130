"""Estimators after the two papers, each beside IWAE at the same k."""

from __future__ import annotations

from pipeline.published import Place, Setting
from pipeline.reporting.cells import Cells, dataset_name, find, layers_name, with_parameter
from pipeline.reporting.drawing import Figure, MissingFigure
from pipeline.reporting.effects import Compared, effects_forest, effects_table
from pipeline.reporting.tables import Table, images_note

EXPERIMENT = "later-estimators"
TITLE = "Later estimators beside IWAE"
CAPTION = (
    "IWAE here is trained as the others are; at the papers' schedule that is the very run of Burda's Table 1. No paper "
    "has these numbers in this setting."
)


def _compared(cells: Cells) -> list[Compared]:
    """Every cell of the experiment by dataset, depth and sample count, IWAE first."""
    found = []
    for place in sorted(
        (place for place in cells if place.experiment == EXPERIMENT),
        key=lambda p: (p.dataset, p.layers, p.setting.T, p.setting.objective != "iwae", with_parameter(p.setting)),
    ):
        iwae = Place(EXPERIMENT, place.dataset, place.layers, Setting("iwae", 1, place.setting.T))
        group = f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, k = {place.setting.T}"
        reference = None if place == iwae else find(cells, iwae)
        found += [Compared(group, with_parameter(place.setting), cell, reference) for cell in cells[place]]
    return found


def table(cells: Cells) -> Table | None:
    """NLL and active units of every estimator, and their differences to IWAE's; None before any was run."""
    compared = _compared(cells)
    if not compared:
        return None
    caption = f"NLL in nats, lower is better. {CAPTION} {images_note(cells, EXPERIMENT)}".strip()
    return effects_table("later_estimators", TITLE, caption, compared, "objective", "IWAE")


def forest(cells: Cells) -> Figure | MissingFigure:
    caption = f"Differences to IWAE at the same k; left of the line: a lower, better NLL. {CAPTION}"
    needs = "IWAE and at least one other finished run of later-estimators"
    return effects_forest("later_estimators", TITLE, caption, _compared(cells), "IWAE", needs)
