"""Minibatches: which images a run sees at a step, binarized anew at every visit."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.randomness import Randomness
from pipeline.spec import BATCH_SIZE, RunSpec


class Batches:
    """Draws the batches of a stack of runs from images kept once, as uint8, on the device."""

    def __init__(self, runs: list[RunSpec], images: Tensor, dtype: torch.dtype) -> None:
        """`images`: [N, 784] uint8 grey values; those of a fixed binarization are 0 and 255 and never change."""
        self._runs = runs
        self._images = images
        self._dtype = dtype
        self._randomness = Randomness(images.device)
        self._epoch_order: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def _indices(self, run: RunSpec, step: int) -> Tensor:
        epoch, batch = divmod(step, run.steps_per_epoch)
        window = slice(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
        if not run.protocol.shuffle:
            return torch.arange(window.start, window.stop, device=self._images.device)
        key = (run.seed, run.train_images)
        if self._epoch_order.get(key, (None,))[0] != epoch:
            order = self._randomness.permutation(run.train_images, run.seed, "order", epoch)
            self._epoch_order[key] = (epoch, order)
        return self._epoch_order[key][1][window]

    def images(self, steps: list[int]) -> Tensor:
        """The binarized batches of all runs, [R, 20, 784] in {0, 1}; `steps` gives each run's update number.

        Runs that agree on seed, order and step share the draw.
        """
        drawn: dict[tuple[int, bool, int, int], Tensor] = {}
        keys = [(r.seed, r.protocol.shuffle, r.train_images, step) for r, step in zip(self._runs, steps, strict=True)]
        for run, step, key in zip(self._runs, steps, keys, strict=True):
            if key not in drawn:
                grey = self._images[self._indices(run, step)].to(torch.float32) / 255
                uniform = self._randomness.uniform(tuple(grey.shape), run.seed, "binarization", step)
                drawn[key] = (uniform < grey).to(self._dtype)
        return _stacked([drawn[key] for key in keys])

    def noise(self, steps: list[int]) -> list[Tensor]:
        """Standard normal noise of each stochastic layer, [R, T, 20, units]; one draw for runs of one seed and step."""
        layers = []
        for l, units in enumerate(self._runs[0].latent):
            drawn: dict[tuple[int, int], Tensor] = {}
            for run, step in zip(self._runs, steps, strict=True):
                if (run.seed, step) not in drawn:
                    shape = (run.T, BATCH_SIZE, units)
                    noise = self._randomness.normal(shape, run.seed, f"noise{l + 1}", step)
                    drawn[run.seed, step] = noise.to(self._dtype)
            pairs = zip(self._runs, steps, strict=True)
            layers.append(_stacked([drawn[run.seed, step] for run, step in pairs]))
        return layers


def _stacked(parts: list[Tensor]) -> Tensor:
    """Parts along a new leading axis, without a copy where all are one."""
    if all(part is parts[0] for part in parts):
        return parts[0].expand(len(parts), *parts[0].shape)
    return torch.stack(parts)
