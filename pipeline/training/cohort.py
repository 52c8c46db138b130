"""Training a cohort: which of its runs form a stack on this device, on how many processes, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.datasets import load_dataset, verified_dataset
from pipeline.experiments.spec import CohortSpec, RunSpec
from pipeline.objectives import check_estimator
from pipeline.records.facts import Given
from pipeline.records.run_folder import Job
from pipeline.training.engines import stack_for
from pipeline.training.train import Progress, initial_state, train
from pipeline.work.interruption import stop_requested
from pipeline.work.machine import Machine
from pipeline.work.workers import run_parallel

TIMED_STEPS = 5
FIXED_SHARE = 7
"""What a step costs apart from its samples, in samples: 1.2 ms at T = 1 and 8.9 ms at T = 50 were measured."""


def stacks(jobs: list[Job], machine: Machine) -> list[list[Job]]:
    """The jobs as stacks, the longest first: on a GPU, which few runs leave idle, one a sample count; else one each."""
    ordered = sorted(jobs, key=lambda job: -relative_cost(job.spec))
    if machine.device.type == "cuda":
        counts = dict.fromkeys(job.spec.T for job in ordered)
        return [[job for job in jobs if job.spec.T == T] for T in counts]
    return [[job] for job in ordered]


def relative_cost(run: RunSpec) -> float:
    """What a run's training takes, in arbitrary units: its samples, and a share that does not depend on them."""
    return run.total_steps * (run.T + FIXED_SHARE) * (1.0 if run.layers == 1 else 1.4)


def device_images(folder: Path, device: torch.device) -> Tensor:
    """The training images of a binarized dataset on the device, uint8 [N, 784]; on a CPU shared by all processes."""
    return torch.from_numpy(load_dataset(folder).train_images).to(device)


def _train_stack(
    jobs: list[Job],
    send: Callable[[Progress], None],
    *,
    data: Path,
    machine: Machine,
    facts: Given,
    wait_seconds: float,
) -> None:
    images = device_images(data, machine.device)
    train(jobs, images, facts, send, stop_requested, machine.checkpoint_seconds, machine.engine, wait_seconds)


def train_jobs(
    jobs: list[Job],
    data: Path,
    machine: Machine,
    facts: Given,
    on_progress: Callable[[Progress], None],
    started: Callable[[], None],
    wait_seconds: float = 0.0,
) -> None:
    """Train all unfinished jobs of a cohort. `data`: the binarized dataset's folder; `facts` goes into every run.json.

    `wait_seconds`: for each run that another process trains.

    Raises: UserError with what went wrong in each stack that failed; Stopped when asked to stop.
    """
    verified_dataset(data)
    for job in jobs:
        check_estimator(job.spec.objective, job.spec.M, job.spec.K, job.spec.parameter)
    task = partial(_train_stack, data=data, machine=machine, facts=facts, wait_seconds=wait_seconds)
    # Two names may be one trajectory: it is trained once.
    waiting = stacks(list({job.digest: job for job in jobs if not job.is_finished}.values()), machine)
    run_parallel(
        task,
        waiting,
        machine.workers,
        lambda _, progress: on_progress(progress),
        name=lambda stack: ", ".join(job.spec.name for job in stack),
        started=started,
    )


def _time_steps(job: Job, send: Callable[[float], None], *, data: Path, machine: Machine) -> None:
    images = device_images(data, machine.device)
    stack = stack_for([job.spec], [initial_state(job, images)], images, machine.engine)
    steps = TIMED_STEPS if machine.device.type == "cpu" else stack.steps_between_checks
    stack.advance(2)
    start = time.monotonic()
    stack.advance(steps)
    send((time.monotonic() - start) / steps)


def estimated_hours(job: Job, data: Path, machine: Machine, cohorts: list[CohortSpec]) -> float:
    """How long these cohorts would train on this machine, from a few timed steps of one of their runs."""
    timed: list[float] = []
    task = partial(_time_steps, data=data, machine=machine)
    run_parallel(task, [job], 1, lambda _, seconds: timed.append(seconds))
    seconds_per_unit = timed[0] * job.spec.total_steps / relative_cost(job.spec)
    units = sum(relative_cost(run) for cohort in cohorts for run in cohort.runs)
    if machine.device.type == "cuda":
        # A stacked step costs little more than that of a single run.
        by_stack = [[run for run in c.runs if run.T == T] for c in cohorts for T in {run.T for run in c.runs}]
        units = sum(max(relative_cost(run) for run in stack) for stack in by_stack)
    return seconds_per_unit * units / machine.workers / 3600
