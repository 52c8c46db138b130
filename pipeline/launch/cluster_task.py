"""What runs on the nodes of a Ray cluster: a task for each cohort, and the store's one writer (see `cluster`).

A task needs torch, numpy, safetensors and Ray. It gets the cohort, its data and its checkpoint as bytes, works in a
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
from pipeline.experiments.cohorts import binarized
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import atomic_path
from pipeline.launch.archive import carried_jobs, unpack, write_archive
from pipeline.launch.launcher import Project, work_on
from pipeline.launch.measure import Speeds, measure, out_of_memory
from pipeline.records.provenance import REVISION_VARIABLE
from pipeline.records.run_folder import PART, WAYPOINT
from pipeline.records.store import STORE_VARIABLE, store_folder
from pipeline.training.train import Progress
from pipeline.work import interruption
from pipeline.work.cohort import Pace
from pipeline.work.machine import Machine, this_machine
from pipeline.work.workers import Stopped

COPIES = (2, 4)
"""So many cohorts at once are tried on a GPU before any share one."""
REPORT_SECONDS = 1.0
SCRATCH = "elbo-cohort-"
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
    found = hashlib.sha256()
    sources = (path for path in package.rglob("*") if path.suffix in (".py", ".c", ".h"))
    for path in sorted(sources):
        found.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return f"source {found.hexdigest()[:12]}, torch {torch.__version__}"


@dataclass(frozen=True)
class Order:
    """What a task is told of its work."""

    cohort: CohortSpec
    sources: dict[str, CohortSpec]
    """The cohort and those that it continues, by key."""
    evaluation: EvaluationSpec
    device: str
    workers: int
    checkpoint_seconds: float
    engine: str
    facts: dict[str, Any]
    version: str

    def machine(self) -> Machine:
        return this_machine(self.device, self.workers, self.checkpoint_seconds, self.engine)


@dataclass(frozen=True)
class Report:
    """What a task tells between its archives."""

    node: str
    steps: int
    """Updates of all runs of the cohort."""
    rate: float | None
    """Updates a second."""
    evaluated: int = 0


class Home:
    """The actor that writes the store. Its state is the store's, so that it may be started again."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._reports: dict[str, Report] = {}

    def take(self, key: str, archive: bytes, readers: dict[str, bytes]) -> None:
        """Verify an archive of a cohort and put what it holds into the store."""
        arrived = self._store / "arrived" / f"{key.replace('/', '-')}.tar"
        with atomic_path(arrived) as temporary:
            temporary.write_bytes(archive)
        try:
            unpack(arrived, self._store)
        finally:
            arrived.unlink(missing_ok=True)
        for name, content in readers.items():
            if not (self._store / name).exists():
                with atomic_path(self._store / name) as temporary:
                    temporary.write_bytes(content)

    def note(self, key: str, report: Report) -> None:
        self._reports[key] = report

    def forget(self, key: str) -> None:
        self._reports.pop(key, None)

    def reports(self) -> dict[str, Report]:
        return self._reports


@dataclass
class Courier:
    """Sends home what a task has: reports often, files when there are new ones."""

    order: Order
    store: Path
    home: Any
    ray: Any
    _positions: dict[str, int] = field(default_factory=dict)
    _pace: Pace = field(default_factory=Pace)
    _evaluated: int = 0
    _reported: float = 0.0
    _sent: dict[str, tuple[tuple[str, int, int], ...]] = field(default_factory=dict)
    _delivery: Any = None

    def progress(self, progress: Progress) -> None:
        begun = progress.run in self._positions
        self._positions[progress.run] = progress.step
        self._pace.note(progress.run, progress.step, time.monotonic())
        self._report()
        # The trainer tells of a checkpoint by a message without history points; its first message is none of those.
        if begun and (progress.finished or not progress.rows):
            self.send()

    def evaluated(self, name: str) -> None:
        self._evaluated += 1
        self._report(at_once=True)
        self.send()

    def _report(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._reported > REPORT_SECONDS:
            self._reported = now
            steps = sum(self._positions.values())
            report = Report(socket.gethostname(), steps, self._pace.rate, self._evaluated)
            self.home.note.remote(self.order.cohort.key, report)

    def send(self, wait: bool = False) -> None:
        """Send the runs whose files are others than at the last time, unless the last archive is still on its way.

        `wait`: send in any case, and return when it has arrived.

        Raises: UserError when home could not take an archive.
        """
        if self._delivery is not None:
            if not wait and not self.ray.wait([self._delivery], timeout=0)[0]:
                return
            _arrive(self.ray, self._delivery)
        jobs = carried_jobs(self.order.cohort, self.order.sources, self.store)
        looks = {own: _look(self.store / own) for own in jobs}
        # A run that is being finished now is sent when it is.
        changed = [own for own in jobs if looks[own] != self._sent.get(own) and not _finishing(self.store / own)]
        if not changed and not wait:
            return
        stream = io.BytesIO()
        write_archive(stream, {own: jobs[own] for own in changed}, self.store)
        if not wait and any(_finishing(self.store / own) for own in changed):
            return
        self._sent |= {own: looks[own] for own in changed}
        self._delivery = self.home.take.remote(self.order.cohort.key, stream.getvalue(), readers_in(self.store))
        if wait:
            _arrive(self.ray, self._delivery)


def _arrive(ray: Any, delivery: Any) -> None:
    """Wait for a delivery. Not in `ray.get`, which lends this task's cores to the next one while it waits.

    Raises: UserError when home could not take it.
    """
    while not ray.wait([delivery], timeout=0)[0]:
        time.sleep(0.02)
    ray.get(delivery)


def _look(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells a run's files from those of another time."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _finishing(folder: Path) -> bool:
    return any(folder.glob(f"{WAYPOINT}*{PART}"))


def readers_in(store: Path) -> dict[str, bytes]:
    """The readers of digits in a store, which evaluations train once."""
    pattern = reader_path(store, "*").name
    return {path.name: path.read_bytes() for path in store.glob(pattern)}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of this process's own, the working folder while it is used; those of killed processes are removed."""
    base, before = Path(tempfile.gettempdir()), Path.cwd()
    for left in base.glob(f"{SCRATCH}*"):
        pid = left.name.removeprefix(SCRATCH).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (PermissionError, ValueError):
            continue
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=base))
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _settle(order: Order, data: bytes) -> None:
    """Make the working folder of a task one of this project.

    Raises: UserError where this is another version of the project than the driver's.
    """
    if (own := project_version()) != order.version:
        raise UserError(other_version(socket.gethostname(), own, order.version))
    os.environ.pop(STORE_VARIABLE, None)
    if order.facts["git_revision"]:
        os.environ[REVISION_VARIABLE] = order.facts["git_revision"]
    target = binarized(order.cohort.dataset)
    target.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # One by one and by their bare names: extractall is safe only since Python 3.11.4.
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                (target / Path(member.name).name).write_bytes(content.read())


def cohort_task(order: Order, seed: bytes, readers: dict[str, bytes], data: bytes, home: Any) -> tuple[str, str]:
    """Train and evaluate one cohort on the node that Ray chose; returns how it ended, and what went wrong.

    `seed`: an archive of what the store holds of the cohort and of the runs that it continues.
    """
    ray = need_ray()
    # Ray uses a worker's process again: an earlier task's request to stop is not this one's.
    interruption.clear()
    try:
        with _scratch() as folder:
            _settle(order, data)
            store = store_folder()
            (folder / "seed.tar").write_bytes(seed)
            unpack(folder / "seed.tar", store)
            for name, content in readers.items():
                (store / name).write_bytes(content)
            project = Project(
                order.sources, {order.cohort.key: order.evaluation}, (order.cohort,), store, order.machine()
            )
            courier = Courier(order, store, home, ray)
            home.note.remote(order.cohort.key, Report(socket.gethostname(), 0, None))
            try:
                work_on(project, order.cohort, None, order.facts, courier.progress, courier.evaluated)
            finally:
                courier.send(wait=True)
    except Stopped:
        return STOPPED, ""
    except UserError as error:
        message = str(error)
        return (OUT_OF_MEMORY if out_of_memory(message) else FAILED), message
    return DONE_HERE, ""


def measure_task(order: Order, data: bytes) -> Speeds:
    """Time a cohort's stacks on a GPU that this task has alone."""
    with _scratch():
        _settle(order, data)
        return measure(order.cohort, binarized(order.cohort.dataset), order.machine(), COPIES)


def other_version(node: str, own: str, expected: str) -> str:
    return (
        f"{node}: has another version of this project ({own}) than the driver ({expected});"
        " bring the same there: git archive HEAD pipeline, and the same torch"
    )
