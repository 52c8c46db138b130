"""Images as evaluations see them: binarized once, and each known by its number, which names its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream


@dataclass(frozen=True)
class Images:
    """Binarized images of a training or test set, on one device."""

    bits: Tensor
    """[N, 784] in {0, 1}, float."""
    numbers: Tensor
    """Their rows in the whole set, [N] int64."""

    @staticmethod
    def of(bits: NDArray[np.uint8], numbers: NDArray[np.int64], device: torch.device) -> Images:
        """The rows `numbers` [N] of `bits`, a whole set's binarization [M, 784] in {0, 1}."""
        return Images(torch.from_numpy(bits[numbers]).float().to(device), torch.from_numpy(numbers).to(device))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: NDArray[np.int64]) -> Images:
        chosen = torch.from_numpy(rows).to(self.numbers.device)
        return Images(self.bits[chosen], self.numbers[chosen])

    def split(self, size: int) -> Iterator[Images]:
        """Their parts of at most `size` images, in order."""
        parts = zip(self.bits.split(size), self.numbers.split(size), strict=True)
        return (Images(bits, numbers) for bits, numbers in parts)


def binarize_once(
    grey: NDArray[np.uint8], numbers: NDArray[np.int64], seed: int, purpose: str, device: torch.device
) -> Images:
    """One Bernoulli draw of the rows `numbers` [N] of grey images [M, 784]; a fixed binarization (0 and 255) stays.

    An image's bits are a function of (seed, purpose, its number), on any device and whichever others are drawn.
    """
    chosen = torch.from_numpy(numbers).to(device)
    values = torch.from_numpy(grey[numbers]).to(device).float() / 255
    uniform = Stream(seed, f"bits/{purpose}", device).uniforms(chosen, (values.shape[1],))
    return Images((uniform < values).float(), chosen)


def binarization_of_test_set(
    common: NDArray[np.uint8],
    grey: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    which: int,
    seed: int,
    device: torch.device,
) -> Images:
    """The rows `numbers` [N] of a test set's binarization number `which`, from 0.

    Number 0 is the one that all results are of: `common`, [M, 784] in {0, 1}. The others are drawn from `grey`,
    [M, 784], in the streams (seed, "bits/test <which>").
    """
    if which == 0:
        return Images.of(common, numbers, device)
    return binarize_once(grey, numbers, seed, f"test {which}", device)
