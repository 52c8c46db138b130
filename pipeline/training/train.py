"""The trainer: a stack of runs from where they stand to their ends.

Runs of a stack share shapes (dataset, depth, T) and nothing else: objective, seed, protocol and learning rate are per
run, and a run's numbers depend on its neighbours by no more than rounding.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data.datasets import DatasetFacts
from pipeline.experiments.choices import AUTO
from pipeline.experiments.schedule import history_steps
from pipeline.models.gradient import estimator_key
from pipeline.models.networks import initial_weights
from pipeline.records.facts import Conditions, Given, Stretch, TrainingFacts
from pipeline.records.run_folder import (
    HISTORY_COLUMNS,
    Job,
    RunState,
    checkpoint_path,
    checkpoint_step,
    continued_state,
    heal,
    save_checkpoint,
    stored_state,
    write_waypoint,
)
from pipeline.training.engines import stack_for
from pipeline.training.optimizer import second_moment_start
from pipeline.training.stack import Stack
from pipeline.work.interruption import Interrupted
from pipeline.work.locks import Busy, locked

REPORT_SECONDS = 2.0
"""How often runs tell how far they are between two points of their curves, which lie far apart late in training."""


@dataclass(frozen=True)
class Progress:
    """What the trainer tells while it works: rows are new history points, in `HISTORY_COLUMNS` order."""

    run: str
    step: int
    rows: list[list[float]]
    finished: bool = False


def initial_state(job: Job, images: Tensor) -> RunState:
    """Update 0: new weights, or those of the run that this one continues. `images`: grey, [N, 784] uint8."""
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
    facts: Given,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    checkpoint_seconds: float,
    engine: str = AUTO,
    wait_seconds: float | None = 0.0,
) -> None:
    """Train the jobs as one stack, each from its deepest state in the store or its start, to its depth.

    `images`: [N, 784] uint8 on the device to train on. `facts` goes into every run.json beside what is measured here.
    `engine`: how updates are made, as of `stack_for`.
    `wait_seconds`: for each run that another process trains; None where the caller holds the runs' locks.
    Runs that stand at different steps (after a kill between two checkpoints) train apart until they meet.

    Raises: Interrupted, with all states on disk, soon after `stop()` turns true; Busy, when all others are done, where
    another process trains one of the runs.
    """
    with ExitStack() as locks:
        claimed, busy = _claimed(jobs, locks, wait_seconds)
        states: dict[str, RunState] = {}
        for job in claimed:
            state = stored_state(job) or initial_state(job, images)
            state.started = state.started or _now()
            _begin_stretch(state, _conditions(facts, len(claimed), images.device))
            states[job.digest] = state
            report(Progress(job.spec.name, state.step, list(state.history)))
        while waiting := [job for job in claimed if job.digest in states]:
            group, until = _next_group(waiting, states)
            together = [states[job.digest] for job in group]
            stack = stack_for([job.spec for job in group], together, images, engine)
            for state in together:
                state.stretches[-1]["engine"] = stack.engine
            _Lockstep(stack, group, together, facts.get("data"), report, stop, checkpoint_seconds).advance_to(until)
            for job in group:
                if states[job.digest].step == job.spec.total_steps:
                    del states[job.digest]
                    report(Progress(job.spec.name, job.spec.total_steps, [], finished=True))
    if busy:
        raise Busy("\n".join(busy))


def _claimed(jobs: list[Job], locks: ExitStack, wait_seconds: float | None) -> tuple[list[Job], list[str]]:
    """The unfinished runs of these jobs whose locks `locks` now holds; and a line for each that another process has."""
    claimed, busy = [], []
    # Two names may be one trajectory: it is trained once.
    for job in {job.digest: job for job in jobs}.values():
        try:
            if wait_seconds is not None:
                locks.enter_context(run_lock(job, wait_seconds))
        except Busy as error:
            busy.append(str(error))
            continue
        heal(job)
        if not job.is_finished:
            claimed.append(job)
    return claimed, busy


def _next_group(waiting: list[Job], states: dict[str, RunState]) -> tuple[list[Job], int]:
    """The runs that are furthest behind, and the update to take them to: where they meet others, or one ends."""
    low = min(states[job.digest].step for job in waiting)
    group = [job for job in waiting if states[job.digest].step == low]
    ahead = [states[job.digest].step for job in waiting if states[job.digest].step > low]
    until = min([*ahead, *(job.spec.total_steps for job in group)])
    return sorted(group, key=lambda job: estimator_key(job.spec)), until


def run_lock(job: Job, wait_seconds: float) -> AbstractContextManager[None]:
    """Keeps every other process from training a run; the worker that trains it holds it.

    Raises: Busy naming the process that has it.
    """
    return locked(job.folder.parent / "locks" / f"{job.digest}.lock", f"{job.spec.name} ({job.digest})", wait_seconds)


class _Lockstep:
    """Takes the runs of a stack from event to event: points of their curves, and waypoints."""

    def __init__(
        self,
        stack: Stack,
        jobs: list[Job],
        states: list[RunState],
        data: DatasetFacts | None,
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
        checkpoint_seconds: float,
    ) -> None:
        self._stack, self._jobs, self._states, self._data = stack, jobs, states, data
        self._report, self._stop, self._checkpoint_seconds = report, stop, checkpoint_seconds
        self._points = [set(history_steps(job.spec)) for job in jobs]
        self._waypoints = [set(job.waypoints) for job in jobs]
        self._checkpoints = [checkpoint_path(job) for job in jobs]
        self._before = [(state.seconds, state.stretches[-1]["wall_s"]) for state in states]
        self._start = self._last_checkpoint = self._last_report = time.monotonic()

    def advance_to(self, until: int) -> None:
        """Make the updates up to number `until`.

        Raises: Interrupted, with all states on disk, soon after `stop()` turns true.
        """
        stack, ends = self._stack, {job.spec.total_steps for job in self._jobs}
        ahead = set().union(*self._points, *self._waypoints)
        for event in sorted({step for step in ahead if stack.step < step <= until} | {until}):
            while stack.step < event:
                stack.advance(min(event - stack.step, stack.steps_between_checks))
                # At the event itself its files and points come first: a state on disk has none outstanding.
                if stack.step < event:
                    self._pause()
            self._keep(event)
            if event not in ends:
                self._pause()
        if any(stack.step < end for end in ends):
            self._checkpoint()

    def _keep(self, event: int) -> None:
        """Take the points and write the waypoints that are due after update number `event`."""
        took = time.monotonic() - self._start
        rows = [
            [self._stack.take_history_point(r, state, self._before[r][0] + took)] if event in self._points[r] else []
            for r, state in enumerate(self._states)
        ]
        if any(event in steps for steps in self._waypoints):
            self._bring_up_to_date()
        every = zip(self._jobs, self._states, self._waypoints, self._checkpoints, strict=True)
        for job, state, steps, path in every:
            if event in steps:
                write_waypoint(job, state, training_facts(job, state, self._data))
                if checkpoint_step(path) <= event:
                    path.unlink(missing_ok=True)
        for job, new in zip(self._jobs, rows, strict=True):
            if new:
                self._report(Progress(job.spec.name, event, new))

    def _bring_up_to_date(self) -> None:
        """Have in the states what the stack holds, and how long it took."""
        self._stack.write_back(self._states)
        took = time.monotonic() - self._start
        for state, (seconds, wall) in zip(self._states, self._before, strict=True):
            state.seconds = seconds + took
            state.stretches[-1].update({"to": state.step, "wall_s": round(wall + took, 3), "finished": _now()})
            if state.diverged_at is None and not bool(torch.isfinite(state.flat).all()):
                state.diverged_at = state.step

    def _checkpoint(self) -> None:
        self._bring_up_to_date()
        for job, state, path in zip(self._jobs, self._states, self._checkpoints, strict=True):
            save_checkpoint(path, state, job.digest)

    def _pause(self) -> None:
        """Look up from the work: whether to stop, to save, to tell how far it is."""
        if self._stop():
            self._checkpoint()
            raise Interrupted
        now = time.monotonic()
        if now - self._last_checkpoint > self._checkpoint_seconds:
            self._checkpoint()
            self._last_checkpoint = time.monotonic()
        if now - self._last_report > REPORT_SECONDS:
            self._last_report = now
            for job in self._jobs:
                self._report(Progress(job.spec.name, self._stack.step, []))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _conditions(facts: Given, stacked: int, device: torch.device) -> Conditions:
    """`facts`: what the caller tells of them, and the data, which is kept once a run, not once a stretch."""
    measured = {
        "stacked": stacked,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return cast(Conditions, {**{key: value for key, value in facts.items() if key != "data"}, **measured})


def _begin_stretch(state: RunState, conditions: Conditions) -> None:
    """Training goes on here: in the last stretch where all is as it was then, else in one of its own."""
    times = ("from", "to", "wall_s", "started", "finished", "engine")
    if state.stretches and {k: v for k, v in state.stretches[-1].items() if k not in times} == conditions:
        return
    opened: Stretch = {"from": state.step, "to": state.step, "wall_s": 0.0, "started": _now(), "finished": _now()}
    state.stretches.append({**conditions, **opened})


def training_facts(job: Job, state: RunState, data: DatasetFacts | None) -> TrainingFacts:
    """How a run came to where it is."""
    last = cast(TrainingFacts, {name: told for name, told in state.stretches[-1].items() if name not in ("from", "to")})
    facts: TrainingFacts = {
        **last,
        "steps": state.step,
        "epochs": state.step / job.spec.steps_per_epoch,
        "wall_s": round(state.seconds, 3),
        "started": state.started,
        "stretches": state.stretches,
    }
    if data is not None:
        facts["data"] = data
    return facts


def history_rows(rows: list[list[float]]) -> list[dict[str, float]]:
    """The rows of a training curve by column."""
    return [dict(zip(HISTORY_COLUMNS, row, strict=True)) for row in rows]
