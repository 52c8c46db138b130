"""Which waypoint predicts the end: differences to the end, the order of the cells, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.spacing import evenly_spaced
from pipeline.records.results import RunResult
from pipeline.reporting.evidence import waypoints as evidence
from pipeline.reporting.evidence.waypoints import agreement, agrees_from, nll_gaps, rank_correlation, ways
from pipeline.reporting.forms.drawing import Figure
from pipeline.reporting.page import build_report, gathered
from pipeline.reporting.sections import waypoints
from tests.reporting.conftest import deepened, fabricate_paper

Make = Callable[..., RunResult]
TOTAL = 100


def of_so_many(run: RunResult) -> RunResult:
    """The run on a test set of 100 images, all of them at its end and every fifth on the way."""
    rows = evenly_spaced(TOTAL, 20)
    early = tuple(
        replace(
            waypoint, arrays={"log_p_hat": waypoint.arrays["log_p_hat"][:TOTAL][rows]}, metrics={**waypoint.metrics}
        )
        for waypoint in run.waypoints
    )
    arrays = {**run.arrays, "log_p_hat": run.arrays["log_p_hat"][:TOTAL]}
    training = {**run.training, "data": {"counts": {"test_images": TOTAL}}}
    return replace(run, training=training, arrays=arrays, waypoints=early)


def raise_nll(run: RunResult, place: int, by: float) -> None:
    """A run's NLL at one of its waypoints, on every image."""
    waypoint = run.waypoints[place]
    waypoint.metrics["nll"] += by
    waypoint.arrays["log_p_hat"] = waypoint.arrays["log_p_hat"] - by


def test_a_difference_to_the_end_is_of_the_images_that_both_evaluations_have(make: Make) -> None:
    run = of_so_many(deepened(make("vae", nll=90.0), 40))
    first, *_, end = evidence.at_waypoints(run)
    gaps = nll_gaps(first, end)
    assert gaps is not None
    # The difference is the same on every image, whose own NLL have a standard deviation of 15 nats.
    assert gaps.shape == (20,)
    assert np.allclose(gaps, 60 - 60 / 40**0.5)
    (way,) = ways([run])
    assert [one.epochs for one in way.passed] == [1, 4, 13, 40]
    assert way.passed[0].nll_gap is not None
    assert way.passed[0].nll_gap.value == pytest.approx(60 - 60 / 40**0.5)
    assert way.passed[0].nll_gap.se == pytest.approx(0, abs=1e-9)
    # Nobody knows which images they were where the test set's size is not told.
    untold = replace(run, training={})
    assert nll_gaps(*[evidence.at_waypoints(untold)[i] for i in (0, -1)]) is None


def test_only_cells_at_their_ends_with_waypoints_count_and_a_shared_run_once(make: Make) -> None:
    done, on_their_way = fabricate_paper()
    assert len(ways(done)) == 3
    shared = replace(done[0], cohort="paper/every-objective-mnist-1L-T1", experiment="every-objective")
    assert len(ways([*done, shared])) == 3
    assert ways([make("vae")]) == []
    continued = deepened(make("iwae", 1, 50, continues="quick/burda-table1-mnist-1L-T1/vae-M1-K1-s0"), 40)
    assert ways([continued]) == []
    (one,) = ways([deepened(make("vae", seed=seed, nll=90.0 + seed), 40) for seed in (0, 1)])
    assert one.passed[-1].nll == pytest.approx(90.5)
    text = waypoints.section(gathered(done, "paper", Path("none"), under_way=on_their_way))
    (table,) = [table for table in text.tables if table.name == "waypoint_series"]
    assert list(table.display.columns) == ["run", "1", "4", "13", "40", "121", "364", "1,093", "3,280"]
    rows = table.display.set_index("run")
    assert rows.loc["VAE(1, 1), seed 0", "3,280"] == "86.70 (19)"
    assert rows.loc["IWAE(1, 5), seed 0", "364"] == "87.70 (19)"
    assert rows.loc["IWAE(1, 5), seed 0", "1,093"] == "–"


def test_the_order_of_cells_is_compared_within_a_dataset_from_three_cells_on(make: Make) -> None:
    runs = [deepened(make("iwae", 1, k, nll=90.0 - i), 40) for i, k in enumerate((1, 5, 50))]
    # After one epoch the best is the worst.
    raise_nll(runs[2], 0, 10.0)
    known = ways(runs)
    agreed = agreement(known, 1)
    assert agreed is not None
    assert (agreed.cells, agreed.units) == (3, None)
    assert agreed.nll == pytest.approx(-0.5)
    assert agreement(known, 4) == replace(agreed, nll=pytest.approx(1.0))
    assert agreement(known[:2], 4) is None
    assert agrees_from(known, 0.9) == 4
    # What agreed once and then no more predicts nothing.
    raise_nll(runs[2], 2, 10.0)
    assert agrees_from(ways(runs), 0.9) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    other = deepened(make("vae", dataset="omniglot", nll=120.0), 40)
    assert list(waypoints.by_dataset(ways([other, *runs]))) == ["mnist", "omniglot"]


def test_it_says_how_far_and_how_little_one_cell_says(make: Make) -> None:
    vae = deepened(make("vae", nll=86.7, units=(19,)), 3280)
    vae.waypoints[-1].metrics["active_units_1"] = 21
    gap = 60 / 1093**0.5 - 60 / 3280**0.5
    assert waypoints.statement(ways([vae])) == (
        f"After 1,093 of 3,280 epochs the one cell at its end (MNIST, 1 layer, VAE(1, 1)) stood +{gap:.2f} nats and "
        "+2 active units from the end; one cell says nothing of the others."
    )
    iwae = deepened(make("iwae", 1, 5, nll=85.5, units=(19,)), 3280)
    raise_nll(iwae, -1, 0.5)
    assert waypoints.statement(ways([vae, iwae])) == (
        f"After 1,093 of 3,280 epochs 2 cells on MNIST stood +{gap:.2f} to +{gap + 0.5:.2f} nats and +0 to +2 active "
        "units from the end; two cells say nothing of the others."
    )
    more = [vae, iwae, deepened(make("iwae", 1, 50, nll=84.5, units=(19,)), 3280)]
    assert waypoints.statement(ways(more)).startswith(
        "From 1 of 3,280 epochs on the order of 3 cells on MNIST is nearly that of their ends (rank correlation 0.9 or "
        "more), though they stood +58.95 nats"
    )
    raise_nll(more[2], -1, 9.0)
    assert "is not yet that of their ends (rank correlation below 0.9)" in waypoints.statement(ways(more))
    assert waypoints.statement([]).startswith("No cell of this scale is at its end")


def test_the_section_has_a_figure_and_tables_or_one_line(make: Make) -> None:
    runs = [deepened(make("iwae", 1, k, nll=90.0 - i), 40) for i, k in enumerate((1, 5, 50))]
    section = waypoints.section(gathered(runs, "overnight", Path("none"), judged=True))
    figures = {figure.name: figure for figure in section.figures}
    assert isinstance(figures["waypoints"], Figure)
    assert "rank correlation" in figures["waypoints"].svg
    assert set(figures["waypoints"].data["epochs"]) == {1, 4, 13, 40}
    (table,) = [table for table in section.tables if table.name == "waypoints"]
    assert list(table.display["epochs"]) == ["1", "4", "13"]
    assert list(table.display["order by NLL"]) == ["1.00"] * 3
    assert list(table.display["order by units"]) == ["–"] * 3
    assert list(table.data["cells"]) == [3, 3, 3]
    assert "rank correlation" in section.lead
    flat = waypoints.section(gathered([make("vae"), make("iwae", 1, 5)], "quick", Path("none")))
    assert flat.blocks == ()
    assert flat.lead == "No run of this scale was evaluated on its way."


def test_a_question_without_anything_to_show_is_not_on_the_page(make: Make, tmp_path: Path) -> None:
    page = build_report([make("vae"), make("iwae", 1, 5)], "quick", tmp_path).read_text(encoding="utf-8")
    assert waypoints.QUESTION not in page
    assert '"#waypoints"' not in page
    runs = [deepened(make("iwae", 1, k, nll=90.0 - k), 40) for k in (1, 5)]
    assert waypoints.QUESTION in build_report(runs, "overnight", tmp_path, judged=True).read_text(encoding="utf-8")


def test_with_two_cells_no_row_of_rank_correlations_is_drawn(make: Make) -> None:
    runs = [deepened(make("iwae", 1, k, nll=90.0 - i), 40) for i, k in enumerate((1, 5))]
    figure = waypoints.distance_figure(ways(runs))
    assert figure is not None
    assert "rank correlation" not in figure.svg
    assert waypoints.distance_figure([]) is None
    assert waypoints.distance_table([]) is None
    assert waypoints.series_table([make("vae")]) is None
