"""Runs beside a reference, as a table and as a forest plot of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from pipeline.reporting.evidence.cells import DIVERGED, ONE_SEED_NATS, ONE_SEED_UNITS
from pipeline.reporting.evidence.effects import METRICS, Compared, effects_data
from pipeline.reporting.forms.drawing import GRID, INK, SMALL, Figure, MissingFigure, colour_of, finish, open_canvas
from pipeline.reporting.forms.numbers import DASH, minus, number
from pipeline.reporting.forms.tables import Table, our_units

AXES = {"nll": "NLL in nats", "active_units": "active units"}
DECIMALS = {"nll": 2, "active_units": 1}
LEAST = {"nll": 0.1, "active_units": 1.0}
"""So much an axis shows on each side, so that nothing is not magnified."""
INTERVALS = (
    "Thick: 95 % interval over test images, paired; thin: with the spread over training runs as well, by Student's t "
    f"(that of the differences seed by seed; with one seed {ONE_SEED_NATS:.2f} nats and {ONE_SEED_UNITS:g} unit a run "
    "are assumed)."
)


def _signed(value: float, metric: str) -> str:
    decimals = DECIMALS[metric]
    return minus(f"{round(value, decimals) + 0.0:+.{decimals}f}")


def effects_table(
    name: str, title: str, caption: str, compared: Sequence[Compared], heading: str, reference: str
) -> Table:
    """`heading`: of the first column; `reference`: what the differences are to, e.g. `IWAE`."""
    data = effects_data(compared)
    rows = []
    for one, row in zip(compared, data.to_dict("records"), strict=True):
        shown = {
            heading: one.label,
            "NLL": DIVERGED if not one.cell.finished else number(row["nll"]),
            "SE": number(row["nll_se"]),
        }
        if data["nll_paper"].notna().any():
            shown["paper's NLL"] = number(row["nll_paper"])
        for metric, short in (("nll", "NLL"), ("active_units", "units")):
            value, half = row[f"{metric}_effect"], row[f"{metric}_half_width"]
            ends = [DASH if pd.isna(value) else _signed(end, metric) for end in (value, value - half, value + half)]
            if metric == "active_units":
                shown["active units"] = our_units(one.cell, one.cell.place.layers)
            shown[f"{short} − {reference}"] = ends[0]
            shown[f"95 % interval, {short}"] = DASH if pd.isna(value) else f"[{ends[1]}, {ends[2]}]"
        rows.append(shown)
    return Table(name, title, caption, data, pd.DataFrame(rows), tuple(one.group for one in compared))


def effects_forest(
    name: str, title: str, caption: str, compared: Sequence[Compared], reference: str, needs: str
) -> Figure | MissingFigure:
    """The differences in NLL and in active units side by side, a row for each cell, one pair of panels per group."""
    data = effects_data(compared) if compared else pd.DataFrame({"nll_effect": []})
    if data["nll_effect"].isna().all():
        return MissingFigure(name, title, needs)
    data = data[data["nll_effect"].notna()]
    groups = list(dict.fromkeys(data["group"]))
    heights = [len(data[data["group"] == group]) + 1.5 for group in groups]
    with open_canvas(name, 10.5, 0.5 + 0.27 * sum(heights)) as canvas:
        axes = canvas.subplots(
            len(groups), 2, squeeze=False, sharex="col", sharey="row", height_ratios=heights, width_ratios=(3, 2)
        )
        for row, group in zip(axes, groups, strict=True):
            effects = data[data["group"] == group]
            for ax, metric in zip(row, METRICS, strict=True):
                _forest_panel(ax, effects, metric)
            row[0].set_yticks(range(len(effects)), effects["label"])
            row[0].set_ylim(len(effects) - 0.4, -0.6)
            row[0].set_title(group, loc="left")
        for ax, (metric, name_of) in zip(axes[-1], AXES.items(), strict=True):
            low, high = ax.get_xlim()
            ax.set_xlim(min(low, -LEAST[metric]), max(high, LEAST[metric]))
            ax.set_xlabel(f"{name_of}: minus that of {reference}")
        return finish(canvas, name, title, f"{caption} {INTERVALS}", data)


def _forest_panel(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    ax.axvline(0, color=INK, lw=0.8)
    for y, row in enumerate(rows.to_dict("records")):
        value, colour = row[f"{metric}_effect"], colour_of(row["objective"])
        for width, half in ((1.1, row[f"{metric}_half_width"]), (3.2, row[f"{metric}_half_width_images"])):
            ax.plot([value - half, value + half], [y, y], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(value, y, "o", ms=4.5, color=colour, mec="white", mew=0.6)
        right: Any = ax.get_yaxis_transform()
        ax.annotate(_signed(value, metric), (1, y), (4, 0), right, "offset points", va="center", fontsize=SMALL)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GRID)
