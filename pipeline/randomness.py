"""Random numbers as a function of (seed, purpose, index), not of history.

Anything drawn at step t can be drawn again alone: resuming needs no generator state, and a run gets the same numbers
solo or in a stack. Numbers agree between runs of one device type, not between CPU and CUDA.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """A 32-bit seed, different for every index of one (seed, purpose): torch's CPU generator takes no more bits."""
    base = zlib.crc32(f"{seed}/{purpose}".encode())
    # MurmurHash3's finalizer: a bijection that spreads neighbouring indices.
    x = (base + index) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


class Randomness:
    """Draws on one device, from one torch generator that is seeded anew for every draw."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device)
        self._device = device

    def _seeded(self, seed: int, purpose: str, index: int) -> torch.Generator:
        return self._generator.manual_seed(stream_seed(seed, purpose, index))

    def normal(self, shape: tuple[int, ...], seed: int, purpose: str, index: int) -> Tensor:
        """Standard normal, float32."""
        return torch.randn(shape, generator=self._seeded(seed, purpose, index), device=self._device)

    def uniform(self, shape: tuple[int, ...], seed: int, purpose: str, index: int) -> Tensor:
        """Uniform on [0, 1), float32."""
        return torch.rand(shape, generator=self._seeded(seed, purpose, index), device=self._device)

    def permutation(self, count: int, seed: int, purpose: str, index: int) -> Tensor:
        """A permutation of range(count), int64."""
        return torch.randperm(count, generator=self._seeded(seed, purpose, index), device=self._device)
