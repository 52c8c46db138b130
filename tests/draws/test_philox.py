"""Philox against the known answers of its authors' Random123, and the numbers made of its bits."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from pipeline.draws.philox import normal, permutation, philox4x32, stream_key, uniform

ONES = 0xFFFFFFFF
BITS = [
    "0x1.100b820000000p-1",
    "0x1.0549f00000000p+0",
    "-0x1.d695ae0000000p-3",
    "0x1.f29e400000000p-1",
    "-0x1.d566200000000p-1",
    "-0x1.878f780000000p+0",
    "-0x1.515ea00000000p-2",
    "0x1.6294980000000p-1",
]
DIGEST = "7c40c63cf93c8a48"
"""Of numbers that `normal` made; the compiled step makes the same."""


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    k0, k1 = (torch.tensor(word) for word in key)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


def keys(*seeds: int) -> torch.Tensor:
    return torch.tensor([stream_key(seed, "noise") for seed in seeds])


def test_draws_depend_on_stream_and_index_alone() -> None:
    together = normal(10, keys(0, 1), torch.tensor([5, 5]))
    assert torch.equal(together[1:], normal(10, keys(1), torch.tensor([5])))
    assert torch.equal(together[:1, :7], normal(7, keys(0), torch.tensor([5])))
    others = [normal(10, keys(0), torch.tensor([6])), together[1:], normal(10, keys(0), torch.tensor([5 + 2**32]))]
    assert not any(torch.isclose(together[:1], other).any() for other in others)


def test_distributions() -> None:
    count = 400_000
    u = uniform(count, keys(0), torch.tensor([3]))[0].double()
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * count))
    z = normal(count, keys(0), torch.tensor([3]))[0].double()
    assert torch.isfinite(z).all()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float((z**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(spread / count)), power
    # Neighbours, which share a counter, are independent.
    for lag in (1, 2, 3):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(count)
    cdf = torch.special.ndtr(z.sort().values)
    assert float((cdf - torch.linspace(0, 1, count).double()).abs().max()) < 1.95 / math.sqrt(count)


def test_normal_is_box_and_muller_of_the_words() -> None:
    """In float64, from the same words: the polynomials of the float32 ones are good to their last bits."""
    count = 40_000
    u = uniform(count, keys(0), torch.tensor([3]))[0].double().view(-1, 2)
    radius, angle = torch.sqrt(-2 * torch.log(1 - u[:, 0])), 2 * math.pi * u[:, 1]
    expected = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1).flatten()
    torch.testing.assert_close(normal(count, keys(0), torch.tensor([3]))[0].double(), expected, rtol=0, atol=2e-6)


def test_normal_has_these_bits() -> None:
    """A trajectory depends on every bit: another rounding anywhere, and a run goes another way."""
    drawn = normal(8, keys(0), torch.tensor([3]))[0]
    assert [float(value).hex() for value in drawn] == BITS
    digest = hashlib.sha256(normal(100_000, keys(1), torch.tensor([2**33 + 5])).numpy().tobytes()).hexdigest()
    assert digest[:16] == DIGEST


def test_part_of_a_draw() -> None:
    for draw in (uniform, normal):
        whole = draw(61, keys(0, 1), torch.tensor([5, 6]))
        assert torch.equal(draw(21, keys(0, 1), torch.tensor([5, 6]), first=40), whole[:, 40:])


def test_permutations() -> None:
    orders = permutation(5000, keys(0, 0, 1), torch.tensor([0, 1, 0]))
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(5000))
    words = uniform(5000, keys(0), torch.tensor([0]))[0]
    # The upper 24 bits of the words that the order sorts.
    assert bool((words[orders[0]].diff() >= 0).all())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert int((orders[one] == orders[other]).sum()) < 10
