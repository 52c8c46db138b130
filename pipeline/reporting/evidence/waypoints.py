"""How far a run was from its end at each of its waypoints, and whether the order of the cells was already the end's.

Waypoints on the way are evaluated on fewer test images than the end. NLL of single images differs by tens of nats, so
that a difference is taken over the images that both evaluations have (paired).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.evaluation.spacing import evenly_spaced
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import Cell, gather, run_images, standard_error

LEAST_CELLS = 3
"""Of fewer cells the order says nothing."""


def at_waypoints(run: RunResult) -> list[RunResult]:
    """A run as it was at each of its evaluated waypoints and as it is, shallowest first."""
    earlier = [
        replace(
            run,
            spec=replace(run.spec, max_steps=waypoint.steps),
            status=waypoint.status,
            evaluation=waypoint.evaluation,
            metrics=waypoint.metrics,
            arrays=waypoint.arrays,
            waypoints=(),
        )
        for waypoint in run.waypoints
    ]
    return [*earlier, run]


@dataclass(frozen=True)
class Gap:
    """A number at a waypoint minus the same at the end."""

    value: float
    se: float | None
    """Standard error over the test images that both have; None for active units."""


@dataclass(frozen=True)
class Passed:
    """A cell as it was at a waypoint, beside its end; means over its seeds."""

    epochs: int
    nll: float
    units: float | None
    nll_gap: Gap | None
    units_gap: Gap | None


@dataclass(frozen=True)
class Way:
    """A cell that is at its end, and its waypoints, shallowest first; the last is the end itself."""

    cell: Cell
    passed: tuple[Passed, ...]

    @property
    def dataset(self) -> str:
        return self.cell.place.dataset

    def at(self, epochs: int) -> Passed | None:
        return next((waypoint for waypoint in self.passed if waypoint.epochs == epochs), None)


def common_images(run: RunResult, other: RunResult) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows of the test images that two evaluations of one dataset both have: in the one's values, in the other's.

    None where it is not known how many test images there are, and they took unequally many.
    """
    one, two = (run_images(result, "nll") for result in (run, other))
    if one is None or two is None:
        return None
    if len(one) == len(two):
        return np.arange(len(one)), np.arange(len(two))
    total = run.training.get("data", {}).get("counts", {}).get("test_images")
    if total is None:
        return None
    _, rows, others = np.intersect1d(
        evenly_spaced(total, len(one)), evenly_spaced(total, len(two)), assume_unique=True, return_indices=True
    )
    return (rows, others) if len(rows) else None


def nll_gaps(waypoint: RunResult, end: RunResult) -> NDArray[np.float64] | None:
    """NLL at a waypoint minus that at the end [images that both have], nats."""
    common = common_images(waypoint, end)
    before, after = run_images(waypoint, "nll"), run_images(end, "nll")
    if common is None or before is None or after is None:
        return None
    return before[common[0]] - after[common[1]]


def _passed(epochs: int, states: Sequence[RunResult], ends: Sequence[RunResult]) -> Passed:
    """One waypoint of a cell, from its runs as they were then and at their ends, seed by seed."""
    nlls = [value_of(state.metrics, "nll") for state in states]
    counts = [value_of(state.metrics, "active_units") for state in states]
    end_counts = [value_of(end.metrics, "active_units") for end in ends]
    known, end_known = [one for one in counts if one is not None], [one for one in end_counts if one is not None]
    units = float(np.mean(known)) if len(known) == len(states) else None
    end_units = float(np.mean(end_known)) if len(end_known) == len(ends) else None
    gaps = [nll_gaps(state, end) for state, end in zip(states, ends, strict=True)]
    known_gaps = [gap for gap in gaps if gap is not None]
    nll_gap = None
    if len(known_gaps) == len(gaps) and len({len(gap) for gap in known_gaps}) == 1:
        mean = np.mean(known_gaps, axis=0)
        nll_gap = Gap(float(mean.mean()), standard_error(mean))
    return Passed(
        epochs,
        float(np.mean([one for one in nlls if one is not None])),
        units,
        nll_gap,
        None if units is None or end_units is None else Gap(units - end_units, None),
    )


def ways(results: Sequence[RunResult]) -> list[Way]:
    """The cells whose seeds are all at their end and have waypoints of whole epochs in common.

    Runs that continue others are left out, whose epochs count from another start; a run that two experiments name
    counts once.
    """
    with_waypoints = [run for run in results if run.waypoints and run.is_finished and not run.spec.continues]
    once = {(run.digest, run.spec.dataset, run.spec.latent): run for run in with_waypoints}
    complete = []
    for cells in gather(list(once.values())).values():
        for cell in cells:
            series = [
                {
                    round(state.epochs): state
                    for state in at_waypoints(run)
                    if state.epochs >= 1 and state.is_finished and value_of(state.metrics, "nll") is not None
                }
                for run in cell.runs
            ]
            shared = sorted(set.intersection(*map(set, series)))
            ends = {max(states, default=0) for states in series}
            if len(shared) > 1 and ends == {shared[-1]}:
                last = [states[shared[-1]] for states in series]
                complete.append(Way(cell, tuple(_passed(at, [states[at] for states in series], last) for at in shared)))
    return complete


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation between the cells of one dataset at a waypoint and at their end."""

    cells: int
    nll: float | None
    units: float | None
    """None where all cells have equally many."""


def agreement(chosen: Sequence[Way], epochs: int) -> Agreement | None:
    """Whether the order of cells at a waypoint is that of their ends; None for fewer than `LEAST_CELLS` cells."""
    pairs = [(waypoint, way.passed[-1]) for way in chosen if (waypoint := way.at(epochs))]
    if len(pairs) < LEAST_CELLS:
        return None
    nll = rank_correlation([waypoint.nll for waypoint, _ in pairs], [end.nll for _, end in pairs])
    counts = [
        (waypoint.units, end.units) for waypoint, end in pairs if waypoint.units is not None and end.units is not None
    ]
    units = None
    if len(counts) == len(pairs):
        units = rank_correlation([count for count, _ in counts], [end for _, end in counts])
    return Agreement(len(pairs), nll, units)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where one of the two is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(stats.spearmanr(one, other).statistic)


def agrees_from(chosen: Sequence[Way], least: float) -> int | None:
    """The first waypoint before the end from which on the order of cells by NLL correlates with the end's by `least`
    or more; None where none does or there are too few cells."""
    end = max(way.passed[-1].epochs for way in chosen)
    depths = sorted({waypoint.epochs for way in chosen for waypoint in way.passed} - {end}, reverse=True)
    first = None
    for epochs in depths:
        agreed = agreement(chosen, epochs)
        if agreed is None or agreed.nll is None or agreed.nll < least:
            break
        first = epochs
    return first
