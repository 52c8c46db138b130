"""The store: checkpoints and finished runs by digest, in a folder that DVC does not declare.

DVC deletes a stage's outputs before it runs the stage again; what is finished here is copied, not trained again.

    <store>/<run digest>/...                         see pipeline.training.state
    <store>/<run digest>/evaluation-<digest>.json    and .npz, see pipeline.evaluation.evaluate
    <store>/locks/<cohort>.lock                      held by the one process that works on a cohort
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError
from pipeline.spec import CohortSpec, digest
from pipeline.training.state import Job, read_run

DEFAULT_STORE = Path(".store")
STORE_VARIABLE = "ELBO_STORE"
LOCK_SECONDS, LOCK_VARIABLE = 10.0, "ELBO_LOCK_SECONDS"
"""Workers of a killed trainer notice within a few steps; so long a new trainer waits for them."""


class Busy(UserError):
    """Another process works on the cohort."""


def store_folder() -> Path:
    return Path(os.environ.get(STORE_VARIABLE, DEFAULT_STORE))


def training_folder(runs: Path, key: str) -> Path:
    """Where the finished runs of a cohort lie, one folder each."""
    return runs / key / "training"


def cohort_jobs(cohort: CohortSpec, data_digest: str, store: Path, runs: Path) -> list[Job]:
    """The runs of a cohort with their digests and folders in the store; what they continue lies under `runs`.

    Raises: UserError when a run that one of them continues is missing or diverged.
    """
    jobs = []
    for run in cohort.runs:
        source, source_digest = None, None
        if run.continues is not None:
            key, _, name = run.continues.rpartition("/")
            source = training_folder(runs, key) / name
            content = read_run(source)
            if content["status"] != "finished":
                raise UserError(f"{cohort.key}/{run.name} continues {run.continues}, which {content['status']}")
            source_digest = content["digest"]
        own = digest(run, data_digest, source_digest)
        jobs.append(Job(run, own, store / own, source))
    return jobs


def stored_jobs(cohort: CohortSpec, cohorts: Mapping[str, CohortSpec], data_digest: str, store: Path) -> list[Job]:
    """The same jobs where the store is all there is: what a run continues lies in it too, finished or not yet.

    `cohorts`: every cohort by key, since the digest of a run takes in those of the runs before it.
    """
    jobs = []
    for run in cohort.runs:
        source = None
        if run.continues is not None:
            key, _, name = run.continues.rpartition("/")
            earlier = stored_jobs(cohorts[key], cohorts, data_digest, store)
            source = next(job for job in earlier if job.spec.name == name)
        own = digest(run, data_digest, None if source is None else source.digest)
        jobs.append(Job(run, own, store / own, None if source is None else source.finished))
    return jobs


@contextmanager
def cohort_lock(store: Path, key: str, wait_seconds: float | None = None) -> Iterator[None]:
    """Keep every other process out of a cohort. The lock goes when its holder and the holder's workers are gone.

    `wait_seconds`: how long to wait for it; None for ELBO_LOCK_SECONDS, or 10.

    Raises: Busy naming the process that holds it.
    """
    if wait_seconds is None:
        wait_seconds = float(os.environ.get(LOCK_VARIABLE, LOCK_SECONDS))
    path = store / "locks" / f"{key.replace('/', '-')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".pid")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise Busy(
            f"{key}: process {pid} is working on this cohort (was its dvc killed?);"
            f" wait for it to end or stop it (kill {pid}), then run the same command again: nothing is lost"
        ) from error
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


def copy_finished(jobs: list[Job], target: Path) -> None:
    """Fill `target` with the run directories of the jobs, in place of whatever it holds."""
    shutil.rmtree(target, ignore_errors=True)
    for job in jobs:
        building = target / f".{job.spec.name}.part"
        try:
            shutil.copytree(job.finished, building)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(building, ignore_errors=True)
            raise UserError(
                f"{target / job.spec.name}: cannot be written ({error}); free some space, then run again"
            ) from error
        building.rename(target / job.spec.name)


def forget(jobs: list[Job]) -> None:
    """Remove the jobs' folders, so that they train from the start."""
    for job in jobs:
        shutil.rmtree(job.folder, ignore_errors=True)
