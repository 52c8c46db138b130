"""What runs on the nodes of a Ray cluster: a task for each unit of work, and the store's one writer (see `cluster`).

A task needs torch, numpy, safetensors and Ray. It gets its unit, the data and the state so far as bytes, works in a
folder of its own as the launcher does, and sends home the verified archives of `pipeline.launch.archive`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.evaluation.classifier import reader_path
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import atomic_path, owner, write_bytes
from pipeline.launch import cores
from pipeline.launch.archive import carried_jobs, unpack, write_archive
from pipeline.launch.launcher import Project, work_on
from pipeline.launch.measure import Speeds, measure, out_of_memory
from pipeline.paths import Paths
from pipeline.records.facts import Origin
from pipeline.records.run_folder import PART, WAYPOINT
from pipeline.training.train import Progress
from pipeline.work import interruption
from pipeline.work.cohort import Pace
from pipeline.work.machine import Machine, this_machine
from pipeline.work.memory import keep_freed_memory
from pipeline.work.workers import Stopped

COPIES = (2, 4)
"""Numbers of cohorts at once that are tried on a GPU before any share one."""
TELL_SECONDS = 1.0
SCRATCH = "elbo-task-"
DONE_HERE, FAILED, OUT_OF_MEMORY, STOPPED = "done", "failed", "out of memory", "stopped"
"""How a task ends."""


def need_ray() -> Any:
    """The Ray package.

    Raises: UserError that says how to install it.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray needs Ray, which is not installed here: pip install '.[ray]' (docs/scale-out.md)"
        ) from error
    return ray


@cache
def project_version() -> str:
    """What driver and workers must agree in: a digest of this package's source, and torch's version."""
    package = Path(__file__).parents[1]
    sha256 = hashlib.sha256()
    sources = (path for path in package.rglob("*") if path.suffix in (".py", ".c", ".h"))
    for path in sorted(sources):
        sha256.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return f"source {sha256.hexdigest()[:12]}, torch {torch.__version__}"


@dataclass(frozen=True)
class Order:
    """What a task is told of its work."""

    name: str
    """How driver and home call the unit: a cohort's key, or the cell of a single run."""
    unit: CohortSpec
    """The runs to be taken to their depths: one on a core, those of a cohort on a GPU."""
    evaluation: EvaluationSpec
    device: str
    checkpoint_seconds: float
    engine: str
    facts: Origin
    version: str

    def machine(self) -> Machine:
        return this_machine(self.device, 1, self.checkpoint_seconds, self.engine)


@dataclass(frozen=True)
class TaskReport:
    """What a task tells between its archives."""

    node: str
    steps: int
    """Updates of all runs of the unit."""
    rate: float | None
    """Updates a second."""
    doing: str = ""
    """What it does beside updates."""


class Home:
    """The actor that writes the store. Its state is the store's, so that it may be started again."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._reports: dict[str, TaskReport] = {}

    def take(self, name: str, archive: bytes, readers: dict[str, bytes]) -> None:
        """Verify an archive of a unit and put what it holds into the store."""
        # Named after its owner: another cluster's home may write into the same store, and this one may be killed.
        arrived = self._store / "arrived" / f"{name.replace('/', '-')}.{owner()}{PART}"
        try:
            write_bytes(arrived, archive)
            unpack(arrived, self._store)
        finally:
            arrived.unlink(missing_ok=True)
        for reader, content in readers.items():
            if not (self._store / reader).exists():
                with atomic_path(self._store / reader) as temporary:
                    temporary.write_bytes(content)

    def note(self, name: str, report: TaskReport) -> None:
        self._reports[name] = report

    def forget(self, name: str) -> None:
        self._reports.pop(name, None)

    def reports(self) -> dict[str, TaskReport]:
        return self._reports


Looks = dict[Path, tuple[int, int]]
"""By file: what tells it from that of another time."""


@dataclass
class Courier:
    """Sends home what a task has: reports often, files when there are new ones."""

    order: Order
    project: Project
    """The task's own, in its folder."""
    home: Any
    ray: Any
    _told: float = 0.0
    _sent: Looks = field(default_factory=dict)
    _delivery: Any = None

    def begin(self) -> None:
        """Take note of what came with the task, which home has."""
        for digest in self._jobs():
            self._sent |= _looks(self.project.store / digest)
        self._tell(TaskReport(socket.gethostname(), 0, None))

    def report(self, steps: int, rate: float | None, doing: str = "") -> None:
        """Tell home where the work stands, and send it new files, once a second at most unless `doing` something."""
        now = time.monotonic()
        if doing or now - self._told > TELL_SECONDS:
            self._told = now
            self._tell(TaskReport(socket.gethostname(), steps, rate, doing))
            self.send()

    def _tell(self, report: TaskReport) -> None:
        self.home.note.remote(self.order.name, report)

    def _jobs(self) -> dict[str, dict[str, Any]]:
        project = self.project
        return carried_jobs(self.order.unit, project.cohorts, project.store, project.marks, project.paths)

    def send(self, wait: bool = False) -> None:
        """Send the files that are others than at the last time, unless the last archive is still on its way.

        `wait`: send in any case, and return when it has arrived.

        Raises: UserError when home could not take an archive.
        """
        if self._delivery is not None:
            if not wait and not self.ray.wait([self._delivery], timeout=0)[0]:
                return
            _arrive(self.ray, self._delivery)
        jobs = self._jobs()
        looks = {digest: _looks(self.project.store / digest) for digest in jobs}
        # A run that is coming to a waypoint now is sent when it is there.
        changed = [digest for digest, look in looks.items() if look.items() - self._sent.items()]
        changed = [digest for digest in changed if not _finishing(self.project.store / digest)]
        if not changed and not wait:
            return
        stream = io.BytesIO()
        there = {path.parent for path in self._sent if path.parent.name.startswith(WAYPOINT)}
        revision = self.order.facts["git_revision"]
        write_archive(stream, {digest: jobs[digest] for digest in changed}, self.project.store, revision, there)
        if not wait and any(_finishing(self.project.store / digest) for digest in changed):
            return
        for digest in changed:
            self._sent |= looks[digest]
        self._delivery = self.home.take.remote(self.order.name, stream.getvalue(), readers_in(self.project.store))
        if wait:
            _arrive(self.ray, self._delivery)


def _arrive(ray: Any, delivery: Any) -> None:
    """Wait for a delivery. Not in `ray.get`, which lends this task's cores to the next one while it waits.

    Raises: UserError when home could not take it.
    """
    while not ray.wait([delivery], timeout=0)[0]:
        time.sleep(0.02)
    ray.get(delivery)


def _looks(folder: Path) -> Looks:
    looks = {}
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.is_file():
                looks[path] = (status.st_size, status.st_mtime_ns)
    return looks


def _finishing(folder: Path) -> bool:
    return any(folder.glob(f"{WAYPOINT}*{PART}"))


def readers_in(store: Path) -> dict[str, bytes]:
    """The readers of digits in a store, which evaluations train once."""
    pattern = reader_path(store, "*").name
    return {path.name: path.read_bytes() for path in store.glob(pattern)}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this process's own while it is used; those of killed processes are removed."""
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{SCRATCH}*"):
        pid = left.name.removeprefix(SCRATCH).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (PermissionError, ValueError):
            continue
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(order: Order, data: bytes, paths: Paths) -> None:
    """Bring the data of a task into its project.

    Raises: UserError where this is another version of the project than the driver's.
    """
    if (version := project_version()) != order.version:
        raise UserError(other_version(socket.gethostname(), version, order.version))
    target = paths.binarized(order.unit.dataset)
    target.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # One by one and by their bare names: extractall is safe only since Python 3.11.4.
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                (target / Path(member.name).name).write_bytes(content.read())


def unit_task(
    order: Order,
    cohorts: dict[str, CohortSpec],
    seed: bytes,
    readers: dict[str, bytes],
    data: bytes,
    home: Any,
) -> tuple[str, str]:
    """Train and evaluate one unit on the node that Ray chose; returns how it ended, and what went wrong.

    `cohorts`: every one of the grid, in whole. `seed`: an archive of what the store holds of the unit and of the runs
    that it continues.
    """
    ray = need_ray()
    # Ray uses a worker's process again: an earlier task's request to stop is not this one's.
    interruption.clear()
    interruption.listen()
    try:
        with _scratch() as folder:
            paths = Paths(folder)
            _settle(order, data, paths)
            store = paths.store
            (folder / "seed.tar").write_bytes(seed)
            unpack(folder / "seed.tar", store)
            for name, content in readers.items():
                (store / name).write_bytes(content)
            evaluations, machine = {order.unit.key: order.evaluation}, order.machine()
            project = Project(cohorts, evaluations, (order.unit,), store, machine, paths=paths)
            courier = Courier(order, project, home, ray)
            courier.begin()
            try:
                work_through(courier)
            finally:
                courier.send(wait=True)
    except (Stopped, interruption.Interrupted):
        return STOPPED, ""
    except UserError as error:
        message = str(error)
        return (OUT_OF_MEMORY if out_of_memory(message) else FAILED), message
    return DONE_HERE, ""


def work_through(courier: Courier) -> None:
    """Do the courier's order: a single run as the launcher's workers do, a cohort as the launcher does on a GPU.

    Raises: UserError with what went wrong; Stopped or Interrupted when asked to stop.
    """
    project, order = courier.project, courier.order
    if order.name != order.unit.key:
        keep_freed_memory()
        torch.set_num_threads(1)

        def hear(news: cores.News) -> None:
            courier.report(news.step, news.rate, "" if news.doing == cores.UPDATES else news.doing)

        cores.work_here(project, order.facts, hear)
        return
    pace, positions = Pace(), {}

    def note(progress: Progress) -> None:
        positions[progress.run] = progress.step
        pace.note(progress.run, progress.step, time.monotonic())
        courier.report(sum(positions.values()), pace.rate)

    def evaluated(name: str) -> None:
        courier.report(sum(positions.values()), pace.rate, f"evaluated {name}")

    work_on(project, order.unit, None, order.facts, note, evaluated)


def measure_task(order: Order, data: bytes) -> Speeds:
    """Time a unit's stacks on a GPU that this task has alone."""
    with _scratch() as folder:
        paths = Paths(folder)
        _settle(order, data, paths)
        return measure(order.unit, paths.binarized(order.unit.dataset), order.machine(), COPIES)


def other_version(node: str, version: str, expected: str) -> str:
    """The message for a node that would compute with other code than the driver, and how to put that right."""
    return (
        f"{node}: has another version of this project ({version}) than the driver ({expected});"
        " bring the same there: git archive HEAD pipeline, and the same torch"
    )
