"""What a person sees of the work on a cluster: where each unit stands, how long the whole takes, what was lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.launch.cluster_nodes import Node, Resources
from pipeline.launch.cluster_task import TaskReport
from pipeline.launch.placement import chain, estimates, simulate, tails, works
from pipeline.launch.plan import RUNNABLE, WAITS, Standing, unit_name
from pipeline.work.console import clock, counted

MOST_LOSSES = 3
"""A unit whose worker was lost so often without a new checkpoint between is given up."""
MOST_LINES = 12
"""Tasks that are told of one by one."""


@dataclass(frozen=True)
class Task:
    """A unit that Ray works on."""

    item: Standing
    depth: int
    """Number of the driver's depth that it goes to."""
    reference: Any
    resources: Resources
    alone: bool


@dataclass
class Losses:
    """How often the workers of units were lost at the same place."""

    counts: Counter[str] = field(default_factory=Counter)
    """By unit, as below."""
    steps: dict[str, int] = field(default_factory=dict)
    """Updates that had come home when its worker was lost last."""

    def too_many(self, name: str, steps: int) -> bool:
        """Count a loss after so many updates; whether the unit is to be given up."""
        self.counts[name] = self.counts[name] + 1 if steps <= self.steps.get(name, -1) else 1
        self.steps[name] = steps
        return self.counts[name] >= MOST_LOSSES


def devices_of(nodes: Sequence[Node], on_gpu: bool) -> int:
    """How many units train at once where each has a device."""
    return max(1, int(sum(node.gpus if on_gpu else node.cpus for node in nodes)))


def lines(
    tasks: Mapping[str, Task],
    reports: Mapping[str, TaskReport],
    waiting: Sequence[Standing],
    done: int,
    units: int,
    devices: int,
    on_gpu: bool,
) -> list[str]:
    """Where each running unit stands, and the whole.

    `tasks`, `reports`: by unit. `waiting`: units that no task has. `done`: how many of all `units` are.
    """
    each = [line(name, task, reports.get(name)) for name, task in tasks.items()]
    if len(each) > MOST_LINES:
        each = [*each[:MOST_LINES], f"and {len(each) - MOST_LINES} more"]
    counts = f"{counted(done, 'cohort' if on_gpu else 'run')} of {units} done, {len(tasks)} running"
    whole = time_left(tasks, reports, waiting, devices, on_gpu)
    left = "not timed yet" if whole is None else f"about {clock(whole)} left"
    return [*each, f"total: {counts}, {len(waiting)} to come, {left}"]


def line(name: str, task: Task, report: TaskReport | None) -> str:
    """Where one running unit stands. `report`: the last that its task sent home."""
    if report is None:
        return f"{name}: waits for a node with {task.resources}"
    if report.doing:
        return f"{name}: {report.doing} (on {report.node})"
    total = task.item.total_steps
    # A run that was finished before says nothing of itself.
    before = sum(job.spec.total_steps for job in task.item.jobs if job.is_finished)
    steps = min(total, before + report.steps)
    left = f"{report.rate:,.0f}/s, {clock((total - steps) / report.rate)} left" if report.rate else "not timed yet"
    return f"{name}: {steps:,} of {total:,} updates, {left} (on {report.node})"


def time_left(
    tasks: Mapping[str, Task],
    reports: Mapping[str, TaskReport],
    waiting: Sequence[Standing],
    devices: int,
    on_gpu: bool,
) -> float | None:
    """Seconds until all is done, at the speeds of those that run and those in the store; None without any."""
    plan, shares = list(waiting), {}
    for name, task in tasks.items():
        item, report = task.item, reports.get(name)
        to_train = item.total_steps - sum(item.steps)
        if report is not None and report.rate and to_train:
            item = replace(item, training_left=to_train / report.rate)
            unfinished = sum(step for step, job in zip(item.steps, item.jobs, strict=True) if not job.is_finished)
            shares[name] = max(0.0, 1 - (report.steps - unfinished) / to_train)
        plan.append(item)
    seconds = estimates(plan, on_gpu)
    if not any(estimate.measured for estimate in seconds.values()):
        return None
    for name, share in shares.items():
        seconds[name] = replace(seconds[name], seconds=seconds[name].seconds * share)
    return simulate(works(plan, seconds, on_gpu), devices).seconds


def describe_cluster(
    nodes: Sequence[Node], waiting: Sequence[Standing], resources: Mapping[str, Resources], on_gpu: bool
) -> str:
    """The devices, what each unit gets of them, and how long all takes.

    `waiting`: the units that are to be worked on. `resources`: theirs, by unit.
    """
    told = [
        f"node {node.name}: {node.cpus:g} CPUs" + (f", {node.gpus:g} x {node.gpu}" if node.gpus else "")
        for node in nodes
    ]
    items = {unit_name(item.cohort, on_gpu): item for item in waiting if item.need in (*RUNNABLE, WAITS)}
    plan = list(items.values())
    seconds = estimates(plan, on_gpu)
    work = {entry.key: entry for entry in works(plan, seconds, on_gpu)}
    tail = tails(list(work.values()))
    measured = any(estimate.measured for estimate in seconds.values())
    for name in sorted(items, key=lambda name: -tail[name]):
        estimate = seconds[name]
        how = "measured" if estimate.measured else "by its number of samples"
        hours = f"{estimate.seconds / 3600:.2f} h ({how})" if measured else "not timed yet"
        after = f", after {work[name].after}" if items[name].need == WAITS else ""
        told.append(f"{name}: {resources[name]}, {hours}{after}")
    if items and measured:
        devices = devices_of(nodes, on_gpu)
        whole = simulate(list(work.values()), devices)
        device, unit = ("GPU", "cohort") if on_gpu else ("core", "run")
        where = f"on {counted(devices, device)}, a {unit} each"
        told.append(f"{where}: {clock(whole.seconds)}; decided by {chain(whole.critical)}")
    return "\n".join(told)
