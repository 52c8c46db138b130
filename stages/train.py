"""Train one cohort: `python -m stages.train quick/burda-table1-mnist-1L-T50` -> runs/<cohort>/training/<run>/.

Finished runs are taken from the store, interrupted ones go on from their last checkpoint; FORCE=1 starts anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from pipeline.cohorts import COHORTS, RUNS, binarized, load_cohort, load_cohorts
from pipeline.config import load_params
from pipeline.console import counted
from pipeline.data.datasets import load_dataset
from pipeline.device import Machine, this_machine
from pipeline.errors import UserError
from pipeline.grid import PARAMS
from pipeline.provenance import origin
from pipeline.spec import CohortSpec
from pipeline.store import cohort_jobs, cohort_lock, copy_finished, forget, store_folder, training_folder
from pipeline.tracking import LiveTracker
from pipeline.training.cohort import estimated_hours
from pipeline.training.state import Job, read_run
from pipeline.training.train import Progress, history_rows
from pipeline.work import Pace, diverged, train_waiting
from stages import asked_for, forced, run_stage

SLOW_VARIABLE = "ELBO_ALLOW_SLOW"
LONG_RUN_STEPS = 200_000
"""Cohorts with fewer steps than this are trained without asking how long the whole scale takes."""
TOO_LONG_HOURS = 24.0


def check_duration(cohort: CohortSpec, jobs: list[Job], machine: Machine) -> None:
    """Refuse work of days on a machine that is not made for it, before the first step.

    Raises: UserError with the estimate, the hardware to use, the alternative, and how to go on all the same.
    """
    if asked_for(SLOW_VARIABLE) or sum(job.spec.total_steps for job in jobs) < LONG_RUN_STEPS:
        return
    scale = [other for other in load_cohorts(COHORTS).values() if other.scale == cohort.scale]
    hours = estimated_hours(max(jobs, key=lambda job: job.spec.T), binarized(cohort.dataset), machine, scale)
    if hours > TOO_LONG_HOURS:
        raise UserError(
            f"{cohort.key}: the {cohort.scale} scale would train for about {hours / 24:,.0f} days on this machine"
            f" ({machine.device.type}, {machine.workers} processes). It is meant for a GPU such as an NVIDIA H200"
            f" (docs/gpu.md); `make repro` runs the quick scale in minutes. To go on all the same: {SLOW_VARIABLE}=1"
        )


def train(cohort: CohortSpec, jobs: list[Job], machine: Machine) -> None:
    """Train the unfinished jobs with progress on the console and in MLflow."""
    facts = origin("stages.train")
    waiting = [job for job in jobs if not job.is_finished]
    tracker: LiveTracker | None = None

    def start_tracker() -> None:
        # Importing MLflow takes seconds; the workers train meanwhile.
        nonlocal tracker
        digests = {job.spec.name: job.digest for job in waiting}
        tracker = LiveTracker(Path.cwd(), cohort, digests, os.environ.get("DVC_STAGE"), facts["git_revision"])

    def on_progress(progress: Progress) -> None:
        if tracker is not None and progress.rows:
            tracker.log(progress.run, history_rows(progress.rows))
        if tracker is not None and progress.finished:
            status = next(read_run(job.finished)["status"] for job in jobs if job.spec.name == progress.run)
            tracker.finish(progress.run, status)

    try:
        train_waiting(cohort, jobs, machine, facts, Pace(), on_progress, start_tracker)
    finally:
        if tracker is not None:
            tracker.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(COHORTS, parser.parse_args().cohort)
    params = load_params(PARAMS)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds, params.engine)
    store = store_folder()
    start = time.monotonic()
    with cohort_lock(store, cohort.key):
        jobs = cohort_jobs(cohort, load_dataset(binarized(cohort.dataset)).digest, store, RUNS)
        if forced():
            forget(jobs)
        waiting = [job for job in jobs if not job.is_finished]
        if waiting:
            check_duration(cohort, waiting, machine)
            train(cohort, jobs, machine)
        copy_finished(jobs, training_folder(RUNS, cohort.key))
    for line in diverged(cohort, jobs):
        print(f"warning: {line}", file=sys.stderr)
    stored = len(jobs) - len(waiting)
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(len(waiting), 'run')} trained, {stored} taken from the store, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
