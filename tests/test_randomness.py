from __future__ import annotations

import torch

from pipeline.randomness import Randomness, stream_seed

CPU = torch.device("cpu")


def test_draws_depend_on_seed_purpose_and_index_not_on_history() -> None:
    first, second = Randomness(CPU), Randomness(CPU)
    expected = first.normal((5,), 3, "noise1", 7)
    second.uniform((100,), 0, "anything", 0)
    assert torch.equal(second.normal((5,), 3, "noise1", 7), expected)
    for other in ((4, "noise1", 7), (3, "noise2", 7), (3, "noise1", 8)):
        assert not torch.equal(second.normal((5,), *other), expected)


def test_no_two_steps_of_a_stream_share_a_seed() -> None:
    seeds = {stream_seed(0, "noise1", index) for index in range(200_000)}
    assert len(seeds) == 200_000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_neighbouring_steps_are_uncorrelated() -> None:
    randomness = Randomness(CPU)
    rows = torch.stack([randomness.normal((1000,), 0, "noise1", step) for step in range(200)])
    products = (rows[1:] * rows[:-1]).mean(1)
    # Each mean of 1000 products has standard deviation 1 / sqrt(1000).
    assert products.abs().max() < 5 / 1000**0.5
    assert abs(products.mean()) < 4 / (1000 * 199) ** 0.5
    assert abs(rows.mean()) < 4 / rows.numel() ** 0.5
    assert abs(rows.square().mean() - 1) < 4 * (2 / rows.numel()) ** 0.5
