"""What lies beyond the papers."""

from __future__ import annotations

from pipeline.experiments.known import KNOWN, TWO_DIMENSIONAL
from pipeline.published import published_at
from pipeline.reporting.evidence.cells import (
    Cells,
    dataset_name,
    layers_name,
    setting_name,
)
from pipeline.reporting.forms.section import Block, Section, folded
from pipeline.reporting.forms.tables import (
    Row,
    Table,
    build_table,
    dropped_columns,
    sort_key,
)
from pipeline.reporting.report import Report
from pipeline.reporting.sections import ablation, later


def other_runs(cells: Cells, scale: str) -> Table | None:
    """Runs of experiments that no other table knows; None when there are none."""
    # Those with two latent units have pictures, and no table but this one.
    known = {*KNOWN} - {TWO_DIMENSIONAL}
    rows = [
        Row(
            f"{place.experiment}: {dataset_name(place.dataset)}, {layers_name(place.layers)}",
            setting_name(place.setting),
            place,
            cell,
            "nll",
            published_at(place, "nll"),
            scale,
        )
        for place in sorted(cells, key=lambda place: (place.experiment, *sort_key(place)))
        if place.experiment not in known
        for cell in cells[place]
    ]
    if not rows:
        return None
    drop = [*dropped_columns(rows, units=True), "paper", "difference", "90 % interval", "paper's units"]
    caption = "NLL in nats (lower is better) and active units.\nNo paper has these numbers."
    return build_table("other_runs", "Further experiments", caption, rows, drop, ())


def section(report: Report) -> Section:
    """What lies beyond the papers: later estimators, the protocol's details, and experiments of the reader's own."""
    cells = report.cells
    return Section(
        "beyond",
        "What lies beyond the papers?",
        "Beyond",
        "Later estimators beside IWAE, and which detail of the training protocol matters.",
        (
            Block(later.forest(cells), folded=not report.judged),
            *folded(later.table(cells), ablation.forest(cells), ablation.table(cells)),
            *folded(other_runs(cells, report.scale)),
        ),
    )
