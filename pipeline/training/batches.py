"""What a stack of runs sees at an update: the images of its batches, binarized anew, and the noise of its samples.

All of it is a function of the update's number, a tensor on the device, so that the same code runs update by update and
inside a CUDA graph. `pipeline.draws.streams` says how the numbers are laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.draws.philox import normal, stream_key, uniform
from pipeline.draws.streams import Stream
from pipeline.experiments.spec import BATCH_SIZE, RunSpec


class Classes(NamedTuple):
    """Runs of a stack by what they share: C classes of runs with equal (seed, earlier updates, ...)."""

    keys: dict[str, Tensor]
    """The classes' streams by purpose, [C, 2]; see `pipeline.draws.philox`."""
    earlier: Tensor
    """[C]: updates made before number 0, by the runs that these continue."""
    of_run: Tensor
    """[R]: each run's class."""

    def for_runs(self, drawn: Tensor) -> Tensor:
        """[C, ...] -> [R, ...], without a copy where all is one."""
        if drawn.shape[0] == 1:
            return drawn.expand(len(self.of_run), *drawn.shape[1:])
        return drawn[self.of_run]


def _classes(of_runs: Sequence[tuple[int, ...]], purposes: list[str], device: torch.device) -> Classes:
    """`of_runs`: each run's (seed, earlier updates, whatever else tells draws apart)."""
    distinct = list(dict.fromkeys(of_runs))
    keys = {
        purpose: torch.tensor([stream_key(seed, purpose) for seed, *_ in distinct], device=device)
        for purpose in purposes
    }
    earlier = torch.tensor([earlier for _, earlier, *_ in distinct], device=device)
    return Classes(keys, earlier, torch.tensor([distinct.index(run) for run in of_runs], device=device))


class Batches:
    """Draws the batches and the noise of a stack of runs, on the device of the images."""

    def __init__(self, runs: list[RunSpec], earlier: list[int], images: Tensor, dtype: torch.dtype) -> None:
        """`images`: [N, 784] uint8 grey values; those of a fixed binarization are 0 and 255 and never change.

        `earlier`: by run, the updates made before number 0 by the run that it continues.
        """
        self._images, self._dtype = images, dtype
        self._latent, self._samples = runs[0].latent, runs[0].T
        by_run = list(zip(runs, earlier, strict=True))
        purposes = [f"noise{l}" for l in range(1, len(self._latent) + 1)]
        self._noise = _classes([(run.seed, before) for run, before in by_run], purposes, images.device)
        batches = [(run.seed, before, run.train_images, int(run.protocol.shuffle)) for run, before in by_run]
        self._batch = _classes(batches, ["binarization"], images.device)
        self._orders = Orders(list(dict.fromkeys(batches)), images.device)

    @property
    def most_at_once(self) -> int:
        """Number of updates that may be prepared at once."""
        return self._orders.shortest_epoch

    def prepare(self, step: int, steps: int) -> None:
        """Have on the device what updates step ... step + steps - 1 need, at most `most_at_once` of them."""
        self._orders.load(step, steps)

    def images(self, step: Tensor) -> Tensor:
        """The binarized batches of all runs at update number `step` [], [R, 20, 784] in {0, 1}.

        Runs that agree on seed, order and update share the draw.
        """
        position = step + self._batch.earlier
        grey = self._images[self._orders.indices(position)].to(torch.float32) / 255
        u = uniform(BATCH_SIZE * PIXELS, self._batch.keys["binarization"], position).view_as(grey)
        return self._batch.for_runs((u < grey).to(self._dtype))

    def noise(self, step: Tensor) -> list[Tensor]:
        """Standard normal noise of each stochastic layer, [R, T, 20, units]; runs of one seed and update share it."""
        position = step + self._noise.earlier
        layers = []
        for units, keys in zip(self._latent, self._noise.keys.values(), strict=True):
            shape = (len(keys), self._samples, BATCH_SIZE, units)
            drawn = normal(self._samples * BATCH_SIZE * units, keys, position).view(shape)
            layers.append(self._noise.for_runs(drawn.to(self._dtype)))
        return layers


class Orders:
    """The order of the training images in the current and the next epoch, of each class of runs, on the device."""

    def __init__(self, classes: Sequence[tuple[int, int, int, int]], device: torch.device) -> None:
        """`classes`: (seed, earlier updates, training images, whether shuffled) each."""
        self._classes = classes
        per_epoch = [count // BATCH_SIZE for _, _, count, _ in classes]
        self.shortest_epoch = min(per_epoch)
        self._per_epoch = torch.tensor(per_epoch, device=device)
        self._order = torch.zeros(len(classes), 2, max(count for _, _, count, _ in classes), device=device).long()
        self._epochs: dict[tuple[int, int], int] = {}
        self._window = torch.arange(BATCH_SIZE, device=device)
        self._rows = torch.arange(len(classes), device=device)

    def load(self, step: int, steps: int) -> None:
        """Have the orders of updates step ... step + steps - 1 on the device; they may touch two epochs."""
        for c, (seed, earlier, count, shuffled) in enumerate(self._classes):
            length = count // BATCH_SIZE
            for epoch in {(earlier + step) // length, (earlier + step + steps - 1) // length}:
                if self._epochs.get((c, epoch % 2)) == epoch:
                    continue
                self._order[c, epoch % 2, :count] = epoch_order(seed, epoch, count, bool(shuffled), self._order.device)
                self._epochs[c, epoch % 2] = epoch

    def indices(self, position: Tensor) -> Tensor:
        """The images of a batch, [C, 20]; `position`: each class's number of the update, [C]."""
        epoch = position // self._per_epoch
        batch = position - epoch * self._per_epoch
        return self._order[self._rows, epoch % 2].gather(1, batch.unsqueeze(1) * BATCH_SIZE + self._window)


def epoch_order(seed: int, epoch: int, count: int, shuffled: bool, device: torch.device) -> Tensor:
    """The order in which an epoch visits the first `count` training images, [count] int64."""
    return Stream(seed, "order", device).permutation(epoch, count) if shuffled else torch.arange(count, device=device)
