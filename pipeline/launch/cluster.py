"""The unfinished cohorts of a scale as tasks on a Ray cluster: many GPUs, many machines, one store (docs/scale-out.md).

    driver       in the project's folder, on a node of the cluster: plans, places, retries, writes results
    home         an actor beside it, the one writer of the store: takes what tasks send
    task         a cohort in a folder of its own, on any node: trains and evaluates as the launcher does

A task gets the cohort, its data and its checkpoint through Ray's object store, and sends finished runs, evaluations and
checkpoints home as the verified archives of `pipeline.launch.archive`. No path is shared, and nothing is taken twice:
a run's digest names its result, and home keeps the state that is further.

Workers need torch, numpy, safetensors and Ray.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.cohorts import binarized, results_folder
from pipeline.experiments.spec import CohortSpec
from pipeline.launch.archive import carried_jobs, write_archive
from pipeline.launch.cluster_task import (
    COPIES,
    DONE_HERE,
    FAILED,
    OUT_OF_MEMORY,
    STOPPED,
    Home,
    Order,
    Report,
    cohort_task,
    measure_task,
    need_ray,
    other_version,
    project_version,
    readers_in,
)
from pipeline.launch.launcher import Project, describe, say
from pipeline.launch.measure import keep, kept
from pipeline.launch.placement import chain, cohorts_a_gpu, estimates, simulate, tails, works
from pipeline.launch.plan import AT_END, BLOCKED, RUNNABLE, WAITS, Standing, shape_of, standing
from pipeline.records.provenance import LAUNCHER, origin
from pipeline.records.run_folder import Job
from pipeline.records.store import Busy, cohort_lock, stored_jobs
from pipeline.work import interruption
from pipeline.work.cohort import diverged, write_standing
from pipeline.work.console import LINE_SECONDS, clock, counted

LOCAL = "local"
LOOPBACK = "127.0.0.1"
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own; 0 keeps all of Ray to the loopback address, as it does by default on those systems."""
WAITING_TASKS = 4
"""Tasks that Ray holds and no node has begun: few, so that the longest cohort left is always next."""
MOST_LOSSES = 3
"""A cohort whose worker was lost so often without a new checkpoint between is given up."""
STOP_SECONDS = 60.0
POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Resources:
    """What a task asks Ray for."""

    gpus: float
    cpus: float
    memory: int
    """Bytes."""

    def options(self) -> dict[str, float]:
        return {"num_gpus": self.gpus, "num_cpus": self.cpus, "memory": self.memory}

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{self.gpus:.3g} GPU, {self.cpus:g} CPU{memory}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    name: str
    cpus: float
    gpus: float
    gpu: str = ""
    """torch's name of it."""
    gpu_bytes: int = 0


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """A connection to the Ray cluster at `address`, or a cluster of this machine alone on loopback.

    Raises: UserError when there is none.
    """
    if address.startswith("ray://"):
        raise UserError("--ray: this is Ray's client; run the command on a node of the cluster, with --ray auto")
    check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address.partition(":")[0] in (LOCAL, LOOPBACK, "localhost"):
        # Read as Ray is imported; without it Ray takes the machine's outward address for the loopback one.
        os.environ.setdefault(LOOPBACK_VARIABLE, "0")
    ray = need_ray()
    shared = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == LOCAL:
            gpus = torch.cuda.device_count()
            ray.init(include_dashboard=False, _node_ip_address=LOOPBACK, num_gpus=gpus, address=LOCAL, **shared)
        else:
            ray.init(address=address, **shared)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no Ray cluster there ({error}); see docs/scale-out.md") from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"--ray {address}: the cluster was lost ({type(error).__name__}: {told}); what came home is in the store:"
            " start the cluster again, then run the same command"
        ) from error
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Raises: UserError at once where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    if not port.isdecimal():
        raise UserError(f"--ray {address}: {port!r} is no port; give auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray {address}: nobody answers there ({error}); start the cluster (`ray start --head --port={port}`),"
            " or see docs/scale-out.md"
        ) from error


def _pinned(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _nodes(ray: Any, use_gpus: bool) -> list[Node]:
    """The cluster's nodes, each asked what it has.

    Raises: UserError naming every node with another version of this project, or without it.
    """

    def probe() -> tuple[str, str, int]:
        # By value: it must run where the project is missing.
        try:
            import torch

            from pipeline.launch.cluster_task import project_version

            if not torch.cuda.is_available():
                return project_version(), "", 0
            return project_version(), torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        except ImportError as error:
            return f"none: {error}", "", 0

    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = []
    for node in alive:
        own = 0.01 if use_gpus and node["Resources"].get("GPU") else 0
        placed = {"num_cpus": 0, "num_gpus": own, "scheduling_strategy": _pinned(node["NodeID"])}
        asked.append(ray.remote(probe).options(**placed).remote())
    found, odd = [], []
    for node, (version, gpu, gpu_bytes) in zip(alive, ray.get(asked), strict=True):
        name, resources = node["NodeManagerHostname"], node["Resources"]
        if version != project_version():
            odd.append(other_version(name, version, project_version()))
        found.append(Node(name, resources.get("CPU", 0), resources.get("GPU", 0), gpu, gpu_bytes))
    if odd:
        raise UserError("\n".join(odd))
    return found


def _data(folder: Path) -> bytes:
    """A binarized dataset as the bytes of a tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return stream.getvalue()


def _chain(cohort: CohortSpec, cohorts: Mapping[str, CohortSpec]) -> dict[str, CohortSpec]:
    """A cohort and those that it continues, by key."""
    found = {cohort.key: cohort}
    while (key := cohort.continues) is not None:
        cohort = found[key] = cohorts[key]
    return found


@dataclass
class Task:
    """A cohort that Ray works on."""

    item: Standing
    reference: Any
    locks: ExitStack
    resources: Resources
    alone: bool


@dataclass
class Driver:
    """One call of `run`."""

    project: Project
    ray: Any
    nodes: list[Node]
    facts: dict[str, Any]
    workers: int
    home: Any = None
    tasks: dict[str, Task] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """By cohort: what went wrong, or nothing."""
    alone: set[str] = field(default_factory=set)
    """Cohorts that ran out of memory and get a device of their own."""
    losses: Counter[str] = field(default_factory=Counter)
    reached: dict[str, int] = field(default_factory=dict)
    """Updates that a cohort had on disk when its worker was lost last."""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.project.machine.device.type == "cuda"

    def order(self, cohort: CohortSpec) -> Order:
        machine = self.project.machine
        return Order(
            cohort=cohort,
            sources=_chain(cohort, self.project.cohorts),
            evaluation=self.project.evaluations[cohort.key],
            device=machine.device.type,
            workers=self.workers,
            checkpoint_seconds=machine.checkpoint_seconds,
            engine=machine.engine,
            facts=self.facts,
            version=project_version(),
        )

    def dataset(self, name: str) -> Any:
        """A reference to a dataset in Ray's object store, put there once."""
        if name not in self.data:
            self.data[name] = self.ray.put(_data(binarized(name)))
        return self.data[name]

    def resources(self, cohort: CohortSpec) -> Resources:
        """What its task takes; a cohort that ran out of memory gets a whole device."""
        speeds = kept(self.project.store, self.project.machine, shape_of(cohort, len(cohort.runs)), COPIES)
        memory = 0 if speeds is None or self.on_gpu else speeds.peak_bytes * self.workers
        if not self.on_gpu:
            most = max(node.cpus for node in self.nodes)
            return Resources(0, most if cohort.key in self.alone else min(self.workers, most), memory)
        share = 1.0
        if cohort.key not in self.alone and speeds is not None:
            smallest = min(node.gpu_bytes for node in self.nodes if node.gpus)
            share = 1 / cohorts_a_gpu({1: 1.0, **speeds.together}, speeds.peak_bytes, smallest)
        return Resources(share, 1, 0)

    def standing(self, cohort: CohortSpec) -> Standing:
        own = self.project
        try:
            return standing(cohort, own.cohorts, own.evaluations[cohort.key], own.store, own.machine, own.again)
        except UserError as error:
            return Standing(cohort, BLOCKED, str(error))

    def open(self) -> list[Standing]:
        """Where the cohorts stand that no task has and that have not failed."""
        waiting = [c for c in self.project.chosen if c.key not in self.tasks and c.key not in self.ended]
        return [item for item in map(self.standing, waiting) if item.need not in AT_END]

    def measure(self) -> None:
        """Time each shape that was not timed on this kind of GPU, where sharing GPUs could end the work sooner."""
        items = [item for item in self.open() if item.need in (*RUNNABLE, WAITS)]
        if not self.on_gpu or len(items) <= sum(node.gpus for node in self.nodes):
            return
        shapes = {shape_of(item.cohort, len(item.cohort.runs)): item.cohort for item in items}
        own = self.project
        missing = [
            cohort
            for shape, cohort in shapes.items()
            if not (s := kept(own.store, own.machine, shape, COPIES)) or not s.together
        ]
        say(f"measuring {counted(len(missing), 'shape')} of stacks: alone, and {COPIES} at once on a GPU")
        timing = self.ray.remote(measure_task).options(num_gpus=1, num_cpus=1)
        asked = {c.key: timing.remote(self.order(c), self.dataset(c.dataset)) for c in missing}
        for key, reference in asked.items():
            try:
                keep(own.store, own.machine, self.ray.get(reference))
            except (UserError, self.ray.exceptions.RayError) as error:
                say(f"warning: {key}: not measured, so it gets a GPU of its own ({error})", file=sys.stderr)

    def submit(self, item: Standing) -> None:
        """Raises: Busy when another process has the cohort; UserError when its files cannot be read."""
        cohort, store = item.cohort, self.project.store
        with ExitStack() as locks:
            locks.enter_context(cohort_lock(store, cohort.key, 0.0))
            jobs: dict[str, Any] = {}
            for source in _chain(cohort, self.project.cohorts).values():
                jobs |= carried_jobs(source, self.project.cohorts, store)
            stream = io.BytesIO()
            write_archive(stream, jobs, store)
            resources = self.resources(cohort)
            task = self.ray.remote(cohort_task).options(max_retries=0, name=cohort.key, **resources.options())
            data = self.dataset(cohort.dataset)
            self.ray.get(self.home.forget.remote(cohort.key))
            reference = task.remote(self.order(cohort), stream.getvalue(), readers_in(store), data, self.home)
            self.tasks[cohort.key] = Task(item, reference, locks.pop_all(), resources, cohort.key in self.alone)

    def jobs(self, cohort: CohortSpec) -> list[Job]:
        digest = load_dataset(binarized(cohort.dataset)).digest
        return stored_jobs(cohort, self.project.cohorts, digest, self.project.store, self.project.machine.device.type)

    def end(self, key: str) -> None:
        """Take note of how a task ended: done, to be run again, or failed."""
        task = self.tasks.pop(key)
        cohort, errors = task.item.cohort, self.ray.exceptions
        with task.locks:
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
                how, what = self.record(cohort)
            if how == DONE_HERE:
                self.ended[key] = ""
            elif how == OUT_OF_MEMORY and not task.alone:
                self.alone.add(key)
                say(f"{key}: out of memory; it goes on alone on a device from its last checkpoint", file=sys.stderr)
            elif how == STOPPED and not interruption.stop_requested():
                self.lost(cohort, what or "its worker was asked to stop")
            elif how != STOPPED:
                self.ended[key] = what
                say(f"error: {key}: {what}", file=sys.stderr)

    def record(self, cohort: CohortSpec) -> tuple[str, str]:
        """Write the results of a cohort that came home."""
        own = self.project
        item = self.standing(cohort)
        if not item.jobs or item.evaluated < len(item.jobs):
            return FAILED, f"its task ended, but {own.store} has not all of it; run again"
        for line in diverged(cohort, list(item.jobs)):
            say(f"warning: {line}", file=sys.stderr)
        spec = own.evaluations[cohort.key]
        write_standing(cohort, item.jobs, own.store, spec)
        say(f"{cohort.key}: done -> {results_folder(cohort.key)}")
        return DONE_HERE, ""

    def lost(self, cohort: CohortSpec, what: str) -> None:
        """Let a cohort go on from what came home, unless it was lost time after time at the same place."""
        done = sum(job.steps_done for job in self.jobs(cohort))
        self.losses[cohort.key] = self.losses[cohort.key] + 1 if done <= self.reached.get(cohort.key, -1) else 1
        self.reached[cohort.key] = done
        share = 100 * done / sum(run.total_steps for run in cohort.runs)
        if self.losses[cohort.key] < MOST_LOSSES:
            say(f"{cohort.key}: {what}; it goes on from the {share:.1f} % that came home", file=sys.stderr)
            return
        self.ended[cohort.key] = f"{what}, {MOST_LOSSES} times at {share:.1f} %"
        say(f"error: {cohort.key}: {self.ended[cohort.key]}; given up", file=sys.stderr)

    def place(self) -> None:
        """Give Ray the cohorts that come next, the longest chain of work first."""
        waiting = self.open()
        begun = self.ray.get(self.home.reports.remote())
        room = WAITING_TASKS - sum(key not in begun for key in self.tasks)
        seconds = estimates(waiting, self.on_gpu)
        tail = tails(works(waiting, seconds))
        ready = [item for item in waiting if item.need in RUNNABLE]
        for item in sorted(ready, key=lambda item: -tail[item.cohort.key])[: max(0, room)]:
            try:
                self.submit(item)
            except Busy as busy:
                say(busy)
                self.ended[item.cohort.key] = "another process works on it"
            except UserError as error:
                say(f"error: {item.cohort.key}: {error}", file=sys.stderr)
                self.ended[item.cohort.key] = str(error)

    def unblocked(self) -> bool:
        """Place once more: a last archive of a lost worker may have been on its way into the store a moment ago."""
        time.sleep(POLL_SECONDS)
        self.place()
        return bool(self.tasks)

    def lines(self) -> list[str]:
        """Where each running cohort stands, and the whole."""
        reports: dict[str, Report] = self.ray.get(self.home.reports.remote())
        lines = []
        for key, task in self.tasks.items():
            total, report = task.item.total_steps, reports.get(key)
            if report is None:
                lines.append(f"{key}: waits for a node with {task.resources}")
                continue
            # A run that was finished before says nothing of itself.
            before = sum(job.spec.total_steps for job in task.item.jobs if job.is_finished)
            steps = min(total, before + report.steps)
            left = (
                f"{report.rate:,.0f}/s, {clock((total - steps) / report.rate)} left" if report.rate else "not timed yet"
            )
            if steps == total:
                done = task.item.evaluated + report.evaluated
                left = f"{done} of {len(task.item.cohort.runs)} runs evaluated"
            lines.append(f"{key}: {steps:,} of {total:,} updates, {left} (on {report.node})")
        waiting = [item for item in self.open() if item.need in (*RUNNABLE, WAITS)]
        done = sum(self.ended.get(cohort.key) == "" for cohort in self.project.chosen)
        counts = f"{counted(done, 'cohort')} done in this call, {len(self.tasks)} running, {len(waiting)} to come"
        whole = self.time_left(waiting, reports)
        lines.append(f"total: {counts}, {'not timed yet' if whole is None else f'about {clock(whole)} left'}")
        return lines

    def time_left(self, waiting: list[Standing], reports: Mapping[str, Report]) -> float | None:
        """Seconds until all is done, at the speeds of those that run and those in the store; None without any."""
        plan, shares = list(waiting), {}
        for key, task in self.tasks.items():
            item, report = task.item, reports.get(key)
            to_train = item.total_steps - sum(item.steps)
            if report is not None and report.rate and to_train:
                item = replace(item, training_left=to_train / report.rate)
                unfinished = sum(step for step, job in zip(item.steps, item.jobs, strict=True) if not job.is_finished)
                shares[key] = max(0.0, 1 - (report.steps - unfinished) / to_train)
            plan.append(item)
        seconds = estimates(plan, self.on_gpu)
        if not any(estimate.measured for estimate in seconds.values()):
            return None
        for key, share in shares.items():
            seconds[key] = replace(seconds[key], seconds=seconds[key].seconds * share)
        return simulate(works(plan, seconds), self.devices).seconds

    @property
    def devices(self) -> int:
        """How many cohorts train at once where each has a device."""
        return max(1, int(sum(node.gpus if self.on_gpu else node.cpus // self.workers for node in self.nodes)))

    def work(self) -> None:
        """Until everything is done or failed, or a stop is asked for."""
        here = self.ray.get_runtime_context().get_node_id()
        actor = self.ray.remote(Home).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=_pinned(here)
        )
        self.home = actor.remote(self.project.store.resolve())
        self.measure()
        self.place()
        told = looked = time.monotonic()
        while (self.tasks or self.unblocked()) and not interruption.stop_requested():
            by_reference = {task.reference: key for key, task in self.tasks.items()}
            ready, _ = self.ray.wait(list(by_reference), timeout=POLL_SECONDS)
            for reference in ready:
                self.end(by_reference[reference])
            now = time.monotonic()
            if ready or now - looked > 10 * POLL_SECONDS:
                self.place()
                looked = now
            if now - told > LINE_SECONDS:
                say("\n".join(self.lines()))
                told = now
        self.stop()

    def stop(self) -> None:
        """Let the tasks that still run send their checkpoints home."""
        for task in self.tasks.values():
            self.ray.cancel(task.reference)
        until = time.monotonic() + STOP_SECONDS
        while self.tasks and time.monotonic() < until:
            by_reference = {task.reference: key for key, task in self.tasks.items()}
            for reference in self.ray.wait(list(by_reference), timeout=POLL_SECONDS)[0]:
                self.end(by_reference[reference])
        for task in self.tasks.values():
            task.locks.close()


def describe_cluster(driver: Driver) -> str:
    """The devices, what each cohort gets of them, and how long all takes."""
    lines = [
        f"node {node.name}: {node.cpus:g} CPUs" + (f", {node.gpus:g} x {node.gpu}" if node.gpus else "")
        for node in driver.nodes
    ]
    items = [item for item in driver.open() if item.need in (*RUNNABLE, WAITS)]
    seconds = estimates(items, driver.on_gpu)
    tail = tails(works(items, seconds))
    measured = any(estimate.measured for estimate in seconds.values())
    for item in sorted(items, key=lambda item: -tail[item.cohort.key]):
        own = seconds[item.cohort.key]
        how = "measured" if own.measured else "by its number of samples"
        hours = f"{own.seconds / 3600:.2f} h ({how})" if measured else "not timed yet"
        after = f", after {item.cohort.continues}" if item.need == WAITS else ""
        lines.append(f"{item.cohort.key}: {driver.resources(item.cohort)}, {hours}{after}")
    if items and measured:
        whole = simulate(works(items, seconds), driver.devices)
        where = f"on {counted(driver.devices, 'device')}, a cohort each"
        lines.append(f"{where}: {clock(whole.seconds)}; decided by {chain(whole.critical)}")
    return "\n".join(lines)


def run(
    project: Project,
    address: str,
    device: str,
    workers: int | None,
    seconds: float | None = None,
    dry: bool = False,
) -> int:
    """Work on a cluster until everything chosen is done, the time is over, or a signal comes; returns the exit status.

    `device`: `auto` takes GPUs where the cluster has them. `workers`: processes of a cohort on CPUs, 1 where None.

    Raises: UserError when there is no such cluster, or one of its nodes has another version of this project.
    """
    for cohort in project.chosen:
        load_dataset(binarized(cohort.dataset))
    with _cluster(address) as ray:
        interruption.listen()
        gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        if device == "cuda" and not gpus:
            raise UserError(f"--device cuda: the Ray cluster {address} has no GPU")
        use_gpus = device != "cpu" and gpus > 0
        nodes = _nodes(ray, use_gpus)
        own = workers or 1
        machine = replace(project.machine, device=torch.device("cuda" if use_gpus else "cpu"), workers=own)
        if use_gpus:
            kinds = Counter(node.gpu for node in nodes if node.gpus)
            engine = "" if machine.engine == "auto" else f", {machine.engine}"
            machine = replace(machine, name=kinds.most_common(1)[0][0] + engine)
        project = replace(project, machine=machine)
        facts = origin(LAUNCHER)
        driver = Driver(project, ray, nodes, facts, own)
        if dry:
            say(describe(project.standings(), machine))
            say(describe_cluster(driver))
            return 0
        if seconds is not None:
            interruption.stop_after(max(0.0, seconds - STOP_SECONDS))
        driver.work()
    plan = project.standings()
    say(describe(plan, project.machine))
    blocked = [item.cohort.key for item in plan if item.need == BLOCKED]
    failed = list(dict.fromkeys([*(key for key, what in driver.ended.items() if what), *blocked]))
    if interruption.signalled():
        say("stopped by a signal: checkpoints are in the store, the same command goes on from there", file=sys.stderr)
        return 130
    if interruption.stop_requested():
        say("time is up: checkpoints are in the store, the same command goes on from there")
    if failed:
        say(f"error: {', '.join(failed)} failed (see above)", file=sys.stderr)
    return 1 if failed else 0
