"""Contests: every round measures all contestants of a case one after another, so that noise hits them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.measure import Failed, Rate

Timing = Callable[[float], Rate]
"""seconds -> rate. Raises: Failed."""
WARM_UP_SECONDS = 0.05
"""Measured ahead of the first round, for which a contestant is built and compiled."""


@dataclass
class Results:
    """Rates by case and contestant, one for each round; and why there are none."""

    rates: dict[str, dict[str, list[Rate]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """Of a number over the rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Range:
        return Range(statistics.median(values), min(values), max(values))


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def hold(
    contests: dict[str, dict[str, Timing]], rounds: int, seconds: float, on_progress: Callable[[str], None]
) -> Results:
    """`contests`: by case and contestant. A contestant that fails at a case is out of it; the others go on."""
    results = Results(rates={case: {} for case in contests}, failures={case: {} for case in contests})
    for number in range(rounds + 1):
        for case, contestants in contests.items():
            for name, measured in contestants.items():
                if name in results.failures[case]:
                    continue
                on_progress(f"round {number} of {rounds}, {case}, {name}" if number else f"warming up, {case}, {name}")
                try:
                    rate = measured(seconds if number else WARM_UP_SECONDS)
                except Failed as failure:
                    results.failures[case][name] = str(failure)
                    results.rates[case].pop(name, None)
                    continue
                if number:
                    results.rates[case].setdefault(name, []).append(rate)
    return results
