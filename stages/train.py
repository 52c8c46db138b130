"""Train one cohort: `python -m stages.train quick/burda-table1-mnist-1L-T50` -> runs/<cohort>/training/<run>/.

What is finished is taken from the store; a run goes on from its deepest checkpoint or waypoint there, whatever scale it
was made for. FORCE=1 starts anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohort, load_cohorts
from pipeline.experiments.params import load_params
from pipeline.experiments.spec import CohortSpec
from pipeline.paths import Paths
from pipeline.records.provenance import origin
from pipeline.records.run_folder import Job, heal, read_run
from pipeline.records.store import (
    cohort_jobs,
    cohort_lock,
    copy_finished,
    forget,
    lock_seconds,
    store_folder,
    training_folder,
)
from pipeline.tracking.live import LiveTracker
from pipeline.training.cohort import estimated_hours
from pipeline.training.train import Progress, history_rows, run_lock
from pipeline.work.cohort import Watch, diverged, train_waiting, whole_scale
from pipeline.work.console import counted
from pipeline.work.machine import Machine, this_machine
from stages import asked_for, forced, run_stage

SLOW_VARIABLE = "ELBO_ALLOW_SLOW"
LONG_RUN_STEPS = 200_000
"""Cohorts with fewer steps than this are trained without asking how long the whole scale takes."""
TOO_LONG_HOURS = 24.0


def check_duration(cohort: CohortSpec, jobs: list[Job], machine: Machine, paths: Paths) -> None:
    """Refuse work of days on a machine that is not made for it, before the first step.

    Raises: UserError with the estimate, the hardware to use, the alternative, and how to go on all the same.
    """
    if asked_for(SLOW_VARIABLE) or sum(job.spec.total_steps for job in jobs) < LONG_RUN_STEPS:
        return
    scale = [other for other in load_cohorts(paths.cohorts).values() if other.scale == cohort.scale]
    hours = estimated_hours(max(jobs, key=lambda job: job.spec.T), paths.binarized(cohort.dataset), machine, scale)
    if hours > TOO_LONG_HOURS:
        raise UserError(
            f"{cohort.key}: the {cohort.scale} scale would train for about {hours / 24:,.0f} days on this machine"
            f" ({machine.device.type}, {machine.workers} processes). It is meant for a GPU such as an NVIDIA H200"
            f" (docs/gpu.md); `make repro` runs the quick scale in minutes. To go on all the same: {SLOW_VARIABLE}=1"
        )


def train(cohort: CohortSpec, jobs: list[Job], machine: Machine, paths: Paths) -> None:
    """Train the unfinished jobs with progress on the console and in MLflow."""
    facts = origin("stages.train", paths)
    waiting = [job for job in jobs if not job.is_finished]
    tracker: LiveTracker | None = None

    def start_tracker() -> None:
        # Importing MLflow takes seconds; the workers train meanwhile.
        nonlocal tracker
        digests = {job.spec.name: job.digest for job in waiting}
        stage, root = os.environ.get("DVC_STAGE"), paths.root.absolute()
        tracker = LiveTracker(root, cohort, digests, stage, facts["git_revision"])

    def on_progress(progress: Progress) -> None:
        if tracker is not None and progress.rows:
            tracker.log(progress.run, history_rows(progress.rows))
        if tracker is not None and progress.finished:
            status = next(read_run(job.finished)["status"] for job in jobs if job.spec.name == progress.run)
            tracker.finish(progress.run, status)

    try:
        whole = whole_scale(jobs, cohort, load_cohorts(paths.cohorts).values(), paths.runs)
        watch = Watch(on_progress=on_progress, started=start_tracker, whole=whole)
        train_waiting(cohort, jobs, machine, facts, paths, watch, lock_seconds())
    finally:
        if tracker is not None:
            tracker.close()


def main(paths: Paths) -> None:
    """Train what of a cohort is not trained yet, under its lock, and copy its finished runs into `runs/`.

    Raises: UserError when that would take too long here, or when the cohort changed meanwhile.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(paths.cohorts, parser.parse_args().cohort)
    params = load_params(paths.params)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds, params.engine)
    store = store_folder(paths)
    start = time.monotonic()
    with cohort_lock(store, cohort.key):
        data_digest = load_dataset(paths.binarized(cohort.dataset)).digest
        cohorts = load_cohorts(paths.cohorts)
        jobs = cohort_jobs(cohort, cohorts, data_digest, store, paths.runs, machine.device.type)
        if forced():
            for job in jobs:
                # Not under the hands of a launcher that trains it now, or that takes it deeper.
                with run_lock(job, lock_seconds()):
                    forget([job])
        for job in jobs:
            heal(job)
        waiting = [job for job in jobs if not job.is_finished]
        if waiting:
            check_duration(cohort, waiting, machine, paths)
            train(cohort, jobs, machine, paths)
        copy_finished(jobs, training_folder(paths.runs, cohort.key))
    if load_cohort(paths.cohorts, cohort.key) != cohort:
        raise UserError(f"{paths.cohorts / cohort.key}.json changed while it was trained: run the same command again")
    for line in diverged(cohort, jobs):
        print(f"warning: {line}", file=sys.stderr)
    stored = len(jobs) - len(waiting)
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(len(waiting), 'run')} trained, {stored} taken from the store, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
