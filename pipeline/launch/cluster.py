"""The unfinished work of a scale as tasks on a Ray cluster: many cores or GPUs, many machines, one store
(docs/scale-out.md).

    driver       in the project's folder, on a node of the cluster: plans, places, retries, writes results
    home         an actor beside it, the one writer of the store: takes what tasks send
    task         a unit in a folder of its own, on any node: trains and evaluates as the launcher does

A unit is what a device takes at once: a single run on a core, a cohort's stacks on a GPU. A task gets its unit, the
data and the state that the store holds through Ray's object store, and sends home each waypoint, evaluation and
checkpoint as the verified archives of `pipeline.launch.archive`. No path is shared, and nothing is taken twice: a run's
digest names its result, and home keeps the state that is further.

Workers need torch, numpy, safetensors and Ray.
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec
from pipeline.launch.archive import carried_jobs, write_archive
from pipeline.launch.cluster_nodes import Node, Resources, connected, nodes_of, pinned
from pipeline.launch.cluster_progress import MOST_LOSSES, Losses, Task, describe_cluster, devices_of, lines
from pipeline.launch.cluster_task import (
    COPIES,
    DONE_HERE,
    FAILED,
    OUT_OF_MEMORY,
    STOPPED,
    Home,
    Order,
    TaskReport,
    measure_task,
    project_version,
    readers_in,
    unit_task,
)
from pipeline.launch.launcher import Project, cut, describe, end, record_cohort, say
from pipeline.launch.measure import keep, kept, time_kinds
from pipeline.launch.placement import cohorts_a_gpu, estimates, tails, works
from pipeline.launch.plan import (
    AT_END,
    BLOCKED,
    RECORDED,
    RUNNABLE,
    TRAIN,
    WAITS,
    Standing,
    shape_of,
    single_runs,
    standing,
    unit_name,
)
from pipeline.records.facts import Origin
from pipeline.records.provenance import LAUNCHER, origin
from pipeline.records.run_folder import Job
from pipeline.records.store import Busy, cohort_lock, continued_run
from pipeline.training.train import run_lock
from pipeline.work import interruption
from pipeline.work.cohort import diverged
from pipeline.work.console import LINE_SECONDS, counted

WAITING_TASKS = 4
"""Tasks that Ray holds and no node has begun: few, so that the longest unit left is always next."""
RUN_BYTES = 2**30
"""More than the process of a single run takes on a core, torch included."""
STOP_SECONDS = 60.0
CLUSTER_POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0


def _data(folder: Path) -> bytes:
    """A binarized dataset as the bytes of a tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return stream.getvalue()


def _with_sources(unit: CohortSpec, cohorts: Mapping[str, CohortSpec]) -> list[CohortSpec]:
    """A unit and the runs that its runs continue, and so on, each alone in its cohort."""
    units, runs = [unit], list(unit.runs)
    while runs:
        source = continued_run(runs.pop(), cohorts)
        if source is not None:
            units.append(replace(source[0], runs=(source[1],)))
            runs.append(source[1])
    return units


@dataclass
class Driver:
    """One call of `run`."""

    project: Project
    """Its chosen cohorts are units, at the depths of their scale."""
    depths: list[Project]
    """The same, cut to what all are taken to first, to next, ..., and last in whole."""
    ray: Any
    nodes: list[Node]
    facts: Origin
    home: Any = None
    locks: ExitStack = field(default_factory=ExitStack)
    locked: set[str] = field(default_factory=set)
    """Cohorts that this driver keeps to itself until it ends."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """By unit, as all below."""
    reached: set[tuple[int, str]] = field(default_factory=set)
    """Depths and units that are done."""
    failed: dict[str, str] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    """Units that ran out of memory and get a device of their own."""
    losses: Losses = field(default_factory=Losses)
    recorded: dict[str, int] = field(default_factory=dict)
    """Evaluations that had come home when the cohort's results were written last."""
    objects: dict[str, Any] = field(default_factory=dict)
    """References to what was put into Ray's object store once."""

    @property
    def on_gpu(self) -> bool:
        return self.project.machine.device.type == "cuda"

    def name(self, unit: CohortSpec) -> str:
        return unit_name(unit, self.on_gpu)

    def put_once(self, name: str, content: Any) -> Any:
        if name not in self.objects:
            self.objects[name] = self.ray.put(content)
        return self.objects[name]

    def dataset(self, name: str) -> Any:
        return self.objects.get(name) or self.put_once(name, _data(self.project.paths.binarized(name)))

    def order(self, unit: CohortSpec) -> Order:
        machine = self.project.machine
        return Order(
            name=self.name(unit),
            unit=unit,
            evaluation=self.project.evaluations[unit.key],
            device=machine.device.type,
            checkpoint_seconds=machine.checkpoint_seconds,
            engine=machine.engine,
            facts=self.facts,
            version=project_version(),
        )

    def resources(self, unit: CohortSpec) -> Resources:
        """What its task takes; one that ran out of memory gets a whole device, or the cores of a whole node."""
        alone = self.name(unit) in self.alone
        if not self.on_gpu:
            return Resources(0, max(node.cpus for node in self.nodes) if alone else 1, RUN_BYTES)
        speeds = kept(self.project.store, self.project.machine, shape_of(unit, len(unit.runs)), COPIES)
        share = 1.0
        if not alone and speeds is not None:
            smallest = min(node.gpu_bytes for node in self.nodes if node.gpus)
            share = 1 / cohorts_a_gpu({1: 1.0, **speeds.together}, speeds.peak_bytes, smallest)
        return Resources(share, 1, 0)

    def standing(self, unit: CohortSpec) -> Standing:
        project = self.project
        try:
            spec = project.evaluations[unit.key]
            return standing(
                unit, project.cohorts, spec, project.store, project.machine, project.again, project.marks, project.paths
            )
        except UserError as error:
            return Standing(unit, BLOCKED, str(error))

    def open(self, depth: int = -1) -> list[Standing]:
        """Where the units stand that no task has, that have not failed and are not as deep as this; -1: in whole."""
        depth %= len(self.depths)
        waiting = []
        for unit in self.depths[depth].chosen:
            name = self.name(unit)
            if name not in self.tasks and name not in self.failed and (depth, name) not in self.reached:
                waiting.append(self.standing(unit))
        self.reached |= {(depth, self.name(item.cohort)) for item in waiting if item.need in AT_END}
        return [item for item in waiting if item.need not in AT_END]

    def measure(self) -> None:
        """Time what was not timed: kinds of runs on a core of this machine, or shapes of stacks on a GPU where sharing
        GPUs could end the work sooner."""
        items = [item for item in self.open() if item.need in (*RUNNABLE, WAITS)]
        project = self.project
        if not self.on_gpu:
            every = [job for item in items for job in item.jobs]
            time_kinds([job for job in every if not job.is_finished], every, project.store, project.paths)
            return
        if len(items) <= sum(node.gpus for node in self.nodes):
            return
        shapes = {shape_of(item.cohort, len(item.cohort.runs)): item.cohort for item in items}
        missing = [
            unit
            for shape, unit in shapes.items()
            if not (s := kept(project.store, project.machine, shape, COPIES)) or not s.together
        ]
        say(f"measuring {counted(len(missing), 'shape')} of stacks: alone, and {COPIES} at once on a GPU")
        timing = self.ray.remote(measure_task).options(num_gpus=1, num_cpus=1)
        asked = {unit.key: timing.remote(self.order(unit), self.dataset(unit.dataset)) for unit in missing}
        for key, reference in asked.items():
            try:
                keep(project.store, project.machine, self.ray.get(reference))
            except (UserError, self.ray.exceptions.RayError) as error:
                say(f"warning: {key}: not measured, so it gets a GPU of its own ({error})", file=sys.stderr)

    def keep_to_itself(self, unit: CohortSpec, jobs: Sequence[Job]) -> None:
        """Keep DVC stages and other drivers from the cohort, and see that no launcher trains one of its runs.

        Raises: Busy naming the process that works on them.
        """
        if unit.key not in self.locked:
            self.locks.enter_context(cohort_lock(self.project.store, unit.key, 0.0))
            self.locked.add(unit.key)
        for job in jobs:
            # Home takes this lock whenever an archive arrives, so the driver cannot hold it.
            with run_lock(job, 0.0):
                pass

    def submit(self, item: Standing, depth: int) -> None:
        """Raises: Busy when another process works on the unit; UserError when its files cannot be read."""
        unit, store = item.cohort, self.project.store
        name = self.name(unit)
        self.keep_to_itself(unit, item.jobs)
        jobs: dict[str, Any] = {}
        for source in _with_sources(unit, self.project.cohorts):
            jobs |= carried_jobs(source, self.project.cohorts, store, self.project.marks, self.project.paths)
        stream = io.BytesIO()
        write_archive(stream, jobs, store, self.facts["git_revision"])
        resources = self.resources(unit)
        task = self.ray.remote(unit_task).options(max_retries=0, name=name, **resources.options())
        cohorts = self.put_once("cohorts", self.project.cohorts)
        self.ray.get(self.home.forget.remote(name))
        seed, data = stream.getvalue(), self.dataset(unit.dataset)
        reference = task.remote(self.order(unit), cohorts, seed, readers_in(store), data, self.home)
        self.tasks[name] = Task(item, depth, reference, resources, name in self.alone)

    def end(self, name: str) -> None:
        """Take note of how a task ended: done, to be run again, or failed."""
        task = self.tasks.pop(name)
        errors = self.ray.exceptions
        try:
            how, what = self.ray.get(task.reference)
        except errors.OutOfMemoryError:
            how, what = OUT_OF_MEMORY, "Ray ended it since its node ran out of memory"
        except errors.RayTaskError as error:
            how, what = FAILED, str(error)
        except errors.TaskCancelledError:
            how, what = STOPPED, ""
        except errors.RayError as error:
            how, what = STOPPED, f"{type(error).__name__}: its worker or node was lost"
        if how == DONE_HERE:
            how, what = self.finish(task)
        if how == OUT_OF_MEMORY and not task.alone:
            self.alone.add(name)
            say(f"{name}: out of memory; it goes on alone on a device from its last checkpoint", file=sys.stderr)
        elif how == STOPPED and not interruption.stop_requested():
            self.lost(name, task.item.cohort, what or "its worker was asked to stop")
        elif how in (FAILED, OUT_OF_MEMORY):
            self.fail(name, what)

    def fail(self, name: str, what: str) -> None:
        self.failed[name] = what
        say(f"error: {name}: {what}", file=sys.stderr)

    def finish(self, task: Task) -> tuple[str, str]:
        """Write the results of a unit that came home."""
        unit, store = task.item.cohort, self.project.store
        item = self.standing(unit)
        if not item.jobs or item.evaluated < len(item.jobs):
            return FAILED, f"its task ended, but {store} has not all of it; run again"
        for line in diverged(unit, list(item.jobs)):
            say(f"warning: {line}", file=sys.stderr)
        self.reached.add((task.depth, self.name(unit)))
        say(f"{self.name(unit)}: done -> {record_cohort(self.project, unit.key)}")
        return DONE_HERE, ""

    def record_news(self) -> None:
        """Write the results of running cohorts of which evaluations of waypoints came home."""
        for key in {task.item.cohort.key for task in self.tasks.values()}:
            jobs = self.project.jobs(self.project.cohorts[key])
            count = sum(len(list(job.folder.glob("evaluation-*.npz"))) for job in jobs)
            if count > self.recorded.get(key, 0):
                record_cohort(self.project, key)
                self.recorded[key] = count

    def lost(self, name: str, unit: CohortSpec, what: str) -> None:
        """Let a unit go on from what came home, unless it was lost time after time at the same place."""
        done = sum(job.steps_done for job in self.project.jobs(unit))
        share = 100 * done / sum(run.total_steps for run in unit.runs)
        if self.losses.too_many(name, done):
            self.fail(name, f"{what}, {MOST_LOSSES} times at {share:.1f} %; given up")
        else:
            say(f"{name}: {what}; it goes on from the {share:.1f} % that came home", file=sys.stderr)

    def place(self) -> None:
        """Give Ray the units that come next: those of the first depth first, the longest chain of work first."""
        begun = self.ray.get(self.home.reports.remote())
        room = WAITING_TASKS - sum(name not in begun for name in self.tasks)
        for depth in range(len(self.depths)):
            if room <= 0:
                return
            waiting = self.open(depth)
            tail = tails(works(waiting, estimates(waiting, self.on_gpu), self.on_gpu))
            ready = [item for item in waiting if item.need in RUNNABLE]
            for item in sorted(ready, key=lambda item: -tail[self.name(item.cohort)])[:room]:
                room -= self.placed(item, depth)

    def placed(self, item: Standing, depth: int) -> bool:
        """Whether the unit became a task; what has only results to be written is finished here."""
        name = self.name(item.cohort)
        try:
            if item.need != TRAIN and item.evaluated == len(item.jobs):
                self.keep_to_itself(item.cohort, item.jobs)
                self.finish(Task(item, depth, None, Resources(0, 0, 0), False))
                return False
            self.submit(item, depth)
            return True
        except Busy as busy:
            say(busy)
            self.failed[name] = "another process works on it"
        except UserError as error:
            self.fail(name, str(error))
        return False

    def unblocked(self) -> bool:
        """Place once more: a last archive of a lost worker may have been on its way into the store a moment ago."""
        time.sleep(CLUSTER_POLL_SECONDS)
        self.place()
        return bool(self.tasks)

    def lines(self) -> list[str]:
        """Where each running unit stands, and the whole."""
        waiting = [item for item in self.open() if item.need in (*RUNNABLE, WAITS)]
        done = sum(depth == len(self.depths) - 1 for depth, _ in self.reached)
        reports: dict[str, TaskReport] = self.ray.get(self.home.reports.remote())
        units, devices = len(self.project.chosen), devices_of(self.nodes, self.on_gpu)
        return lines(self.tasks, reports, waiting, done, units, devices, self.on_gpu)

    def work(self) -> None:
        """Until everything is done or failed, or a stop is asked for."""
        here = self.ray.get_runtime_context().get_node_id()
        actor = self.ray.remote(Home).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=pinned(here)
        )
        self.home = actor.remote(self.project.store.resolve())
        self.measure()
        with self.locks:
            self.place()
            told = looked = time.monotonic()
            while (self.tasks or self.unblocked()) and not interruption.stop_requested():
                by_reference = {task.reference: name for name, task in self.tasks.items()}
                ready, _ = self.ray.wait(list(by_reference), timeout=CLUSTER_POLL_SECONDS)
                for reference in ready:
                    self.end(by_reference[reference])
                now = time.monotonic()
                if ready or now - looked > LOOK_SECONDS:
                    self.place()
                    looked = now
                if now - told > LINE_SECONDS:
                    say("\n".join(self.lines()))
                    self.record_news()
                    told = now
            self.stop()

    def stop(self) -> None:
        """Let the tasks that still run send what they have home."""
        for task in self.tasks.values():
            self.ray.cancel(task.reference)
        until = time.monotonic() + STOP_SECONDS
        self.record_news()
        while self.tasks and time.monotonic() < until:
            by_reference = {task.reference: name for name, task in self.tasks.items()}
            for reference in self.ray.wait(list(by_reference), timeout=CLUSTER_POLL_SECONDS)[0]:
                self.end(by_reference[reference])


def run(
    project: Project,
    address: str,
    device: str,
    seconds: float | None = None,
    epochs: Sequence[int] = (),
    dry: bool = False,
) -> int:
    """Work on a cluster until everything chosen is done, the time is over, or a signal comes; returns the exit status.

    `device`: `auto` takes GPUs where the cluster has them. `epochs`: so far all is taken first, then so far.

    Raises: UserError when there is no such cluster, or one of its nodes has another version of this project.
    """
    for cohort in project.chosen:
        load_dataset(project.paths.binarized(cohort.dataset))
    with connected(address) as ray:
        interruption.listen()
        gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        if device == "cuda" and not gpus:
            raise UserError(f"--device cuda: the Ray cluster {address} has no GPU")
        use_gpus = device != "cpu" and gpus > 0
        nodes = nodes_of(ray, use_gpus)
        machine = replace(project.machine, device=torch.device("cuda" if use_gpus else "cpu"), workers=1)
        if use_gpus:
            kinds = Counter(node.gpu for node in nodes if node.gpus)
            engine = "" if machine.engine == "auto" else f", {machine.engine}"
            machine = replace(machine, name=kinds.most_common(1)[0][0] + engine)
        project = replace(project, machine=machine)
        standings = zip(project.chosen, project.standings(), strict=True)
        left = tuple(cohort for cohort, item in standings if item.need != RECORDED)
        units = replace(project, chosen=left if use_gpus else single_runs(left))
        driver = Driver(units, [*(cut(units, epoch) for epoch in sorted(epochs)), units], ray, nodes, origin(LAUNCHER))
        if dry:
            say(describe(project.standings(), machine, project.paths))
            waiting = driver.open()
            resources = {driver.name(item.cohort): driver.resources(item.cohort) for item in waiting}
            say(describe_cluster(nodes, waiting, resources, use_gpus))
            return 0
        if seconds is not None:
            interruption.stop_after(max(0.0, seconds - STOP_SECONDS))
        driver.work()
    return end(project, list(driver.failed))
