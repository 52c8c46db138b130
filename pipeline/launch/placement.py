"""Where and when units run (cohorts on GPUs, single runs on cores): how long each takes, in which order they start, how
many cohorts share a GPU, when all is done.

Pure functions of numbers that were measured (`pipeline.launch.measure`, `pipeline.launch.plan`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pipeline.errors import UserError
from pipeline.launch.plan import Standing, shape_of, unit_name
from pipeline.training.cohort import relative_cost
from pipeline.work.console import counted

MEMORY_SHARE = 0.9
"""Share of a GPU's memory that cohorts may take together."""
LEAST_GAIN = 1.1
"""Cohorts share a GPU only where together they train so many times faster than one after the other."""


@dataclass(frozen=True)
class Work:
    """A unit as the schedule sees it."""

    key: str
    seconds: float
    """What is left of it on one device."""
    after: str | None = None
    """The work that has to end before this one starts."""


@dataclass(frozen=True)
class Schedule:
    """When each work starts, in seconds from the beginning, and how long all of them take."""

    seconds: float
    """Until all is done."""
    starts: dict[str, float]
    critical: tuple[str, ...]
    """The works, one behind the other without a gap, that end last: only they make it longer or shorter."""


@dataclass(frozen=True)
class Forecast:
    """How long a unit of work is expected to take."""

    seconds: float
    measured: bool
    """Whether it rests on the unit's measured speed, or on those of others and its number of samples."""


def stack_cost(item: Standing, on_gpu: bool) -> float:
    """What is left to train of a cohort, in the units of `relative_cost`.

    On a GPU the runs of one sample count train as one stack, for little more than the time of its longest run.
    """
    left: dict[int, list[float]] = {}
    steps = item.steps or (0,) * len(item.cohort.runs)
    for run, step in zip(item.cohort.runs, steps, strict=True):
        left.setdefault(run.T, []).append(relative_cost(run) * (1 - step / run.total_steps))
    return sum(max(costs) if on_gpu else sum(costs) for costs in left.values())


def estimates(plan: Sequence[Standing], on_gpu: bool) -> dict[str, Forecast]:
    """Seconds left of each unit that is not done. An evaluation that was never timed counts nothing.

    What was not timed takes its cost at the median speed of what was; where nothing was, a unit of cost is a second:
    good for an order, not for a clock.
    """
    costs = {unit_name(item.cohort, on_gpu): stack_cost(item, on_gpu) for item in plan}
    timed = [(item.training_left, costs[unit_name(item.cohort, on_gpu)]) for item in plan if item.training_left]
    unit = median(seconds / cost for seconds, cost in timed) if timed else 1.0
    times = {}
    for item in plan:
        known, name = item.training_left, unit_name(item.cohort, on_gpu)
        training = costs[name] * unit if known is None else known
        times[name] = Forecast(training + (item.evaluation_left or 0.0), known is not None)
    return times


def at_speeds(plan: Sequence[Standing], rate: Callable[[str], float | None]) -> list[Standing]:
    """The same units with their time left at other speeds, where these are known.

    `rate(shape)`: updates a second of all runs of a unit together; None where it is not known.
    """

    def timed(item: Standing) -> Standing:
        speed = rate(shape_of(item.cohort, len(item.cohort.runs)))
        return item if speed is None else replace(item, training_left=(item.total_steps - sum(item.steps)) / speed)

    return [timed(item) for item in plan]


def works(plan: Sequence[Standing], seconds: Mapping[str, Forecast], on_gpu: bool) -> list[Work]:
    """The units of a plan with their durations and the unit that each continues.

    A unit is a cohort on a GPU, where its runs train as stacks, and a run on a CPU. `seconds`: unit -> its forecast.
    """
    units = []
    for item in plan:
        name = unit_name(item.cohort, on_gpu)
        after = item.cohort.continues if on_gpu else item.cohort.runs[0].continues
        units.append(Work(name, seconds[name].seconds, after))
    return units


def describe_scaling(plan: Sequence[Standing], devices: Sequence[int], on_gpu: bool) -> str:
    """How long the units take on so many devices, one each, and which of them decide that.

    Raises: UserError where no speed is known to reckon with.
    """
    seconds = estimates(plan, on_gpu)
    if not any(estimate.measured for estimate in seconds.values()):
        raise UserError("no speed of these runs is known: measure it (`measure`), or give some (--speeds FILE)")
    total = sum(estimate.seconds for estimate in seconds.values())
    unit, device = ("cohort", "device") if on_gpu else ("run", "core")
    lines = [f"{counted(len(plan), unit)}, {total / 3600:,.1f} {device} hours"]
    guessed = [key for key, estimate in seconds.items() if not estimate.measured]
    if guessed:
        lines.append(f"reckoned by their number of samples, since they were not timed: {', '.join(guessed)}")
    if any(item.evaluation_left is None for item in plan):
        lines.append("without evaluations that were never timed")
    for count in devices:
        schedule = simulate(works(plan, seconds, on_gpu), count)
        times = f"{schedule.seconds / 3600:9,.1f} h, {total / schedule.seconds:5.1f} times one"
        lines.append(f"{count:4d} {device}s: {times}; decided by {chain(schedule.critical)}")
    return "\n".join(lines)


def chain(keys: Sequence[str]) -> str:
    """`a -> b -> c`, the middle of a long one left out."""
    short = [*keys[:2], f"{len(keys) - 3} more", keys[-1]] if len(keys) > 4 else keys
    return " -> ".join(short)


def tails(waiting: Sequence[Work]) -> dict[str, float]:
    """For each work, the seconds of the longest chain that starts with it."""
    behind: dict[str | None, list[Work]] = {}
    for work in waiting:
        behind.setdefault(work.after, []).append(work)

    def tail(work: Work) -> float:
        return work.seconds + max((tail(other) for other in behind.get(work.key, [])), default=0.0)

    return {work.key: tail(work) for work in waiting}


def simulate(waiting: Sequence[Work], devices: int) -> Schedule:
    """What a list schedule comes to: a free device takes the ready work with the longest tail.

    A work whose `after` is not among the works may start at once.
    """
    tail = tails(waiting)
    by_key = {work.key: work for work in waiting}
    behind: dict[str, list[Work]] = {}
    ready: list[tuple[float, str]] = []
    for work in waiting:
        if work.after in by_key:
            behind.setdefault(work.after, []).append(work)
        else:
            ready.append((-tail[work.key], work.key))
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    starts: dict[str, float] = {}
    cause: dict[str, str | None] = {}
    """The work whose end let this one start: it freed the device, or came before it."""
    now, ended = 0.0, None
    while ready or running:
        while ready and len(running) < devices:
            _, key = heapq.heappop(ready)
            starts[key], cause[key] = now, ended
            heapq.heappush(running, (now + by_key[key].seconds, key))
        now, ended = heapq.heappop(running)
        for work in behind.get(ended, []):
            heapq.heappush(ready, (-tail[work.key], work.key))
    critical = [ended] if ended is not None else []
    while critical and (before := cause[critical[-1]]) is not None:
        critical.append(before)
    return Schedule(now, starts, tuple(reversed(critical)))


def cohorts_a_gpu(seconds: Mapping[int, float], peak_bytes: int, memory_bytes: int) -> int:
    """How many cohorts of one shape share a GPU.

    `seconds`: by number of copies that trained on the GPU at once, what a step then took; 1 must be among them.
    `peak_bytes`: what one copy takes at most. `memory_bytes`: what the GPU has.

    Of the numbers that were measured, fit, and gain at least `LEAST_GAIN` over one after the other, the one with
    the most steps a second; 1 where there is none.
    """
    fitting = [n for n in seconds if n == 1 or n * peak_bytes <= MEMORY_SHARE * memory_bytes]
    gains = {n: n * seconds[1] / seconds[n] for n in fitting}
    return max((n for n in fitting if n == 1 or gains[n] >= LEAST_GAIN), key=lambda n: (gains[n], -n))
