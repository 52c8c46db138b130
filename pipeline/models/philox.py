"""Random numbers made where they are used: Philox4x32-10 (Salmon et al. 2011), a counter-based generator.

A draw is a function of (key, index), both tensors, so the same captured CUDA graph, replayed, draws new numbers: the
update's number, a counter on the device, is the index. Integers below 2^32 are kept in int64.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits for each counter of four words, under a key of two; all broadcast, int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products wrap modulo 2^64; the mask takes away the sign that the shift spreads.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK
        c2, c3 = ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def stream_key(seed: int, purpose: str) -> tuple[int, int]:
    """The two words that name a stream of numbers."""
    return zlib.crc32(f"{seed}/{purpose}".encode()), zlib.crc32(f"{purpose}/{seed}".encode())


def _words(count: int, keys: Tensor, index: Tensor) -> list[Tensor]:
    """Four tensors [S, ceil(count / 4)] of 32-bit words; see `uniform`."""
    element = torch.arange(-(-count // 4), device=keys.device).unsqueeze(0)
    low, high = index.unsqueeze(1) & _MASK, index.unsqueeze(1) >> 32
    counter = (element, torch.zeros_like(element), low, high)
    return list(philox4x32(counter, (keys[:, :1], keys[:, 1:])))


def _unit(word: Tensor) -> Tensor:
    """A word's upper 24 bits as a float32 in [0, 1)."""
    return (word >> 8).to(torch.float32) * 2.0**-24


def uniform(count: int, keys: Tensor, index: Tensor) -> Tensor:
    """`count` numbers on [0, 1) for each of S streams, [S, count] float32.

    `keys`: [S, 2] int64 as from `stream_key`. `index`: [S] int64, the number of the draw within its stream.
    """
    return torch.stack([_unit(word) for word in _words(count, keys, index)], dim=-1).flatten(1)[:, :count]


def normal(count: int, keys: Tensor, index: Tensor) -> Tensor:
    """Like `uniform`, standard normal numbers by Box and Muller (1958)."""
    w0, w1, w2, w3 = _words(count, keys, index)
    parts = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        # 1 - u lies in (0, 1]: its logarithm is finite.
        radius = torch.sqrt(-2 * torch.log(1 - _unit(radius_word)))
        angle = 2 * math.pi * _unit(angle_word)
        parts += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(parts, dim=-1).flatten(1)[:, :count]
