"""Contests: every round measures all contestants of a case one after another, so that noise hits them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.cases import Case
from benchmarks.measure import Layout, Work

HALF = 0.5
"""Of the measured seconds: what is given to a contestant out of the main ratios, and to the trial of a layout."""


@dataclass(frozen=True)
class Contestant:
    """`layouts`: where there are several, the fastest in a trial is kept. `weight`: what one unit of work counts.
    `share`: of the measured seconds.
    """

    name: str
    work: Work
    layouts: tuple[Layout, ...]
    weight: float = 1.0
    share: float = 1.0


RateOf = Callable[[Contestant, Layout, float], float]
"""(contestant, layout, seconds) -> units per second"""


@dataclass
class Results:
    """Rates by round: run-steps (or images) per second, FLOP/s and bytes/s."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By case and contestant."""
    layouts: dict[str, dict[str, str]] = field(default_factory=dict)
    """`processes x threads`, by case and contestant."""
    ceilings: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def _chosen_layout(contestant: Contestant, rate_of: RateOf, seconds: float) -> Layout:
    if len(contestant.layouts) == 1:
        return contestant.layouts[0]
    return max(contestant.layouts, key=lambda layout: rate_of(contestant, layout, seconds * HALF))


def hold(
    contests: dict[Case, list[Contestant]],
    ceilings: list[Contestant],
    rounds: int,
    seconds: float,
    rate_of: RateOf,
    on_progress: Callable[[str], None],
) -> Results:
    results = Results(ceilings={ceiling.name: [] for ceiling in ceilings})
    layouts: dict[tuple[Case, str], Layout] = {}
    for case, contestants in contests.items():
        on_progress(f"layouts, {case.title}")
        for contestant in contestants:
            layouts[case, contestant.name] = _chosen_layout(contestant, rate_of, seconds)
        results.rates[case.name] = {contestant.name: [] for contestant in contestants}
        results.layouts[case.name] = {c.name: str(layouts[case, c.name]) for c in contestants}
    for number in range(1, rounds + 1):
        for ceiling in ceilings:
            rate = rate_of(ceiling, ceiling.layouts[0], seconds * ceiling.share)
            results.ceilings[ceiling.name].append(rate * ceiling.weight)
        for case, contestants in contests.items():
            on_progress(f"round {number} of {rounds}, {case.title}")
            for contestant in contestants:
                rate = rate_of(contestant, layouts[case, contestant.name], seconds * contestant.share)
                results.rates[case.name][contestant.name].append(rate * contestant.weight)
    return results
