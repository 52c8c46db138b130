"""The store: checkpoints and waypoints by digest, in a folder that DVC does not declare.

DVC deletes a stage's outputs before it runs the stage again; what is finished here is copied, not trained again.

    <store>/<run digest>/...                         see pipeline.records.run_folder
    <store>/<run digest>/evaluation-<digest>.json    and .npz, see pipeline.evaluation.evaluate
    <store>/locks/<run digest>.lock                  held by the one process that trains a run
    <store>/locks/<cohort>.lock                      held by the one DVC stage that works on a cohort
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.experiments.names import CellName
from pipeline.experiments.schedule import stage_ends
from pipeline.experiments.spec import CohortSpec, RunSpec, as_computed, digest, origin_of
from pipeline.files import disk_error
from pipeline.paths import HERE, Paths
from pipeline.records.run_folder import (
    RUN_JSON,
    WEIGHTS,
    Job,
    checkpoint_step,
    forget_provenance,
    is_thinned,
    is_whole,
    read_run,
    stored_waypoints,
    verify_waypoint,
    waypoint_name,
)
from pipeline.records.status import FINISHED
from pipeline.work.locks import Busy, locked

__all__ = ["Busy"]

STORE_VARIABLE = "ELBO_STORE"
LOCK_SECONDS, LOCK_VARIABLE = 10.0, "ELBO_LOCK_SECONDS"
"""Workers of a killed trainer notice within a few steps; so long a new trainer waits for them."""
BUSY_SECONDS = 2.0
"""How long a launcher waits for a cohort that another process works on, before it goes on with the next one."""

Marks = Mapping[str, tuple[int, ...]]
"""By trajectory (`trajectory_of`): the depths at which runs of the grid leave it."""


def store_folder(paths: Paths = HERE) -> Path:
    """The store of a project: the folder that ELBO_STORE names, else the one within it."""
    named = os.environ.get(STORE_VARIABLE)
    return paths.store if named is None else Path(named)


def training_folder(runs: Path, key: str) -> Path:
    """Where the finished runs of a cohort lie, one folder each."""
    return runs / key / "training"


def continued_run(run: RunSpec, cohorts: Mapping[str, CohortSpec]) -> tuple[CohortSpec, RunSpec] | None:
    """The run that a run continues, with its cohort; None for one that starts by itself."""
    if run.continues is None:
        return None
    source = CellName.of(run.continues)
    cohort = cohorts[str(source.cohort)]
    return cohort, next(other for other in cohort.runs if other.name == source.run)


def trajectory_of(run: RunSpec, cohorts: Mapping[str, CohortSpec]) -> str:
    """Names a run's trajectory within the grid, without its data: equal names, one trajectory on a CPU."""
    continued = continued_run(run, cohorts)
    origin = None if continued is None else origin_of(trajectory_of(continued[1], cohorts), continued[1].total_steps)
    return digest(as_computed(run, "cpu"), run.dataset, origin)


def depths(cohorts: Mapping[str, CohortSpec]) -> Marks:
    """How deep each trajectory of the grid is taken by its runs."""
    marks: dict[str, set[int]] = {}
    for cohort in cohorts.values():
        for run in cohort.runs:
            marks.setdefault(trajectory_of(run, cohorts), set()).add(run.total_steps)
    return {name: tuple(sorted(steps)) for name, steps in marks.items()}


def _job(
    run: RunSpec,
    data_digest: str,
    store: Path,
    device: str,
    marks: tuple[int, ...],
    source: Path | None,
    origin: str | None,
) -> Job:
    """The run as this device computes it; or just as it is asked for, where the store has that finished."""

    def job(spec: RunSpec) -> Job:
        run_digest = digest(spec, data_digest, origin)
        return Job(spec, run_digest, store / run_digest, source, origin, marks)

    here, asked = as_computed(run, device), job(run)
    return asked if here == run or asked.is_finished else job(here)


def cohort_jobs(
    cohort: CohortSpec,
    cohorts: Mapping[str, CohortSpec],
    data_digest: str,
    store: Path,
    runs: Path,
    device: str,
) -> list[Job]:
    """The runs of a cohort with their digests and folders in the store; what they continue lies under `runs`.

    `cohorts`: every cohort by key. `device`: `cpu` or `cuda`, where the runs would be trained.

    Raises: UserError when a run that one of them continues is missing, damaged, another one, not as deep as it is
    continued from, or diverged.
    """
    marks = depths(cohorts)
    jobs = []
    for run in cohort.runs:
        source, origin = None, None
        if (continued := continued_run(run, cohorts)) is not None:
            key = continued[0].key
            source = training_folder(runs, key) / continued[1].name
            content = read_run(source)
            told = f"{cohort.key}/{run.name} continues {run.continues}, which"
            if content["status"] != FINISHED:
                raise UserError(f"{told} {content['status']}")
            origin = origin_of(content["digest"], content["steps"])
            there = stored_jobs(continued[0], cohorts, data_digest, store, device, marks)
            if content["digest"] not in possible_digests(continued[0], there, data_digest)[continued[1].name]:
                raise UserError(f"{told} is another run under {source}; train it again: python -m stages.train {key}")
            if content["steps"] != continued[1].total_steps:
                depth = f"stands at {content['steps']:,} of {continued[1].total_steps:,} updates under {source}"
                raise UserError(f"{told} {depth}; train it on: python -m stages.train {key}")
        own_marks = marks.get(trajectory_of(run, cohorts), ())
        jobs.append(_job(run, data_digest, store, device, own_marks, source, origin))
    return jobs


def possible_digests(cohort: CohortSpec, jobs: Iterable[Job], data_digest: str) -> dict[str, set[str]]:
    """By run of a cohort, the digests under which it may lie here: computed as it was asked for, or as a CPU does.

    `jobs`: the cohort's.
    """
    return {
        run.name: {digest(spec, data_digest, job.origin) for spec in (run, as_computed(run, "cpu"))}
        for run, job in zip(cohort.runs, jobs, strict=True)
    }


def stored_jobs(
    cohort: CohortSpec,
    cohorts: Mapping[str, CohortSpec],
    data_digest: str,
    store: Path,
    device: str,
    marks: Marks | None = None,
) -> list[Job]:
    """The same jobs where the store is all there is: what a run continues lies in it too, finished or not yet.

    `marks`: of `depths(cohorts)`, where that is known already.
    """
    known = depths(cohorts) if marks is None else marks
    jobs = []
    for run in cohort.runs:
        source, origin = None, None
        if (continued := continued_run(run, cohorts)) is not None:
            earlier = stored_jobs(continued[0], cohorts, data_digest, store, device, known)
            job = next(job for job in earlier if job.spec.name == continued[1].name)
            source, origin = job.finished, origin_of(job.digest, job.spec.total_steps)
        own_marks = known.get(trajectory_of(run, cohorts), ())
        jobs.append(_job(run, data_digest, store, device, own_marks, source, origin))
    return jobs


def cohort_lock(store: Path, key: str, wait_seconds: float | None = None) -> AbstractContextManager[None]:
    """Keep every other process out of a cohort. The lock goes when its holder and the holder's workers are gone.

    `wait_seconds`: how long to wait for it; None for `lock_seconds`.

    Raises: Busy naming the process that holds it.
    """
    seconds = lock_seconds() if wait_seconds is None else wait_seconds
    return locked(store / "locks" / f"{key.replace('/', '-')}.lock", key, seconds)


def lock_seconds() -> float:
    """How long a stage waits for another process: ELBO_LOCK_SECONDS, or 10.

    Raises: UserError when the variable holds no such number.
    """
    text = os.environ.get(LOCK_VARIABLE, "")
    try:
        seconds = float(text or LOCK_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{LOCK_VARIABLE}={text}: not a number of seconds; correct the variable or unset it")
    return seconds


def copy_finished(jobs: list[Job], target: Path) -> None:
    """Fill `target` with the finished runs of the jobs, in place of whatever it holds, each verified.

    A run's folder is its waypoint at its depth. Of those at the ends of stages it holds the weights and run.json. Both
    without their provenance, which the store keeps: the same runs are the same bytes.

    Raises: Damaged naming the file of the store that is not what was written.
    """
    shutil.rmtree(target, ignore_errors=True)
    for job in jobs:
        verify_waypoint(job.finished, job.digest)
        building = target / f".{job.spec.name}.part"
        try:
            _copy(job.finished, building, [path.name for path in job.finished.iterdir() if path.is_file()])
            for steps in stage_ends(job.spec):
                if steps < job.spec.total_steps and is_whole(job.waypoint(steps), job.digest):
                    _copy(job.waypoint(steps), building / waypoint_name(steps), (RUN_JSON, WEIGHTS))
                elif steps < job.spec.total_steps and is_thinned(job.waypoint(steps), job.digest):
                    _copy(job.waypoint(steps), building / waypoint_name(steps), (RUN_JSON,))
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise disk_error(target / job.spec.name, "written", error) from error
        building.rename(target / job.spec.name)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        shutil.copy2(source / name, target / name)
    forget_provenance(target)


def forget(jobs: Iterable[Job]) -> None:
    """Remove what the store holds of the jobs up to their depth, so that they train from the start.

    What lies deeper stays: it is another scale's.
    """
    for job in jobs:
        for steps in stored_waypoints(job.folder):
            if steps <= job.spec.total_steps:
                shutil.rmtree(job.waypoint(steps), ignore_errors=True)
        for path in job.checkpoints:
            if checkpoint_step(path) <= job.spec.total_steps:
                path.unlink(missing_ok=True)
