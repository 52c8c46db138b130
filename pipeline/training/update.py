"""One update of a stack in torch: the definition that every engine is held to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.experiments.spec import BATCH_SIZE, RunSpec
from pipeline.models.gradient import estimator_groups, gradient_estimate
from pipeline.models.networks import Parameters
from pipeline.models.products import Arithmetic
from pipeline.training.batches import Batches
from pipeline.training.optimizer import AdamSchedule, adam_ascent
from pipeline.training.stack import Buffers


def image_weights(runs: list[RunSpec], like: Tensor) -> Tensor:
    """What each image of a batch counts in its run's gradient, [R, 1, 1]: 1 / 20 for the mean, 1 for the sum."""
    weights = [1 / BATCH_SIZE if run.protocol.gradient == "mean" else 1.0 for run in runs]
    return torch.tensor(weights, dtype=like.dtype, device=like.device).view(-1, 1, 1)


class Update:
    """Makes an update of every run when it is called, in place on `buffers`.

    Batch, noise, learning rates and Adam's constants are functions of a counter on the device: nothing is left for the
    host to do between two updates, so that an update, or many, can be captured as one CUDA graph and replayed.
    """

    def __init__(
        self,
        runs: list[RunSpec],
        buffers: Buffers,
        earlier: list[int],
        images: Tensor,
        fused_output: bool = False,
    ) -> None:
        """`earlier`: by run, the updates that the run made which it continues. `images`: as of `Stack`.

        `fused_output`: as of `pipeline.models.products.Arithmetic`.
        """
        self._arithmetic = Arithmetic.of(runs[0].precision, fused_output)
        self._latent = runs[0].latent
        self._buffers = buffers
        self._batches = Batches(runs, earlier, images, buffers.flat.dtype)
        self._adam = AdamSchedule(runs, earlier, images.device)
        self._groups = estimator_groups(runs)
        self._scale = image_weights(runs, buffers.flat)

    def stretches(self, step: int, steps: int) -> Iterator[int]:
        """Cut updates step ... step + steps - 1 into stretches, and prepare what each needs before it is made."""
        # No further than an epoch at once: two epochs' orders are on the device at a time.
        longest = self._batches.most_at_once
        for done in range(0, steps, longest):
            count = min(longest, steps - done)
            self._batches.prepare(step + done, count)
            yield count

    def __call__(self) -> None:
        buffers = self._buffers
        # Made anew from the buffer: torch.compile would take views kept from outside for inputs of their buffers.
        p = Parameters(self._latent, buffers.flat, self._arithmetic)
        x, eps = self._batches.images(buffers.counter), self._batches.noise(buffers.counter)
        gradient, terms = gradient_estimate(p, x, eps, self._groups, self._scale)
        adam_ascent(
            buffers.flat, buffers.m, buffers.v, gradient.pieces(self._latent), self._adam.at(buffers.counter.view(1))
        )
        buffers.sums.add_(terms)
        buffers.counter.add_(1)
