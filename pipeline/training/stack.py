"""A stack: R runs that advance in lockstep, their states as one set of [R, ...] buffers on one device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pipeline.experiments.schedule import learning_rate
from pipeline.experiments.spec import RunSpec
from pipeline.records.run_folder import RunState


@dataclass(frozen=True)
class Buffers:
    """All that updates change, in place."""

    flat: Tensor
    m: Tensor
    v: Tensor
    """Weights and Adam's moments, [R, count]."""
    sums: Tensor
    """Totals of the curve's columns since the last history point, [R, 5] float64."""
    counter: Tensor
    """[] int64: updates made. On the device, since batches, noise and Adam's constants are functions of it."""

    @staticmethod
    def of(runs: list[RunSpec], states: list[RunState], device: torch.device) -> Buffers:
        dtype = torch.float64 if runs[0].precision == "float64" else torch.float32

        def stacked(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).to(device, dtype)

        return Buffers(
            stacked([state.flat for state in states]),
            stacked([state.m for state in states]),
            stacked([state.v for state in states]),
            torch.stack([state.sums for state in states]).to(device),
            torch.tensor(states[0].step, device=device),
        )

    def clone(self) -> Buffers:
        return Buffers(*(getattr(self, field.name).clone() for field in fields(self)))

    def copy_(self, other: Buffers) -> None:
        """Take over the values of others of the same shapes."""
        for name in (field.name for field in fields(self)):
            getattr(self, name).copy_(getattr(other, name))


class Stack(ABC):
    """What the trainer asks of a stack. Each engine is a final subclass that makes the updates in its own way.

    All of them make the same updates, from the same random numbers: those of `pipeline.training.update.Update`.
    """

    engine: str
    """How its updates are made, for run.json."""
    steps_between_checks: int
    """The most that `advance` is to be asked for at once: the trainer looks up in between."""

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor) -> None:
        """`images`: the training images [N, 784] uint8, on the device to train on."""
        self.runs = runs
        self._buffers = Buffers.of(runs, states, images.device)
        self.step = states[0].step
        self.earlier = [state.earlier_steps for state in states]
        self._summed = [state.summed for state in states]

    @property
    def buffers(self) -> Buffers:
        """What has come of all updates so far. Ask again after `advance`: an engine may keep its state elsewhere."""
        return self._buffers

    @abstractmethod
    def advance(self, steps: int) -> None:
        """Make so many updates of every run, and count them."""

    def load(self, states: list[RunState]) -> None:
        """Go on from these states, of the same runs."""
        self.buffers.copy_(Buffers.of(self.runs, states, self.buffers.flat.device))
        self.step = states[0].step
        self._summed = [state.summed for state in states]

    def _count(self, steps: int) -> None:
        self.step += steps
        self._summed = [count + steps for count in self._summed]

    def write_back(self, states: list[RunState]) -> None:
        """Copy each run's part of the buffers into its state."""
        for r, state in enumerate(states):
            state.step, state.summed = self.step, self._summed[r]
            # Cloned: safetensors refuses tensors that share memory, and the stack goes on changing its own.
            state.flat, state.m, state.v = (t[r].clone() for t in (self.buffers.flat, self.buffers.m, self.buffers.v))
            state.sums = self.buffers.sums[r].cpu().clone()

    def take_history_point(self, r: int, state: RunState, seconds: float) -> list[float]:
        """Close the running averages of run `r` into a row of its history."""
        run = self.runs[r]
        averages = (self._buffers.sums[r] / max(self._summed[r], 1)).tolist()
        rate = learning_rate(run, self.step - 1)
        row = [float(self.step), self.step / run.steps_per_epoch, rate, seconds, *averages]
        state.history.append(row)
        self._buffers.sums[r] = 0
        self._summed[r] = 0
        if state.diverged_at is None and not np.isfinite(averages).all():
            state.diverged_at = self.step
        return row
