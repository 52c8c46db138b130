"""The schedule against numbers worked out by hand from Burda et al., section 5, and from the authors' code."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from pipeline.experiments.schedule import burda_schedule, history_steps, learning_rate, stage_ends, waypoint_steps
from tests.conftest import make_run


def test_milestones_are_cumulative_powers_of_three() -> None:
    run = make_run(train_images=59_600, max_steps=None)
    assert run.steps_per_epoch == 2980
    assert [end // 2980 for end in stage_ends(run)] == [1, 4, 13, 40, 121, 364, 1093, 3280]
    assert run.total_steps == 3280 * 2980


@pytest.mark.parametrize(("images", "steps"), [(60_000, 3000), (23_000, 1150), (24_345, 1217), (50_000, 2500)])
def test_leftover_images_are_dropped(images: int, steps: int) -> None:
    assert make_run(train_images=images).steps_per_epoch == steps


def test_rates_of_the_code_and_of_the_paper() -> None:
    rounded = [stage.learning_rate for stage in burda_schedule(rounded=True)]
    assert rounded == pytest.approx([1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4], rel=1e-12)
    exact = [stage.learning_rate for stage in burda_schedule(rounded=False)]
    assert exact[1] == pytest.approx(7.196856730011521e-4)
    assert exact[7] == pytest.approx(1e-4)


def test_rate_changes_after_the_last_step_of_a_stage() -> None:
    run = make_run(train_images=200, max_steps=None)
    assert [learning_rate(run, step) for step in (0, 9, 10, 39, 40)] == pytest.approx(
        [1e-3, 1e-3, 7.2e-4, 7.2e-4, 5.2e-4]
    )


def test_max_steps_cuts_the_schedule() -> None:
    run = make_run(train_images=200, max_steps=35)
    assert run.total_steps == 35
    assert stage_ends(run) == [10]


@pytest.mark.parametrize("images", [200, 23_000, 59_600])
def test_history_points_are_the_same_at_every_depth(images: int) -> None:
    whole = make_run(train_images=images, max_steps=None)
    every = history_steps(whole)
    assert every[-1] == whole.total_steps
    assert len(every) <= 227
    assert set(stage_ends(whole)) <= set(every)
    # Dense: a tenth of the way so far, or less.
    assert all(later <= earlier + max(1, 0.1 * earlier) for earlier, later in pairwise(every))
    for depth in (1, 7, 80, 300, 500, 600, 999, 1000, 40 * whole.steps_per_epoch, 123_456):
        shallow = replace(whole, max_steps=depth)
        assert history_steps(shallow) == [step for step in every if step <= shallow.total_steps]
    assert {80, 300, 500, 600, 1000} <= set(every)


def test_waypoints_are_the_ends_of_stages_the_depth_and_others_on_the_way() -> None:
    run = make_run(train_images=200, max_steps=100)
    assert waypoint_steps(run) == [10, 40, 100]
    assert waypoint_steps(run, (0, 25, 100, 4_000)) == [10, 25, 40, 100]
    assert waypoint_steps(replace(run, max_steps=40), (41,)) == [10, 40]
