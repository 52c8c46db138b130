"""The learning-rate schedule of Burda et al. (2016), section 5: 3^i passes at .001 * 10^(-i/7), i = 0..7."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from pipeline.experiments.spec import RunSpec, Stage

STAGES = 8


def burda_schedule(rounded: bool) -> tuple[Stage, ...]:
    """All eight stages, 3280 epochs; `rounded` gives the rates of the authors' code (1e-3, 7.2e-4, ... 1e-4)."""
    rates = (0.001 * 10 ** (-i / 7) for i in range(STAGES))
    return tuple(Stage(3**i, round(rate, 5) if rounded else rate) for i, rate in enumerate(rates))


def stage_bounds(run: RunSpec) -> list[int]:
    """Updates after which each stage of the schedule ends, whether the run goes so far or not."""
    return list(accumulate(stage.epochs * run.steps_per_epoch for stage in run.schedule))


def stage_ends(run: RunSpec) -> list[int]:
    """Updates after which each stage of the run ends; the stages that it does not complete are left out."""
    return [end for end in stage_bounds(run) if end <= run.total_steps]


def learning_rate(run: RunSpec, step: int) -> float:
    """The rate of update number `step`, counted from 0."""
    return run.schedule[bisect_right(stage_bounds(run), step)].learning_rate


def history_steps(run: RunSpec) -> list[int]:
    """The updates after which a point of the training curve is taken: some 230 of a full run, with every stage's end.

    They are the same however far the run is taken. From one point to the next it is 1, 2 or 5 times a power of ten, at
    most a tenth of the way so far: 1, 2, ..., 20, 22, ..., 50, 55, ..., 100, 110, ...
    """
    points, step = set(stage_ends(run)), 1
    while step <= run.total_steps:
        points.add(step)
        power = 10 ** (len(str(step)) - 1)
        step += max(1, power * (1 if step < 2 * power else 2 if step < 5 * power else 5) // 10)
    return sorted(points)


def waypoint_steps(run: RunSpec, further: Iterable[int] = ()) -> list[int]:
    """The updates after which a run's state is kept: every stage's end, its depth, and `further` ones on the way."""
    on_the_way = {step for step in further if 0 < step < run.total_steps}
    return sorted({*stage_ends(run), *on_the_way, run.total_steps})
