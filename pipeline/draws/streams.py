"""Streams: random numbers named by (seed, purpose), then by the index of a draw, then by the element within it.

Every number that training or evaluation draws is in this table, and is the same on every device and however the work
is cut into batches, passes or processes. `l` counts the stochastic layers from 1; "image" is an image's row number in
the whole training or test set, so that an estimate of some images alone repeats the numbers of an estimate of all.

    purpose                   index                 elements, the last one running fastest
    ------------------------  --------------------  ------------------------------------------------
    order                     epoch                 permutation of the training images
    binarization              update                20 images of the batch x 784 pixels (uniform)
    noise<l>                  update                T samples x 20 images x units of layer l
    likelihood<l>             image                 samples x units of layer l
    active units<l>           image                 units of layer l
    bits/<what for>           image                 784 pixels (uniform): an image binarized once
    decoded/<what for>        image                 samples x units of layer 1
    samples<l>                sample                units of layer l
    snr<l>                    gradient              T samples x images of the batch x units of layer l
    snr batch/images, /bits   gradient              20 images of a fresh batch; these x 784 pixels (uniform)
    toy <what>                0                     the parameters and the data of the Gaussian toy
    toy noise <T>             gradient              points x T samples x dimensions
    ais .../...               transition, image     see `pipeline.evaluation.ais.ChainNoise`
    ais simulated/u, /bits    image                 units of all layers; 784 pixels (uniform)
    reader ...                0, epoch, update      see `pipeline.evaluation.classifier.train_reader`

Updates are counted from the start of the trajectory. Initial weights are NumPy's (`pipeline.models.networks`), and so
is the one draw of the test bits that is part of a dataset (`pipeline.data.prepare`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.draws import philox


class Stream:
    """The numbers of one (seed, purpose), made on `device`."""

    def __init__(self, seed: int, purpose: str, device: torch.device) -> None:
        self._keys = torch.tensor([philox.stream_key(seed, purpose)], device=device)

    def normal(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Draw number `index`: standard normal numbers of this shape, float32."""
        return philox.normal(math.prod(shape), self._keys, self._index(index)).view(shape)

    def uniform(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Draw number `index`: numbers on [0, 1) of this shape, float32."""
        return philox.uniform(math.prod(shape), self._keys, self._index(index)).view(shape)

    def permutation(self, index: int, count: int) -> Tensor:
        """Draw number `index`: an order of range(count), [count] int64."""
        return philox.permutation(count, self._keys, self._index(index))[0]

    def normals(self, indices: Tensor, shape: tuple[int, ...], skipped: int = 0) -> Tensor:
        """A draw for each of `indices` [N] int64, [N, *shape] float32, without the first `skipped` rows of `shape`.

        That is, draws of shape (skipped + shape[0], ...) of which the last shape[0] rows are made.
        """
        first = skipped * math.prod(shape[1:])
        aligned = first - first % 4
        drawn = philox.normal(first - aligned + math.prod(shape), self._keys, indices, aligned)
        return drawn[:, first - aligned :].reshape(len(indices), *shape)

    def uniforms(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A draw for each of `indices` [N] int64: numbers on [0, 1), [N, *shape] float32."""
        return philox.uniform(math.prod(shape), self._keys, indices).view(len(indices), *shape)

    def _index(self, index: int) -> Tensor:
        return torch.tensor([index], device=self._keys.device)
