"""The learning-rate schedule of Burda et al. (2016), section 5: 3^i passes at .001 * 10^(-i/7), i = 0..7."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from pipeline.spec import RunSpec, Stage

STAGES = 8


def burda_schedule(rounded: bool) -> tuple[Stage, ...]:
    """All eight stages, 3280 epochs; `rounded` gives the rates of the authors' code (1e-3, 7.2e-4, ... 1e-4)."""
    rates = (0.001 * 10 ** (-i / 7) for i in range(STAGES))
    return tuple(Stage(3**i, round(rate, 5) if rounded else rate) for i, rate in enumerate(rates))


def stage_ends(run: RunSpec) -> list[int]:
    """Updates after which each stage of the run ends; the stages that it does not complete are left out."""
    ends = accumulate(stage.epochs * run.steps_per_epoch for stage in run.schedule)
    return [end for end in ends if end <= run.total_steps]


def learning_rate(run: RunSpec, step: int) -> float:
    """The rate of update number `step`, counted from 0."""
    ends = list(accumulate(stage.epochs * run.steps_per_epoch for stage in run.schedule))
    return run.schedule[bisect_right(ends, step)].learning_rate


def history_steps(run: RunSpec) -> list[int]:
    """The updates after which a point of the training curve is taken: some 200, dense early, with every stage's end."""
    total, points = run.total_steps, 100
    geometric = {round(10 * (total / 10) ** (i / points)) for i in range(points + 1)} if total > 10 else set()
    linear = {round(total * i / points) for i in range(1, points + 1)}
    return sorted(step for step in geometric | linear | set(stage_ends(run)) | {total} if step > 0)
