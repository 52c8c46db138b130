"""Random numbers made where they are used: Philox4x32-10 (Salmon et al. 2011), a counter-based generator.

A draw is a function of (key, index): of a stream's name and the number of the draw within it, which in training is the
update's number. No draw needs another one first, and nothing is kept between two.

The numbers are exact, on every device and in the compiled step alike:

- Words. Element `4 e + i` of a draw is made of word `i` of the counter (e, 0, index mod 2^32, index div 2^32) under the
  stream's key. Philox works on integers, so its words are the same everywhere.
- `uniform` is a word's upper 24 bits times 2^-24, which float32 holds exactly.
- `permutation` sorts range(count) by (word, number), so that equal words keep their order.
- `normal` is Box and Muller (1958) on pairs of words, in float32: its logarithm, sine and cosine are the polynomials
  below, of separately rounded sums, differences and products, and IEEE 754 fixes the bits of these and of the square
  root. Code that fuses a product with a sum (`torch.compile` does, on a GPU) may differ in the last bits.

Both are tensors, so the same captured CUDA graph, replayed, draws new numbers: a counter on the device is the index.
Integers below 2^32 are kept in int64.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Cephes' float32 polynomials (Moshier 1989), the highest power first. Hexadecimal: these are the very bits.
_LOG = tuple(
    float.fromhex(digits)
    for digits in (
        "0x1.2043760p-4",
        "-0x1.d7a3700p-4",
        "0x1.de4a340p-4",
        "-0x1.fcba9e0p-4",
        "0x1.23d37e0p-3",
        "-0x1.555ca00p-3",
        "0x1.999d580p-3",
        "-0x1.fffff80p-3",
        "0x1.5555540p-2",
    )
)
_SIN = tuple(float.fromhex(digits) for digits in ("-0x1.9943f20p-13", "0x1.11073c0p-7", "-0x1.5555460p-3"))
_COS = tuple(float.fromhex(digits) for digits in ("0x1.99eb9c0p-16", "-0x1.6c0c340p-10", "0x1.55554a0p-5"))
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.63p-1"), float.fromhex("-0x1.bd0106p-13")
_HALF_PI = float.fromhex("0x1.921fb6p+0")
_ROOT_HALF_BITS = 0x3F3504F3
_ONE_BITS = 0x3F800000
_MANTISSA = 0x7FFFFF


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


def uniform(count: int, keys: Tensor, index: Tensor, first: int = 0) -> Tensor:
    """`count` numbers on [0, 1) for each of S streams, [S, count] float32.

    `keys`: [S, 2] int64 as from `stream_key`. `index`: [S] int64, the number of the draw within its stream.
    `first`: elements first ... first + count - 1 of the draw are made, those before it are not; a multiple of 4.
    """
    return _interleaved(
        [_upper_bits(word).to(torch.float32) * 2.0**-24 for word in _words(count, keys, index, first)], count
    )


def normal(count: int, keys: Tensor, index: Tensor, first: int = 0) -> Tensor:
    """Like `uniform`, standard normal numbers: the module's text says how they are made."""
    w0, w1, w2, w3 = _words(count, keys, index, first)
    parts = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        # With u = bits / 2^24 in [0, 1), 1 - u lies in (0, 1]: its logarithm is finite.
        radius = _square_root(_log_of_share((1 << 24) - _upper_bits(radius_word)) * -2.0)
        sine, cosine = _sine_and_cosine(_upper_bits(angle_word))
        parts += [radius * cosine, radius * sine]
    return _interleaved(parts, count)


def permutation(count: int, keys: Tensor, index: Tensor) -> Tensor:
    """A random order of range(count) for each of S streams, [S, count] int64; arguments as of `uniform`."""
    words = _interleaved(_words(count, keys, index, 0), count)
    return torch.argsort(words, dim=1, stable=True)


def _words(count: int, keys: Tensor, index: Tensor, first: int) -> list[Tensor]:
    """Four tensors [S, ceil(count / 4)] of 32-bit words."""
    assert first % 4 == 0, first
    element = torch.arange(first // 4, first // 4 - (-count // 4), device=keys.device).unsqueeze(0)
    low, high = index.unsqueeze(1) & _MASK, index.unsqueeze(1) >> 32
    counter = (element, torch.zeros_like(element), low, high)
    return list(philox4x32(counter, (keys[:, :1], keys[:, 1:])))


def _interleaved(parts: list[Tensor], count: int) -> Tensor:
    """Four tensors [S, n] as [S, count]: element 4 e + i is number e of part i."""
    return torch.stack(parts, dim=-1).flatten(1)[:, :count]


def _upper_bits(word: Tensor) -> Tensor:
    return word >> 8


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """By Horner's rule, each product and each sum rounded to float32."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _log_of_share(n: Tensor) -> Tensor:
    """log(n / 2^24), float32, for int64 n in [1, 2^24]."""
    bits = n.to(torch.float32).view(torch.int32) + (_ONE_BITS - _ROOT_HALF_BITS)
    # n = 2^exponent * (1 + f) with 1 + f from sqrt(1/2) up to sqrt(2).
    exponent = ((bits >> 23) - (127 + 24)).to(torch.float32)
    f = ((bits & _MANTISSA) + _ROOT_HALF_BITS).view(torch.float32) - 1.0
    square = f * f
    tail = _polynomial(_LOG, f) * f * square + exponent * _LN2_LOW
    return exponent * _LN2_HIGH + (f + (tail - square * 0.5))


def _square_root(x: Tensor) -> Tensor:
    """Correctly rounded. torch's own in float32 comes from a library that is now and then one bit off; one bit of
    float64 is too little to turn the rounding to float32, since no root of a float32 lies so near to a tie."""
    return x.double().sqrt().float()


def _sine_and_cosine(n: Tensor) -> tuple[Tensor, Tensor]:
    """sin and cos of 2 pi n / 2^24, float32, for int64 n in [0, 2^24)."""
    quarter = (n + (1 << 21)) >> 22
    f = (n - (quarter << 22)).to(torch.float32) * 2.0**-22 * _HALF_PI
    square = f * f
    sine = _polynomial(_SIN, square) * square * f + f
    cosine = _polynomial(_COS, square) * square * square + (1.0 - square * 0.5)
    odd = (quarter & 1) == 1
    # At quarter turns 0, 1, 2, 3: sin is s, c, -s, -c and cos is c, -s, -c, s.
    sine, cosine = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    return torch.where((quarter & 2) == 2, -sine, sine), torch.where(((quarter + 1) & 2) == 2, -cosine, cosine)
