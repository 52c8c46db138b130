"""Philox against the known answers of its authors' Random123, and the numbers made of its bits."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.models.philox import normal, philox4x32, stream_key, uniform

ONES = 0xFFFFFFFF


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
