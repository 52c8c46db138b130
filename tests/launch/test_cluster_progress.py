"""What is said of the work on a cluster, from numbers given; no Ray is needed."""

from __future__ import annotations

from pathlib import Path

from pipeline.experiments.spec import CohortSpec
from pipeline.launch.cluster_nodes import Node, Resources
from pipeline.launch.cluster_progress import Losses, Task, describe_cluster, devices_of, line, lines, time_left
from pipeline.launch.cluster_task import TaskReport
from pipeline.launch.plan import TRAIN, Standing
from pipeline.records.run_folder import Job
from tests.conftest import make_run

CORE = Resources(0, 1, 2**30)
A, B = "tiny/a-mnist-1L-T5/iwae-M1-K5-s0", "tiny/b-mnist-1L-T5/iwae-M1-K5-s0"


def unit(name: str, left: float | None = None, steps: int = 0) -> Standing:
    """A unit of one run of 1,000 updates. `left`: seconds of training; `steps`: updates that came home."""
    run = make_run(max_steps=1_000)
    cohort, job = CohortSpec("tiny", name, f"{name}-mnist-1L-T5", (run,)), Job(run, name, Path("nowhere"), None)
    return Standing(cohort, TRAIN, jobs=(job,), steps=(steps,), training_left=left, evaluation_left=0.0)


def task(item: Standing) -> Task:
    return Task(item, 0, None, CORE, False)


def test_a_line_says_where_a_unit_is_and_what_it_does() -> None:
    running = task(unit("a"))
    assert line("a", running, None) == "a: waits for a node with 0 GPU, 1 CPU, 1.0 GiB"
    assert line("a", running, TaskReport("n1", 250, 25.0)) == "a: 250 of 1,000 updates, 25/s, 0:30 left (on n1)"
    assert line("a", running, TaskReport("n1", 250, None)) == "a: 250 of 1,000 updates, not timed yet (on n1)"
    assert line("a", running, TaskReport("n1", 250, None, "evaluating")) == "a: evaluating (on n1)"


def test_the_whole_takes_what_is_running_and_what_waits() -> None:
    running = {A: task(unit("a"))}
    reports = {A: TaskReport("n1", 500, 10.0)}
    # 500 updates at 10 a second; then, on the one device, another unit that takes 100 s.
    assert time_left(running, reports, [], 1, False) == 50
    assert time_left(running, reports, [unit("b", 100.0)], 1, False) == 150
    assert time_left(running, reports, [unit("b", 100.0)], 2, False) == 100
    assert time_left({}, {}, [unit("b")], 1, False) is None
    told = lines(running, reports, [unit("b", 100.0)], 3, 5, 1, False)
    assert told[-1] == "total: 3 runs of 5 done, 1 running, 1 to come, about 2:30 left"


def test_of_many_tasks_the_first_are_told_of() -> None:
    running = {f"u{i}": task(unit(f"u{i}")) for i in range(14)}
    told = lines(running, {}, [], 0, 14, 4, False)
    assert len(told) == 14
    assert told[-2:] == ["and 2 more", "total: 0 runs of 14 done, 14 running, 0 to come, not timed yet"]


def test_a_unit_is_given_up_after_three_losses_at_one_place() -> None:
    losses = Losses()
    assert [losses.too_many("a", steps) for steps in (0, 0, 40, 40, 40)] == [False, False, False, False, True]
    assert not losses.too_many("b", 40)


def test_the_cluster_is_described_before_it_works() -> None:
    nodes = [Node("n1", 2, 0), Node("n2", 4, 0)]
    assert devices_of(nodes, False) == 6
    assert devices_of(nodes, True) == 1
    waiting = [unit("a", 7200.0), unit("b", 3600.0)]
    told = describe_cluster(nodes, waiting, dict.fromkeys((A, B), CORE), False).splitlines()
    assert told[:2] == ["node n1: 2 CPUs", "node n2: 4 CPUs"]
    assert told[2] == f"{A}: {CORE}, 2.00 h (measured)"
    assert told[-1].startswith("on 6 cores, a run each: 2:00:00; decided by ")
