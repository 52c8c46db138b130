"""A stack whose updates are made one by one in torch, on any device and in any precision."""

from __future__ import annotations

from typing import final

from torch import Tensor

from pipeline.experiments.choices import PLAIN
from pipeline.experiments.spec import RunSpec
from pipeline.models.products import torch_in_tf32
from pipeline.records.run_folder import RunState
from pipeline.training.stack import Stack
from pipeline.training.update import Update


@final
class PlainStack(Stack):
    """The oracle of the other engines, and what runs where none of them does."""

    engine = PLAIN
    steps_between_checks = 10

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor) -> None:
        super().__init__(runs, states, images)
        self._update = Update(runs, self.buffers, self.earlier, images)

    def advance(self, steps: int) -> None:
        with torch_in_tf32(self.runs[0].precision == "tf32"):
            for count in self._update.stretches(self.step, steps):
                for _ in range(count):
                    self._update()
        self._count(steps)
