"""Which images an evaluation takes."""

from __future__ import annotations

import pytest

from pipeline.evaluation.spacing import evenly_spaced


def test_subset_is_spread_over_the_test_set() -> None:
    assert evenly_spaced(10_000, 100).tolist() == list(range(0, 10_000, 100))
    assert evenly_spaced(7, None).tolist() == list(range(7))


@pytest.mark.parametrize("total", [8070, 10_000])
def test_the_images_of_a_waypoint_on_the_way_are_among_those_of_the_end(total: int) -> None:
    assert set(evenly_spaced(total, 1000)) <= set(evenly_spaced(total, 2000)) <= set(evenly_spaced(total, None))
