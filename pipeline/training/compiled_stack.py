"""A stack on a CPU whose runs make their updates one after the other, each in one call of the compiled step."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.philox import stream_key
from pipeline.experiments.spec import BATCH_SIZE, RunSpec
from pipeline.models import compiled_step
from pipeline.models.compiled_step import CompiledModel, Rounding, Updates
from pipeline.records.run_folder import RunState
from pipeline.training.batches import epoch_order
from pipeline.training.coefficients import coefficients
from pipeline.training.optimizer import AdamConstants, AdamSchedule
from pipeline.training.stack import Buffers, Stack
from pipeline.training.update import image_weights

_SAMPLES_BETWEEN_CHECKS = 500
"""Samples an image: a tenth of a second or so."""
MODEL_STATE = ("flat", "m", "v")
_ROUNDING = {
    "float32": Rounding(),
    "tf32": Rounding(),
    "bfloat16-backward": Rounding(backward=True),
    "bfloat16": Rounding(forward=True, backward=True),
}
"""By precision; on a CPU tf32 is float32."""


def why_not_compiled(runs: list[RunSpec]) -> str | None:
    """Why these runs cannot be trained by the compiled step here; None where they can."""
    for run in runs:
        if run.precision not in _ROUNDING:
            return f"it computes in float32, and {run.name} asks for {run.precision}"
    library = compiled_step.library()
    if isinstance(library, str):
        return library
    if any(_ROUNDING[run.precision] != Rounding() for run in runs) and not compiled_step.rounds_to_bfloat16():
        return "this processor has no instruction that multiplies bfloat16"
    for run in runs:
        if coefficients(run.objective, run.parameter, run.M, run.K) is None:
            return f"it has no terms for the weights of {run.objective}"
    return None


@final
class CompiledStack(Stack):
    """Makes the updates of `Update` in C; weights and moments are copied into `buffers` when these are asked for."""

    engine = "compiled step"

    def __init__(
        self,
        runs: list[RunSpec],
        states: list[RunState],
        images: Tensor,
        least_weight: float = compiled_step.LEAST_WEIGHT,
    ) -> None:
        """`least_weight`: samples whose weights are all smaller are left out of the backward pass."""
        super().__init__(runs, states, images)
        self._is_behind = False
        self._images = images.contiguous()
        self._adam = AdamSchedule(runs, self.earlier, images.device)
        scales = image_weights(runs, self.buffers.flat).flatten().tolist()
        self._models = [_model(run, scale, least_weight) for run, scale in zip(runs, scales, strict=True)]
        self._orders = [ImageOrder(run) for run in runs]
        self.steps_between_checks = max(10, _SAMPLES_BETWEEN_CHECKS // max(run.T for run in runs))
        self._hand_over()

    @property
    def buffers(self) -> Buffers:
        if self._is_behind:
            for r, model in enumerate(self._models):
                for name in MODEL_STATE:
                    model.get(name, getattr(self._buffers, name)[r])
            self._is_behind = False
        return self._buffers

    def load(self, states: list[RunState]) -> None:
        super().load(states)
        self._hand_over()

    def _hand_over(self) -> None:
        """Have the models go on from what is in `buffers`."""
        for r, model in enumerate(self._models):
            for name in MODEL_STATE:
                model.put(name, getattr(self.buffers, name)[r])

    def advance(self, steps: int) -> None:
        constants = self._adam.at(torch.arange(self.step, self.step + steps))
        for r, model in enumerate(self._models):
            updates = self._updates(r, steps, constants)
            self._buffers.sums[r] += torch.from_numpy(model.advance(self._images, updates))
        self._is_behind = True
        self._buffers.counter.add_(steps)
        self._count(steps)

    def _updates(self, r: int, steps: int, constants: AdamConstants) -> Updates:
        run, position = self.runs[r], self.earlier[r] + self.step
        purposes = ["binarization", *(f"noise{l}" for l in range(1, len(run.latent) + 1))]
        return Updates(
            position,
            self._orders[r].of(position, steps),
            constants.sizes[r].float().numpy(),
            constants.eps[r].expand(steps).float().numpy(),
            run.protocol.adam_beta1,
            run.protocol.adam_beta2,
            run.protocol.adam_lagged,
            np.array([stream_key(run.seed, purpose) for purpose in purposes], dtype=np.uint32),
        )


def _model(run: RunSpec, scale: float, least_weight: float) -> CompiledModel:
    terms = coefficients(run.objective, run.parameter, run.M, run.K)
    assert terms is not None, run.objective
    return CompiledModel(run.latent, run.M, run.K, scale, terms, _ROUNDING[run.precision], least_weight)


class ImageOrder:
    """Which images a run takes at an update, by the update's number; the order of one epoch is kept."""

    def __init__(self, run: RunSpec) -> None:
        self._run = run
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def of(self, position: int, steps: int) -> NDArray[np.int64]:
        """[steps, 20]: the images of updates `position` ... position + steps - 1."""
        parts = []
        while steps > 0:
            epoch, batch = divmod(position, self._run.steps_per_epoch)
            count = min(steps, self._run.steps_per_epoch - batch)
            parts.append(self._in_epoch(epoch)[batch * BATCH_SIZE : (batch + count) * BATCH_SIZE])
            position, steps = position + count, steps - count
        return np.concatenate(parts).reshape(-1, BATCH_SIZE)

    def _in_epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch[0] != epoch:
            run = self._run
            order = epoch_order(run.seed, epoch, run.train_images, run.protocol.shuffle, torch.device("cpu"))
            self._epoch = epoch, order.numpy()
        return self._epoch[1]
