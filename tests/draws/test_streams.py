"""Streams against the generator itself: where a number stands, whatever part of a draw is asked for."""

from __future__ import annotations

import pytest
import torch

from pipeline.draws.philox import normal, permutation, stream_key, uniform
from pipeline.draws.streams import Stream

CPU = torch.device("cpu")
KEYS = torch.tensor([stream_key(3, "noise1")])


def test_a_draw_is_a_function_of_seed_purpose_and_index() -> None:
    stream = Stream(3, "noise1", CPU)
    stream.uniform(0, (100,))
    assert torch.equal(stream.normal(7, (3, 5)), normal(15, KEYS, torch.tensor([7])).view(3, 5))
    assert torch.equal(stream.uniform(7, (3, 5)), uniform(15, KEYS, torch.tensor([7])).view(3, 5))
    assert torch.equal(stream.permutation(7, 30), permutation(30, KEYS, torch.tensor([7]))[0])
    expected = stream.normal(7, (15,))
    for other in (Stream(4, "noise1", CPU).normal(7, (15,)), Stream(3, "noise2", CPU).normal(7, (15,))):
        assert not torch.isclose(other, expected).any()
    assert not torch.isclose(stream.normal(8, (15,)), expected).any()


def test_draws_of_many_indices_are_those_of_each() -> None:
    stream = Stream(3, "noise1", CPU)
    indices = torch.tensor([5, 2**33 + 1, 0])
    for rows, draw in ((stream.normals, stream.normal), (stream.uniforms, stream.uniform)):
        together = rows(indices, (3, 7))
        for row, index in zip(together, indices.tolist(), strict=True):
            assert torch.equal(row, draw(index, (3, 7)))


@pytest.mark.parametrize("units", [1, 2, 5, 50])
@pytest.mark.parametrize("skipped", [0, 1, 3, 4, 50])
def test_skipping_rows_leaves_the_others_as_they_are(units: int, skipped: int) -> None:
    stream, indices = Stream(3, "noise1", CPU), torch.tensor([5, 6])
    whole = stream.normals(indices, (skipped + 9, units))
    assert torch.equal(stream.normals(indices, (9, units), skipped=skipped), whole[:, skipped:])
