"""The schedule against numbers worked out by hand from Burda et al., section 5, and from the authors' code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.schedule import burda_schedule, history_steps, learning_rate, stage_ends
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


def test_history_ends_at_the_last_step_and_stays_small() -> None:
    for total in (1, 7, 1000, 9_774_400):
        run = replace(make_run(train_images=59_600), max_steps=total)
        points = history_steps(run)
        assert points[-1] == total
        assert len(points) <= 220
        assert set(stage_ends(run)) <= set(points)
