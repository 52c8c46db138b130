"""Training a cohort: which of its runs form a stack on this device, on how many processes, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.datasets import load_dataset
from pipeline.device import Machine
from pipeline.interruption import stop_requested
from pipeline.spec import CohortSpec, RunSpec
from pipeline.training.device_stack import stack_for
from pipeline.training.state import Job
from pipeline.training.train import Progress, initial_state, train
from pipeline.workers import run_parallel

TIMED_STEPS = 5
FIXED_SHARE = 7
"""What a step costs apart from its samples, in samples: 1.2 ms at T = 1 and 8.9 ms at T = 50 were measured."""


def stacks(jobs: list[Job], machine: Machine) -> list[list[Job]]:
    """One stack for a GPU, which fewer runs leave idle; on a CPU each run alone, the longest first."""
    if machine.device.type == "cuda":
        return [jobs]
    return [[job] for job in sorted(jobs, key=lambda job: -relative_cost(job.spec))]


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
    facts: dict[str, Any],
) -> None:
    images = device_images(data, machine.device)
    facts = {**facts, "stacked": len(jobs)}
    train(jobs, images, facts, send, stop_requested, machine.checkpoint_seconds, machine.engine)


def train_jobs(
    jobs: list[Job],
    data: Path,
    machine: Machine,
    facts: dict[str, Any],
    on_progress: Callable[[Progress], None],
    started: Callable[[], None],
) -> None:
    """Train all unfinished jobs of a cohort. `data`: the binarized dataset's folder; `facts` goes into every run.json.

    Raises: UserError with what went wrong in each stack that failed; Stopped after SIGINT or SIGTERM.
    """
    task = partial(_train_stack, data=data, machine=machine, facts=facts)
    waiting = stacks([job for job in jobs if not job.is_finished], machine)
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
        units = sum(max(relative_cost(run) for run in cohort.runs) for cohort in cohorts)
    return seconds_per_unit * units / machine.workers / 3600
