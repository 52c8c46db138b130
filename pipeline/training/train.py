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
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.log_weights import Forward, backward, forward
from pipeline.models.networks import Parameters, initial_weights
from pipeline.objectives import OBJECTIVES, Objective, Weights, elbo, iwae_bound_over_all
from pipeline.schedule import history_steps, learning_rate, stage_ends
from pipeline.spec import BATCH_SIZE, RunSpec
from pipeline.training.batches import Batches
from pipeline.training.optimizer import adam_ascent, second_moment_start
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

STEPS_BETWEEN_CHECKS = 10


class Interrupted(Exception):
    """Training was asked to stop; every run's state is on disk."""


@dataclass(frozen=True)
class Progress:
    """What the trainer tells while it works: rows are new history points, in `HISTORY_COLUMNS` order."""

    run: str
    step: int
    rows: list[list[float]]
    finished: bool = False


@dataclass(frozen=True)
class Estimator:
    """Neighbours in a stack that share one objective with the same M, K and parameter."""

    objective: Objective
    args: tuple[float, ...]
    M: int
    K: int
    members: slice

    def grouped(self, log_w: Tensor) -> Tensor:
        """Their part of [R, T, B] as [M, K, members * B]."""
        own = log_w[self.members].unflatten(1, (self.M, self.K))
        grouped: Tensor = own.permute(1, 2, 0, 3).flatten(2)
        return grouped

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """The inverse: [members, T, B]."""
        count = self.members.stop - self.members.start
        by_member: Tensor = grouped.unflatten(2, (count, -1)).permute(2, 0, 1, 3)
        return by_member.flatten(1, 2)


def estimator_key(run: RunSpec) -> tuple[str, int, int, float]:
    """Runs with equal keys are weighed together; a stack is sorted by it."""
    return run.objective, run.M, run.K, run.parameter or 0.0


def estimators(runs: list[RunSpec]) -> list[Estimator]:
    """The stretches of equal estimators in a sorted stack."""
    found = []
    for _, stretch in groupby(enumerate(runs), lambda item: estimator_key(item[1])):
        members = list(stretch)
        first, run = members[0]
        args = () if run.parameter is None else (run.parameter,)
        found.append(Estimator(OBJECTIVES[run.objective], args, run.M, run.K, slice(first, first + len(members))))
    return found


def weigh(groups: list[Estimator], log_w: Tensor, scale: Tensor) -> tuple[Weights, Tensor]:
    """The weights of each sample of a stack, [R, T, B], times `scale` [R, 1, 1]; and each image's bound, [R, B]."""
    weights, bounds = [], []
    for group in groups:
        own = group.grouped(log_w)
        weights.append(group.objective.weights(own, *group.args))
        bounds.append(group.objective.bound(own, *group.args).unflatten(0, (-1, log_w.shape[2])))

    def joined(parts: list[Tensor]) -> Tensor:
        rows = [group.ungrouped(part) for group, part in zip(groups, parts, strict=True)]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)) * scale

    path = joined([w.path for w in weights])
    # One tensor for equal parts: the backward pass skips work when it is given one for path and score.
    theta = path if all(w.theta is w.path for w in weights) else joined([w.theta for w in weights])
    score = path if all(w.score is w.path for w in weights) else joined([w.score for w in weights])
    return Weights(theta, path, score), bounds[0] if len(bounds) == 1 else torch.cat(bounds)


class Stack:
    """R runs in lockstep: their states as one set of [R, ...] buffers on the device."""

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor) -> None:
        self.runs = runs
        self.dtype = torch.float64 if runs[0].precision == "float64" else torch.float32
        device = images.device
        torch.backends.cuda.matmul.allow_tf32 = runs[0].precision == "tf32"

        def stacked(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).to(device, self.dtype)

        self.parameters = Parameters(runs[0].latent, stacked([s.flat for s in states]))
        self.m, self.v = stacked([s.m for s in states]), stacked([s.v for s in states])
        self.sums = torch.stack([s.sums for s in states]).to(device)
        self.summed = [s.summed for s in states]
        self.earlier = [s.earlier_steps for s in states]
        self.step = states[0].step
        self.protocols = [run.protocol for run in runs]
        self.batches = Batches(runs, images, self.dtype)
        self.groups = estimators(runs)
        per_image = [1 / BATCH_SIZE if p.gradient == "mean" else 1.0 for p in self.protocols]
        self.scale = torch.tensor(per_image, dtype=self.dtype, device=device).view(-1, 1, 1)

    def advance(self, steps: int) -> None:
        """Make so many updates of every run."""
        for _ in range(steps):
            self.update()

    def update(self) -> None:
        positions = [earlier + self.step for earlier in self.earlier]
        x, eps = self.batches.images(positions), self.batches.noise(positions)
        f = forward(self.parameters, x, eps, backward_follows=True)
        weights, bound = weigh(self.groups, f.log_w, self.scale)
        gradient = backward(self.parameters, f, weights).pieces(self.parameters.latent)
        rates = [learning_rate(run, self.step) for run in self.runs]
        counts = [position + 1 for position in positions]
        adam_ascent(self.parameters.flat, self.m, self.v, gradient, self.protocols, rates, counts)
        self.sums += curve_terms(f, bound)
        self.summed = [count + 1 for count in self.summed]
        self.step += 1

    def write_back(self, states: list[RunState]) -> None:
        """Copy each run's part of the buffers into its state."""
        for r, state in enumerate(states):
            state.step, state.summed = self.step, self.summed[r]
            # Cloned: safetensors refuses tensors that share memory, and the stack goes on changing its own.
            state.flat, state.m, state.v = (t[r].clone() for t in (self.parameters.flat, self.m, self.v))
            state.sums = self.sums[r].cpu().clone()

    def take_history_point(self, r: int, state: RunState, seconds: float) -> list[float]:
        """Close the running averages of run `r` into a row of its history."""
        run = self.runs[r]
        averages = (self.sums[r] / max(self.summed[r], 1)).tolist()
        rate = learning_rate(run, self.step - 1)
        row = [float(self.step), self.step / run.steps_per_epoch, rate, seconds, *averages]
        state.history.append(row)
        self.sums[r] = 0
        self.summed[r] = 0
        if state.diverged_at is None and not np.isfinite(averages).all():
            state.diverged_at = self.step
        return row


def curve_terms(f: Forward, bound: Tensor) -> Tensor:
    """The averaged history columns of one step, [R, 4] float64: bound, ELBO, IWAE over all T, log p(x | h1)."""
    by_sample = f.log_w.transpose(0, 1).unsqueeze(1)
    columns = (bound, elbo(by_sample), iwae_bound_over_all(by_sample), f.log_px.mean(1))
    return torch.stack([column.mean(1) for column in columns], dim=1).double()


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
) -> None:
    """Train the jobs as one stack, each from its checkpoint or its start, and write their run directories.

    `images`: [N, 784] uint8 on the device to train on. `facts` goes into every run.json beside what is measured here.
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
        _train_lockstep(group, [states[job.digest] for job in group], until, images, report, stop, checkpoint_seconds)
        for job in group:
            if states[job.digest].step == job.spec.total_steps:
                _finish(job, states.pop(job.digest), images.device, facts)
                report(Progress(job.spec.name, job.spec.total_steps, [], finished=True))


def _train_lockstep(
    jobs: list[Job],
    states: list[RunState],
    until: int,
    images: Tensor,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> None:
    """Advance runs that stand at the same step to update number `until`."""
    order = sorted(range(len(jobs)), key=lambda i: estimator_key(jobs[i].spec))
    jobs, states = [jobs[i] for i in order], [states[i] for i in order]
    stack = Stack([job.spec for job in jobs], states, images)
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
            stack.advance(min(event - stack.step, STEPS_BETWEEN_CHECKS))
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
