"""The papers' claims at a glance."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from pipeline.reporting.evidence.claims import ClaimResult
from pipeline.reporting.forms.drawing import (
    GRID,
    INK,
    SMALL,
    Figure,
    MissingFigure,
    finish,
    open_canvas,
)

EFFECT_AXES = {
    "nats": "effect in nats",
    "units": "effect in active units",
    "%": "effect in % (logarithmic beyond ±10)",
    "slope": "slope of log SNR in log K, signed as the claim says",
    "ln ratio": "logarithm of a ratio of SNRs",
}
"""Of a claim's effect -> the axis of its panel."""


def claims_forest(decided: list[ClaimResult]) -> Figure | MissingFigure:
    """Effects with their intervals, one line a claim, beside the paper's effects."""
    name, title = "claims", "Claims at a glance"
    known = [result for result in decided if result.effect is not None]
    if not known:
        return MissingFigure(name, title, "the finished runs of any one claim, e.g. VAE and IWAE of burda-table1")
    data = pd.DataFrame(
        {
            "family": [result.family for result in known],
            "claim": [result.statement for result in known],
            "unit": [result.unit for result in known],
            "effect": [result.effect.value for result in known if result.effect],
            "low": [result.low for result in known],
            "high": [result.high for result in known],
            "paper_effect": [result.paper_effect for result in known],
            "paper_verified": [result.paper_verified for result in known],
        }
    )
    units = [unit for unit in EFFECT_AXES if (data["unit"] == unit).any()]
    heights = [(data["unit"] == unit).sum() + data.loc[data["unit"] == unit, "family"].nunique() for unit in units]
    with open_canvas(name, 9.5, 0.6 * len(units) + 0.2 * sum(heights)) as canvas:
        axes = canvas.subplots(len(units), 1, height_ratios=heights, squeeze=False)[:, 0]
        for ax, unit in zip(axes, units, strict=True):
            _forest(ax, data[data["unit"] == unit])
            ax.set_xlabel(EFFECT_AXES[unit])
            if unit == "%":
                # From a few percent to some hundred.
                ax.set_xscale("symlog", linthresh=10)
                ax.xaxis.set_major_formatter("{x:g}")
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].legend(handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        caption = (
            "Right of the line an effect bears the claim out; a bar that stays there decides it.\n"
            "Dot and bar: our effect and the interval that decides the claim; hollow: the paper's effect (broken where "
            "not checked against the paper, none where it prints no number). Right of the line the effect has the "
            "claim's sign. A panel a unit."
        )
        return finish(canvas, name, title, caption, data)


def _forest(ax: Axes, data: pd.DataFrame) -> None:
    y, ticks, labels = 0, [], []
    for family, rows in data.groupby("family", sort=False):
        ticks.append(y)
        labels.append(str(family))
        for row in rows.to_dict("records"):
            y += 1
            ours, paper = ("ours", "paper") if y == 1 else (None, None)
            error = [[row["effect"] - row["low"]], [row["high"] - row["effect"]]]
            ax.errorbar(row["effect"], y, xerr=error, fmt="o", ms=4, color=INK, lw=1.2, label=ours)
            if not pd.isna(row["paper_effect"]):
                colour = INK if row["paper_verified"] else "#aaaaaa"
                ax.plot(row["paper_effect"], y, "o", ms=5, mfc="none", mec=colour, label=paper)
            ticks.append(y)
            labels.append(str(row["claim"]))
        y += 1
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(ticks, labels, fontsize=SMALL)
    families = set(data["family"])
    for tick in ax.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in families else "normal")
    ax.set_ylim(y - 0.3, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=GRID)
