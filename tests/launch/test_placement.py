"""Order, sharing and the simulated schedule, from numbers given."""

from __future__ import annotations

from random import Random

import pytest

from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec
from pipeline.launch.placement import (
    Work,
    at_speeds,
    cohorts_a_gpu,
    describe_scaling,
    estimates,
    simulate,
    stack_cost,
    tails,
)
from pipeline.launch.plan import TRAIN, WAITS, Standing, single_runs
from pipeline.training.cohort import relative_cost
from tests.conftest import make_run

GB = 10**9


@pytest.mark.parametrize(
    ("seconds", "peak", "memory", "expected"),
    [
        ({1: 1.0}, GB, 80 * GB, 1),  # Nothing was tried.
        ({1: 1.0, 2: 1.0, 4: 1.0}, GB, 80 * GB, 4),  # The GPU was idle for the most part.
        ({1: 1.0, 2: 1.2, 4: 2.6}, GB, 80 * GB, 2),  # 1.67 times as fast, and 1.54 times.
        ({1: 1.0, 2: 1.0, 4: 1.0}, 20 * GB, 80 * GB, 2),  # Four would take all of the memory, which is too much.
        ({1: 1.0, 2: 1.0, 4: 1.0}, 50 * GB, 80 * GB, 1),
        ({1: 1.0, 2: 1.9, 4: 3.9}, GB, 80 * GB, 1),  # A few percent are not worth it.
        ({1: 1.0, 2: 2.4, 4: 5.0}, GB, 80 * GB, 1),
        ({1: 3.0, 2: 3.3}, GB, 80 * GB, 2),
    ],
)
def test_cohorts_share_a_gpu_where_they_fit_and_gain(
    seconds: dict[int, float], peak: int, memory: int, expected: int
) -> None:
    assert cohorts_a_gpu(seconds, peak, memory) == expected


def test_a_schedule_by_hand() -> None:
    works = [Work("short", 1), Work("source", 2), Work("long", 4), Work("next", 5, after="source"), Work("late", 1)]
    assert tails(works) == {"short": 1, "source": 7, "long": 4, "next": 5, "late": 1}
    # Two devices: source 0-2, next 2-7; long 0-4, late 4-5, short 5-6.
    schedule = simulate(works, 2)
    assert schedule.seconds == 7
    assert schedule.critical == ("source", "next")
    assert schedule.starts == {"source": 0, "long": 0, "next": 2, "late": 4, "short": 5}
    # What is not among the works is done.
    assert simulate([Work("next", 5, after="source")], 3).seconds == 5
    assert simulate([], 2).seconds == 0


@pytest.mark.parametrize("seed", range(60))
def test_every_schedule_is_possible_and_no_worse_than_it_must_be(seed: int) -> None:
    random = Random(seed)
    works, devices = [], random.randint(1, 5)
    for i in range(random.randint(1, 12)):
        after = f"w{random.randrange(i)}" if i and random.random() < 0.5 else None
        works.append(Work(f"w{i}", random.randint(1, 50), after))
    schedule = simulate(works, devices)
    by_key = {work.key: work for work in works}
    ends = {key: start + by_key[key].seconds for key, start in schedule.starts.items()}
    assert ends.keys() == by_key.keys()
    for work in works:
        start = schedule.starts[work.key]
        assert sum(schedule.starts[key] <= start < ends[key] for key in ends) <= devices
        assert work.after is None or ends[work.after] <= start
    total, longest = sum(work.seconds for work in works), max(tails(works).values())
    assert max(ends.values()) == schedule.seconds
    # Graham's bounds.
    assert max(total / devices, longest) <= schedule.seconds <= total / devices + longest * (1 - 1 / devices) + 1e-9
    # Without a gap from the first moment to the last.
    times = [schedule.starts[key] for key in schedule.critical] + [schedule.seconds]
    assert times[0] == 0
    assert times[1:] == [ends[key] for key in schedule.critical]


def cohort(name: str, *settings: tuple[int, int], continues: str | None = None) -> CohortSpec:
    """`settings`: K and updates of each run."""
    runs = tuple(
        make_run(K=K, max_steps=steps, name=f"r{i}", continues=continues) for i, (K, steps) in enumerate(settings)
    )
    return CohortSpec("tiny", name, name, runs)


def test_a_gpu_trains_stacks_and_a_cpu_runs() -> None:
    mixed = cohort("mixed", (1, 10), (5, 10), (5, 20))
    item = Standing(mixed, TRAIN, steps=(0, 0, 10))
    costs = [relative_cost(run) for run in mixed.runs]
    assert stack_cost(item, on_gpu=False) == costs[0] + costs[1] + costs[2] / 2
    assert stack_cost(item, on_gpu=True) == costs[0] + max(costs[1], costs[2] / 2)


def test_what_was_not_timed_is_reckoned_from_what_was() -> None:
    fast, slow = cohort("a", (1, 10)), cohort("b", (1, 30))
    plan = [
        Standing(fast, TRAIN, steps=(0,), training_left=4.0, evaluation_left=1.0),
        Standing(slow, TRAIN, steps=(0,)),
    ]
    times = estimates(plan, on_gpu=True)
    assert (times["tiny/a"].seconds, times["tiny/a"].measured) == (5.0, True)
    assert (times["tiny/b"].seconds, times["tiny/b"].measured) == (pytest.approx(12.0), False)


def test_scaling_names_what_decides_it() -> None:
    source, other = cohort("source", (1, 3600)), cohort("other", (5, 1800))
    behind = cohort("behind", (1, 3600), continues="tiny/source/r0")
    plan = [
        Standing(source, TRAIN, steps=(0,)),
        Standing(other, TRAIN, steps=(0,)),
        Standing(behind, WAITS, steps=(0,)),
    ]
    with pytest.raises(UserError, match="no speed of these runs is known"):
        describe_scaling(plan, [1], on_gpu=True)
    text = describe_scaling(at_speeds(plan, lambda shape: 1.0 if "T1 " in shape else None), [1, 2], on_gpu=True)
    assert "by their number of samples, since they were not timed: tiny/other" in text
    assert "   2 devices:       2.0 h,   1.4 times one; decided by tiny/source -> tiny/behind" in text
    assert "without evaluations that were never timed" in text
    text = describe_scaling(at_speeds(plan, lambda _: 1.0), [1, 2], on_gpu=True)
    assert "3 cohorts, 2.5 device hours\n" in text
    assert "   1 devices:       2.5 h,   1.0 times one" in text


def test_on_cores_every_run_is_placed_by_itself() -> None:
    """Two runs of one cohort, and one that continues the longer of them."""
    both = cohort("source", (1, 3600), (5, 1800))
    behind = cohort("behind", (1, 3600), continues="tiny/source/r0")
    plan = [Standing(unit, TRAIN, steps=(0,)) for unit in single_runs([both, behind])]
    text = describe_scaling(at_speeds(plan, lambda _: 1.0), [1, 16, 256], on_gpu=False)
    assert "3 runs, 2.5 core hours\n" in text
    assert "   1 cores:       2.5 h" in text
    assert "  16 cores:       2.0 h,   1.2 times one; decided by tiny/source/r0 -> tiny/behind/r0" in text
    assert " 256 cores:       2.0 h" in text


def test_a_speed_that_is_not_given_stays() -> None:
    plan = [Standing(cohort("a", (1, 10)), TRAIN, steps=(0,), training_left=4.0)]
    assert at_speeds(plan, lambda _: None) == plan
