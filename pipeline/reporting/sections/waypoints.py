"""Which waypoint predicts the end? Cells at the ends of the schedule's stages beside what they end with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.data.catalogue import DATASETS
from pipeline.published import Setting
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import dataset_name, layers_name, setting_name
from pipeline.reporting.evidence.waypoints import (
    LEAST_CELLS,
    Gap,
    Passed,
    Way,
    agreement,
    agrees_from,
    at_waypoints,
    ways,
)
from pipeline.reporting.forms.drawing import (
    GRID,
    INK,
    LINES,
    MARKERS,
    SMALL,
    Figure,
    colour_of,
    finish,
    legend_handles,
    open_canvas,
)
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.section import Section, folded, shown
from pipeline.reporting.forms.tables import Table, count
from pipeline.reporting.report import Report
from pipeline.reporting.sections import depth
from pipeline.reporting.sections.depth import whole_epochs

QUESTION = "Which waypoint predicts the end?"
AGREES = 0.9
"""From this rank correlation on the order of cells is said to be that of their ends."""
NATS, UNITS = "NLL − end's", "units − end's"
NLL_ORDER, UNITS_ORDER = "order by NLL", "order by units"


def by_dataset(known: Sequence[Way]) -> dict[str, list[Way]]:
    """In the catalogue's order; NLL of different datasets are not to be ranked together."""
    names = [*DATASETS, *sorted({way.dataset for way in known} - set(DATASETS))]
    return {name: dataset_ways for name in names if (dataset_ways := [way for way in known if way.dataset == name])}


def cell_label(way: Way) -> str:
    """A cell in words, `MNIST, 1 layer, IWAE(1, 50)`, for a column of a table."""
    place = way.cell.place
    return f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, {setting_name(place.setting)}"


def gaps_in_words(gaps: Sequence[Gap | None], write: Callable[[float], str]) -> str:
    """`+1.97 ± 0.05` of one cell, `+1.20 to +2.40` of several; a dash where nothing is known."""
    known = [gap for gap in gaps if gap is not None]
    if not known:
        return DASH
    if len(known) == 1:
        error = f" ± {known[0].se:.2f}" if known[0].se is not None and known[0].se > 0 else ""
        return f"{write(known[0].value)}{error}"
    values = [gap.value for gap in known]
    return " to ".join(dict.fromkeys(write(value) for value in (min(values), max(values))))


def nats(value: float) -> str:
    """A difference in nats with its sign and two decimals."""
    return number(value, signed=True)


def units_writer(known: Sequence[Way]) -> Callable[[float], str]:
    """Writes differences in active units: whole, or with a decimal where some of these cells are means over seeds."""
    values = [one.units_gap.value for way in known for one in way.passed if one.units_gap]
    decimals = 0 if all(value.is_integer() for value in values) else 1
    return lambda value: number(value, signed=True, decimals=decimals)


def statement(known: Sequence[Way]) -> str:
    """What is known of the question, in words, with how far it goes."""
    if not known:
        return "No cell of this scale is at its end with a waypoint before it: nothing can be predicted yet."
    return " ".join(_of_dataset(name, dataset_ways) for name, dataset_ways in by_dataset(known).items())


def _of_dataset(name: str, known: Sequence[Way]) -> str:
    end = max(way.passed[-1].epochs for way in known)
    last = max(one.epochs for way in known for one in way.passed[:-1])
    since = agrees_from(known, AGREES)
    at = last if since is None else since
    passed = [one for way in known if (one := way.at(at))]
    far = f"{gaps_in_words([one.nll_gap for one in passed], nats)} nats"
    units = f"{gaps_in_words([one.units_gap for one in passed], units_writer(known))} active units"
    place = f"After {whole_epochs(at)} of {whole_epochs(end)} epochs"
    if len(known) < LEAST_CELLS:
        which = f"the one cell at its end ({cell_label(known[0])})" if len(known) == 1 else f"{len(known)} cells"
        less = "one cell says" if len(known) == 1 else "two cells say"
        subject = which if len(known) == 1 else f"{which} on {dataset_name(name)}"
        return f"{place} {subject} stood {far} and {units} from the end; {less} nothing of the others."
    if since is None:
        return (
            f"{place} the order of {len(known)} cells on {dataset_name(name)} is not yet that of their ends (rank "
            f"correlation below {AGREES}): they stood {far} and {units} from them."
        )
    return (
        f"From {whole_epochs(at)} of {whole_epochs(end)} epochs on the order of {len(known)} cells on "
        f"{dataset_name(name)} is nearly that of their ends (rank correlation {AGREES} or more), though they stood "
        f"{far} and {units} from them."
    )


def distance_table(known: Sequence[Way]) -> Table | None:
    """How far the cells of a dataset are from their ends at each waypoint; None where no cell has one."""
    if not known:
        return None
    rows, data, groups = [], [], []
    for name, dataset_ways in by_dataset(known).items():
        write_units = units_writer(dataset_ways)
        for epochs in _before_end(dataset_ways):
            passed = [one for way in dataset_ways if (one := way.at(epochs))]
            agreed = agreement(dataset_ways, epochs)
            rows.append(
                {
                    "epochs": whole_epochs(epochs),
                    "cells": str(len(passed)),
                    NATS: gaps_in_words([one.nll_gap for one in passed], nats),
                    UNITS: gaps_in_words([one.units_gap for one in passed], write_units),
                    NLL_ORDER: number(agreed.nll) if agreed else DASH,
                    UNITS_ORDER: number(agreed.units) if agreed else DASH,
                }
            )
            data.append(
                {
                    "dataset": name,
                    "epochs": epochs,
                    "cells": len(passed),
                    **_ends("nll_gap", [one.nll_gap for one in passed]),
                    **_ends("units_gap", [one.units_gap for one in passed]),
                    "rank_correlation_nll": agreed.nll if agreed else None,
                    "rank_correlation_units": agreed.units if agreed else None,
                }
            )
            groups.append(dataset_name(name))
    end = whole_epochs(max(way.passed[-1].epochs for way in known))
    caption = (
        f"Read down for how far the cells still were from what they have after {end} epochs.\n"
        "Differences in nats and in units, waypoint minus end, lowest to highest over cells (mean over seeds); NLL "
        "over the test images that both evaluations have, ± the standard error over these where there is one cell. "
        "Order: Spearman's rank correlation between the cells of a dataset then and at their end, from "
        f"{LEAST_CELLS} cells on."
    )
    title = "How far is each waypoint from the end?"
    display = pd.DataFrame(rows)
    if (display[NLL_ORDER] == DASH).all():
        display = display.drop(columns=[NLL_ORDER, UNITS_ORDER])
    return Table("waypoints", title, caption, pd.DataFrame(data), display, tuple(groups))


def _ends(name: str, gaps: Sequence[Gap | None]) -> dict[str, float | None]:
    values = [gap.value for gap in gaps if gap is not None]
    return {
        f"{name}_low": min(values, default=None),
        f"{name}_median": float(np.median(values)) if values else None,
        f"{name}_high": max(values, default=None),
    }


def series_table(runs: Sequence[RunResult]) -> Table | None:
    """NLL and active units of each run at its waypoints; None where no run has one."""
    chosen = [run for run in runs if run.waypoints]
    if not chosen:
        return None
    chosen.sort(key=lambda run: (run.experiment, run.spec.dataset, run.spec.layers, run.spec.T, run.spec.name))
    series = [{state.epochs: state for state in at_waypoints(run) if state.is_finished} for run in chosen]
    depths = sorted({epochs for states in series for epochs in states})
    rows, data, groups = [], [], []
    for run, states in zip(chosen, series, strict=True):
        row: dict[str, str] = {"run": f"{setting_name(Setting.of(run.spec))}, seed {run.spec.seed}"}
        record: dict[str, Any] = {"cohort": run.cohort, "run": run.spec.name, "under_way": run.is_under_way}
        for epochs in depths:
            state = states.get(epochs)
            nll, units = (value_of(state.metrics, key) if state else None for key in ("nll", "active_units"))
            row[whole_epochs(epochs)] = DASH if nll is None else f"{number(nll)} ({count(units)})"
            record |= {f"nll_{epochs:g}": nll, f"active_units_{epochs:g}": units}
            record[f"test_images_{epochs:g}"] = state.metrics.get("test_images") if state else None
        rows.append(row)
        data.append(record)
        groups.append(f"{run.experiment}: {dataset_name(run.spec.dataset)}, {layers_name(run.spec.layers)}")
    caption = (
        "A column an epoch count: NLL in nats and, in brackets, active units of all layers.\n"
        "NLL over the test images of each waypoint's evaluation, which are fewer on the way than at the end (the CSV "
        "says how many), so that neighbours in a row differ by that too. A run on its way ends in dashes."
    )
    title = "What did each run have at its waypoints?"
    return Table("waypoint_series", title, caption, pd.DataFrame(data), pd.DataFrame(rows), tuple(groups))


def _distances(known: Sequence[Way]) -> pd.DataFrame:
    """One row per cell and waypoint: NLL (nats) and active units, each minus the same at the cell's end."""
    return pd.DataFrame(
        [
            {
                "dataset": way.dataset,
                "layers": way.cell.place.layers,
                "experiment": way.cell.place.experiment,
                "objective": way.cell.place.setting.objective,
                "M": way.cell.place.setting.M,
                "K": way.cell.place.setting.K,
                "epochs": one.epochs,
                "nll_gap": one.nll_gap.value if one.nll_gap else None,
                "nll_gap_se": one.nll_gap.se if one.nll_gap else None,
                "units_gap": one.units_gap.value if one.units_gap else None,
            }
            for way in known
            for one in way.passed
        ]
    ).astype({"nll_gap": float, "nll_gap_se": float, "units_gap": float})


def _agreements(of_dataset: Sequence[Way]) -> list[tuple[int, float]]:
    """Epochs of each waypoint before the end, and the rank correlation there of the cells' NLL with the end's."""
    return [
        (at, order.nll)
        for at in _before_end(of_dataset)
        if (order := agreement(of_dataset, at)) and order.nll is not None
    ]


def _label_distances(axes: Sequence[Axes], data: pd.DataFrame) -> None:
    """Scales and names of the vertical axes: differences of NLL and of active units and, where drawn, correlations."""
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(min(low, -1.5), max(high, 1.5))
    axes[0].set_yscale("symlog", linthresh=1.0)
    ticks = [at for at in (-10, -1, 0, 1, 3, 10, 30, 100) if data["nll_gap"].min() - 1 <= at <= _above(data)]
    axes[0].set_yticks(ticks, [f"{at:+d}".replace("-", "−") if at else "0" for at in ticks])
    labels = ("NLL minus\nthe end's, nats", "active units\nminus the end's", "rank correlation\nwith the end")
    for ax, label in zip(axes, labels, strict=False):
        ax.set_ylabel(label)


def _distance_legend(ax: Axes, known: Sequence[Way]) -> list[Any]:
    """A mark for each objective and a line for each k that the cells have."""
    met = {way.cell.place.setting.objective for way in known}
    objectives = [objective for objective in MARKERS if objective in met]
    counts = sorted({way.cell.place.setting.T for way in known} & set(LINES))
    styles = [ax.plot([], [], color=INK, ls=LINES[k], lw=1.3, label=f"k = {k}")[0] for k in counts]
    return [*legend_handles(objectives, paper=False)[: len(objectives)], *styles]


def distance_figure(known: Sequence[Way]) -> Figure | None:
    """Differences to the end against epochs, a line a cell, and the rank correlation; None where no cell has one."""
    if not known:
        return None
    name = "waypoints"
    datasets = by_dataset(known)
    data = _distances(known)
    agreed = {dataset: _agreements(dataset_ways) for dataset, dataset_ways in datasets.items()}
    rows = 3 if any(agreed.values()) else 2
    with open_canvas(name, min(10.8, 1.4 + 2.9 * max(2, len(datasets))), 0.8 + 2.1 * rows) as canvas:
        axes = canvas.subplots(rows, len(datasets), sharex=True, sharey="row", squeeze=False)
        for column, (dataset, dataset_ways) in zip(axes.T, datasets.items(), strict=True):
            for way in dataset_ways:
                _gap_line(column[0], way.passed, lambda one: one.nll_gap, way)
                _gap_line(column[1], way.passed, lambda one: one.units_gap, way)
            for ax in column[:2]:
                ax.axhline(0, color=INK, lw=0.8)
            column[0].set_title(dataset_name(dataset))
            if rows == 3:
                _agreement_line(column[2], agreed[dataset])
            depth.epochs_axis(column[-1], data["epochs"], until=int(data["epochs"].max()))
            column[-1].set_xlabel("epochs")
            for ax in column:
                ax.grid(color=GRID)
        _label_distances(list(axes[:, 0]), data)
        canvas.legend(handles=_distance_legend(axes[0, 0], known), loc="outside lower center", ncols=9)
        caption = (
            "Near zero a waypoint has the end's value; where the lines of a panel stay together, it tells which cell "
            "will be better.\n"
            "Each line is a cell (mean over its seeds): the waypoint minus its own end, NLL over the test images that "
            "both evaluations have; the NLL axis is linear within 1 nat and logarithmic beyond. Below, from "
            f"{LEAST_CELLS} cells of a dataset on: Spearman's rank correlation between the cells' NLL then and at "
            f"their end; dotted: {AGREES}. Runs that continue others are left out."
        )
        return finish(canvas, name, "How do cells approach their end?", caption, data)


def _above(data: pd.DataFrame) -> float:
    return 1.6 * float(max(1.0, data["nll_gap"].max()))


def _before_end(known: Sequence[Way]) -> list[int]:
    return sorted({one.epochs for way in known for one in way.passed[:-1]})


def _agreement_line(ax: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Rank correlations against epochs; in words where there are too few cells for any."""
    ax.axhline(AGREES, color=INK, lw=0.8, ls=":")
    ax.set_ylim(min([-0.08, *(value - 0.08 for _, value in points), *ax.get_ylim()]), 1.08)
    if points:
        ax.plot(*zip(*points, strict=True), "o-", color=INK, ms=3.5, lw=1.1)
    else:
        middle: Any = ax.transAxes
        ax.text(0.5, 0.5, f"fewer than {LEAST_CELLS} cells", transform=middle, ha="center", va="center", size=SMALL)


def _gap_line(ax: Axes, passed: Sequence[Passed], of: Callable[[Passed], Gap | None], way: Way) -> None:
    known = [(one.epochs, gap.value) for one in passed if (gap := of(one))]
    setting = way.cell.place.setting
    style: dict[str, Any] = {"color": colour_of(setting.objective), "marker": MARKERS.get(setting.objective, "o")}
    ax.plot(*zip(*known, strict=True), ms=3.5, lw=1.1, alpha=0.75, ls=LINES.get(setting.T, "-."), **style)


def section(report: Report) -> Section:
    """What each waypoint told of the end: distances to the end's NLL, the order of cells, claims by depth."""
    known = ways(report.results)
    series = series_table([*report.results, *report.under_way])
    by_depth = depth.claims_by_depth(report)
    lead = "A run is kept and evaluated at the end of each stage of the schedule: what was known then of its end?"
    if series is None:
        lead = "No run of this scale was evaluated on its way."
    else:
        lead += f" {statement(known)}"
    return Section(
        "waypoints",
        QUESTION,
        "Waypoints",
        lead,
        (
            *shown(distance_figure(known), distance_table(known), depth.claims_figure(by_depth)),
            *folded(depth.claims_table(by_depth) if report.judged else None, series),
        ),
    )
