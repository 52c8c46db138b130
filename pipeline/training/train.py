"""The trainer: a stack of runs from where they stand to their ends.

Runs of a stack share shapes (dataset, depth, T) and nothing else: objective, seed, protocol and learning rate are per
run, and a run's numbers depend on its neighbours by no more than rounding.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.networks import initial_weights
from pipeline.schedule import history_steps, stage_ends
from pipeline.training.device_stack import stack_for
from pipeline.training.optimizer import second_moment_start
from pipeline.training.stack import Stack, estimator_key
from pipeline.training.state import (
    CHECKPOINT,
    HISTORY_COLUMNS,
    Job,
    RunState,
    continued_state,
    finish_run,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)


class Interrupted(Exception):
    """Training was asked to stop; every run's state is on disk."""


@dataclass(frozen=True)
class Progress:
    """What the trainer tells while it works: rows are new history points, in `HISTORY_COLUMNS` order."""

    run: str
    step: int
    rows: list[list[float]]
    finished: bool = False


def initial_state(job: Job, images: Tensor) -> RunState:
    if job.continues is not None:
        return continued_state(job)
    run = job.spec
    mean = images[: run.train_images].cpu().numpy().mean(0, dtype=np.float64) / 255
    flat = initial_weights(run.latent, run.protocol, run.seed, mean)
    moments = second_moment_start([run.protocol], flat.unsqueeze(0))[0]
    return RunState(0, flat, torch.zeros_like(flat), moments)


def train(
    jobs: list[Job],
    images: Tensor,
    facts: dict[str, Any],
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
    engine: str = "auto",
) -> None:
    """Train the jobs as one stack, each from its checkpoint or its start, and write their run directories.

    `images`: [N, 784] uint8 on the device to train on. `facts` goes into every run.json beside what is measured here.
    `engine`: on a GPU, how updates are run: a key of `device_stack.ENGINES`, or `auto` for the first that works.
    Runs that stand at different steps (after a kill between two checkpoints) train apart until they meet.

    Raises: Interrupted, with all states on disk, soon after `stop()` turns true.
    """
    states: dict[str, RunState] = {}
    for job in jobs:
        if job.is_finished:
            continue
        state = load_checkpoint(job.folder / CHECKPOINT) or initial_state(job, images)
        state.started = state.started or datetime.now(UTC).isoformat(timespec="seconds")
        states[job.digest] = state
        report(Progress(job.spec.name, state.step, list(state.history)))
    while waiting := [job for job in jobs if job.digest in states]:
        low = min(states[job.digest].step for job in waiting)
        group = [job for job in waiting if states[job.digest].step == low]
        ahead = [states[job.digest].step for job in waiting if states[job.digest].step > low]
        until = min([*ahead, *(job.spec.total_steps for job in group)])
        group.sort(key=lambda job: estimator_key(job.spec))
        own = [states[job.digest] for job in group]
        stack = stack_for([job.spec for job in group], own, images, engine)
        _train_lockstep(stack, group, own, until, report, stop, checkpoint_seconds)
        for job in group:
            if states[job.digest].step == job.spec.total_steps:
                _finish(job, states.pop(job.digest), images.device, {**facts, "engine": stack.engine})
                report(Progress(job.spec.name, job.spec.total_steps, [], finished=True))


def _train_lockstep(
    stack: Stack,
    jobs: list[Job],
    states: list[RunState],
    until: int,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> None:
    """Advance the runs of a stack to update number `until`."""
    points = [set(history_steps(job.spec)) for job in jobs]
    ends = [stage_ends(job.spec) for job in jobs]
    events = sorted({step for step in set().union(*points, *map(set, ends)) if stack.step < step <= until} | {until})
    before = [state.seconds for state in states]
    start = last_checkpoint = time.monotonic()

    def checkpoint() -> None:
        stack.write_back(states)
        for job, state, seconds in zip(jobs, states, before, strict=True):
            state.seconds = seconds + time.monotonic() - start
            save_checkpoint(job.folder / CHECKPOINT, state)

    def pause() -> None:
        nonlocal last_checkpoint
        if stop():
            checkpoint()
            raise Interrupted
        if time.monotonic() - last_checkpoint > checkpoint_seconds:
            checkpoint()
            last_checkpoint = time.monotonic()
            for job in jobs:
                report(Progress(job.spec.name, stack.step, []))

    for event in events:
        while stack.step < event:
            stack.advance(min(event - stack.step, stack.steps_between_checks))
            # At the event itself its files and points come first: a state on disk has none outstanding.
            if stack.step < event:
                pause()
        for r, (job, state) in enumerate(zip(jobs, states, strict=True)):
            if event in ends[r]:
                path = job.folder / f"stage-{ends[r].index(event)}.safetensors"
                save_weights(path, job.spec.latent, stack.parameters.flat[r])
            if event in points[r]:
                row = stack.take_history_point(r, state, before[r] + time.monotonic() - start)
                report(Progress(job.spec.name, stack.step, [row]))
        pause()
    checkpoint()


def _finish(job: Job, state: RunState, device: torch.device, facts: dict[str, Any]) -> None:
    measured = {
        "steps": state.step,
        "epochs": state.step / job.spec.steps_per_epoch,
        "wall_s": round(state.seconds, 3),
        "started": state.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    finish_run(job, state, {**facts, **measured})


def history_rows(rows: list[list[float]]) -> list[dict[str, float]]:
    return [dict(zip(HISTORY_COLUMNS, row, strict=True)) for row in rows]
