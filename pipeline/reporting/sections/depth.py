"""How deep are the runs, and what was known on the way? Cells and claims against epochs, runs on their way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from pipeline.experiments.known import BURDA_FROM_SCRATCH
from pipeline.experiments.schedule import burda_schedule
from pipeline.published import Place, Setting, published_at
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import (
    Cell,
    dataset_name,
    gather,
    layers_name,
    setting_name,
)
from pipeline.reporting.evidence.claims import (
    BEATS,
    DEPTH,
    SAMPLES_HARDLY_HELP,
    SAMPLES_HELP,
    UNITS,
    decide_claims,
)
from pipeline.reporting.evidence.waypoints import at_waypoints
from pipeline.reporting.forms.drawing import (
    GRID,
    INK,
    LINES,
    MARKERS,
    Figure,
    colour_of,
    finish,
    legend_handles,
    open_canvas,
    panel_title,
    whole_numbers,
)
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.tables import Table, our_units, published_units
from pipeline.reporting.report import Report

FULL = sum(stage.epochs for stage in burda_schedule(True))
"""Epochs of the papers' schedule."""
SHOWN_FAMILIES = (BEATS, SAMPLES_HELP, SAMPLES_HARDLY_HELP, DEPTH, UNITS)
"""Families that need no more than what every waypoint is evaluated for."""


def whole_epochs(epochs: float) -> str:
    """`364`, or `0.3` before the first is over."""
    return f"{epochs:,.0f}" if epochs >= 1 else f"{epochs:.2g}"


def planned_epochs(run: RunResult) -> float:
    """Epochs that its scale takes a run to."""
    return (run.planned_steps or run.spec.total_steps) / run.spec.steps_per_epoch


def last_moved(run: RunResult) -> str:
    """When a run was last trained, to the minute."""
    when = str(run.training.get("finished") or "")
    return when[:16].replace("T", " ") or DASH


def under_way_table(runs: Sequence[RunResult]) -> Table | None:
    """Runs that are not as deep as their scale takes them, with what was measured so far; None when there are none."""
    if not runs:
        return None
    rows, data, groups = [], [], []
    ordered = sorted(runs, key=lambda run: (run.experiment, run.spec.dataset, run.spec.layers, run.spec.name))
    for run in ordered:
        cell, paper = Cell(Place.of(run), run.spec.protocol_name, (run,)), published_at(Place.of(run), "nll")
        nll = value_of(run.metrics, "nll")
        units = our_units(cell, run.spec.layers)
        rows.append(
            {
                "run": f"{setting_name(Setting.of(run.spec))}, seed {run.spec.seed}",
                "so far": f"after {whole_epochs(run.epochs)} of {whole_epochs(planned_epochs(run))} epochs: "
                f"{number(nll)}, {units} units",
                "paper, at the end": f"{number(paper.value if paper else None)}, {published_units(cell.place)} units"
                if paper
                else DASH,
                "last moved": last_moved(run),
            }
        )
        data.append(
            {
                "cohort": run.cohort,
                "run": run.spec.name,
                "epochs": run.epochs,
                "planned_epochs": planned_epochs(run),
                "nll": nll,
                "active_units": value_of(run.metrics, "active_units"),
                "last_moved": last_moved(run),
            }
        )
        groups.append(f"{run.experiment}: {dataset_name(run.spec.dataset)}, {layers_name(run.spec.layers)}")
    greyed = frozenset((i, "so far") for i in range(len(rows)))
    caption = (
        "What is known of them is of the last waypoint that was evaluated; none is judged, and no figure shows them "
        "but those against epochs.\n"
        "NLL in nats per image and active units, bottom layer first. Training goes on from there at the next call."
    )
    title = "Which cells are on their way?"
    return Table("under_way", title, caption, pd.DataFrame(data), pd.DataFrame(rows), tuple(groups), greyed)


def _drawn_runs(report: Report) -> list[RunResult]:
    """The first seed of each cell of Burda's tables 1 and 3 that was measured at more than one depth."""
    chosen: dict[Place, RunResult] = {}
    for run in (*report.results, *report.under_way):
        if run.experiment in BURDA_FROM_SCRATCH and run.waypoints:
            known = chosen.get(Place.of(run))
            if known is None or run.spec.seed < known.spec.seed:
                chosen[Place.of(run)] = run
    return list(chosen.values())


def series_figure(report: Report) -> Figure | None:
    """NLL and active units against epochs, a line a cell; None where nothing was measured at two depths."""
    runs = _drawn_runs(report)
    if not runs:
        return None
    name, title = "series", "How do NLL and active units move as training goes on?"
    rows = [
        {
            "cohort": run.cohort,
            "run": run.spec.name,
            "epochs": waypoint.epochs,
            "nll": value_of(waypoint.metrics, "nll"),
            "active_units": value_of(waypoint.metrics, "active_units"),
            "under_way": run.is_under_way,
        }
        for run in runs
        for waypoint in at_waypoints(run)
    ]
    data = pd.DataFrame(rows).astype({"nll": float, "active_units": float})
    panels = sorted(
        {(run.spec.dataset, run.spec.layers) for run in runs}, key=lambda p: (p[0] == "fixed-mnist", p[0], p[1])
    )
    with open_canvas(name, min(10.8, 1.4 + 2.6 * max(2, len(panels))), 5.4) as canvas:
        axes = canvas.subplots(2, len(panels), sharex=True, squeeze=False)
        for column, panel in zip(axes.T, panels, strict=True):
            for run in (run for run in runs if (run.spec.dataset, run.spec.layers) == panel):
                series = data[(data["cohort"] == run.cohort) & (data["run"] == run.spec.name)]
                for ax, metric in zip(column, ("nll", "active_units"), strict=True):
                    _series_line(ax, series, metric, run)
            column[0].set(title=panel_title(*panel))
            epochs_axis(column[1], data["epochs"])
            column[1].set_xlabel("epochs")
            whole_numbers(column[1].yaxis)
            for ax in column:
                ax.grid(color=GRID)
        axes[0, 0].set_ylabel("test NLL, nats")
        axes[1, 0].set_ylabel("active units (all layers)")
        handles = legend_handles([name for name in MARKERS if name in {run.spec.objective for run in runs}])
        counts = sorted({run.spec.T for run in runs} & set(LINES))
        styles = [axes[0, 0].plot([], [], color=INK, ls=LINES[k], lw=1.3, label=f"k = {k}")[0] for k in counts]
        canvas.legend(handles=[*handles, *styles], loc="outside lower center", ncols=7)
        caption = (
            f"Each line goes on to the right as a run is trained deeper; hollow marks are the paper's, after {FULL:,} "
            "epochs.\n"
            "NLL on the test images of each waypoint's evaluation, which are fewer on the way than at the end, and "
            "active units by Burda's recipe. Pale: the run is on its way. The first seed of each cell. No published "
            "table has these numbers."
        )
        return finish(canvas, name, title, caption, data)


def epochs_axis(ax: Axes, epochs: pd.Series[float], until: int = FULL) -> None:
    """Logarithmic, labelled where the papers' stages end."""
    ends = np.cumsum([stage.epochs for stage in burda_schedule(True)])
    shown = [int(end) for end in ends if epochs.min() <= end <= until]
    ax.set_xscale("log")
    ax.set_xticks(shown, [str(end) for end in shown], rotation=45, ha="right", rotation_mode="anchor")
    ax.xaxis.set_minor_locator(NullLocator())


def _series_line(ax: Axes, rows: pd.DataFrame, metric: str, run: RunResult) -> None:
    setting = Setting.of(run.spec)
    colour, marker = colour_of(setting.objective), MARKERS[setting.objective]
    alpha = 0.45 if run.is_under_way else 1.0
    style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "ls": LINES.get(setting.T, "-."), "lw": 1.2}
    ax.plot(rows["epochs"], rows[metric], alpha=alpha, **style)
    if metric == "nll":
        paper = published_at(Place.of(run), "nll")
        value = paper.value if paper else None
    else:
        counts = [published_at(Place.of(run), f"active_units_{layer}") for layer in range(1, run.spec.layers + 1)]
        value = sum(count.value for count in counts if count) if all(counts) else None
    if value is not None:
        ax.plot(FULL, value, marker=marker, color=colour, mfc="none", ms=5, ls="")


def by_depth(report: Report) -> dict[int, list[RunResult]]:
    """Whole epochs -> the runs as they were then, of every depth at which more than one was evaluated."""
    depths: dict[int, list[RunResult]] = {}
    for run in (*report.results, *report.under_way):
        for waypoint in at_waypoints(run):
            if waypoint.epochs >= 1 and waypoint.is_finished and value_of(waypoint.metrics, "nll") is not None:
                depths.setdefault(round(waypoint.epochs), []).append(waypoint)
    return {epochs: runs for epochs, runs in sorted(depths.items()) if len(runs) > 1}


def claims_by_depth(report: Report) -> pd.DataFrame:
    """One row per claim of `SHOWN_FAMILIES` and depth: the effect with the interval that decides, and the paper's."""
    rows = [
        {
            "epochs": epochs,
            "family": claim.family,
            "claim": claim.statement,
            "effect": claim.effect.value,
            "low": claim.low,
            "high": claim.high,
            "decision": claim.decision,
            "paper_effect": claim.paper_effect,
        }
        for epochs, runs in by_depth(report).items()
        for claim in decide_claims(gather(runs), report.judged, report.planned)
        if claim.family in SHOWN_FAMILIES and claim.effect is not None
    ]
    return pd.DataFrame(rows)


def claims_figure(data: pd.DataFrame) -> Figure | None:
    """Effects of the families of claims against epochs, of `claims_by_depth`; None where there are not two depths."""
    if data.empty or data["epochs"].nunique() < 2:
        return None
    name, title = "claims_by_epochs", "Which claims show early, which late?"
    families = [family for family in SHOWN_FAMILIES if (data["family"] == family).any()]
    wide, high = min(3, len(families)), -(-len(families) // 3)
    with open_canvas(name, 1.2 + 3.2 * max(2, wide), 2.9 * high) as canvas:
        axes = canvas.subplots(high, wide, squeeze=False)
        for ax, family in zip(axes.flat, families, strict=False):
            family_claims = data[data["family"] == family]
            ax.axhline(0, color=INK, lw=0.8)
            for _, rows in family_claims.groupby("claim", sort=False):
                bars = [rows["effect"] - rows["low"], rows["high"] - rows["effect"]]
                ax.errorbar(rows["epochs"], rows["effect"], yerr=bars, color=INK, marker="o", ms=3.5, lw=0.9, alpha=0.6)
                ax.plot(FULL, rows["paper_effect"].iloc[0], "o", color=INK, mfc="none", ms=5)
            ax.set(title=family, xlabel="epochs")
            epochs_axis(ax, data["epochs"])
            ax.set_ylabel("active units" if family == UNITS else "nats")
            ax.grid(color=GRID)
        for ax in axes.flat[len(families) :]:
            ax.set_axis_off()
        caption = (
            "A line above zero bears its claim out at that depth: see which cross zero, and where they end.\n"
            "One line a dataset, depth and k: our effect with the interval that decides at that depth (the family's "
            f"whole grid counted); hollow, at {FULL:,} epochs: the paper's effect. Effects of early waypoints rest on "
            "fewer test images."
        )
        return finish(canvas, name, title, caption, data)


def claims_table(data: pd.DataFrame) -> Table | None:
    """How many claims of each family hold at each depth, of `claims_by_depth`; None where there are not two depths."""
    if data.empty or data["epochs"].nunique() < 2:
        return None
    depths = sorted(data["epochs"].unique())
    rows, counted = [], []
    for family in (family for family in SHOWN_FAMILIES if (data["family"] == family).any()):
        shown: dict[str, str] = {"family": family}
        for epochs in depths:
            claims = data[(data["family"] == family) & (data["epochs"] == epochs)]
            holds, fails = (claims["decision"].str.startswith(word) for word in ("holds", "does not hold"))
            shown[f"{epochs:,} epochs"] = (
                f"{holds.sum()} hold, {fails.sum()} not, of {len(claims)}" if len(claims) else DASH
            )
            counted.append(
                {"family": family, "epochs": epochs, "holds": holds.sum(), "fails": fails.sum(), "of": len(claims)}
            )
        rows.append(shown)
    caption = (
        "Read across for how the claims of a family fare as training goes on.\n"
        "Each decided at its depth by the tests of the claims; the rest is undecided."
    )
    title = "How many claims hold at which depth?"
    return Table("claims_by_depth", title, caption, pd.DataFrame(counted), pd.DataFrame(rows), ("",) * len(rows))
