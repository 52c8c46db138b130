"""Runs that are not at their end, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.forms.drawing import Figure
from pipeline.reporting.page import gathered
from pipeline.reporting.report import Report
from pipeline.reporting.sections import depth
from pipeline.reporting.sections.density import side_by_side
from tests.reporting.conftest import deepened, fabricate_paper

Make = Callable[..., RunResult]


@pytest.fixture(scope="module")
def filling() -> Report:
    done, on_their_way = fabricate_paper()
    return gathered(done, "paper", Path("none"), under_way=on_their_way)


def test_cells_on_their_way_say_how_far_they_are(filling: Report) -> None:
    table = depth.under_way_table(filling.under_way)
    assert table is not None
    assert list(table.display["so far"]) == [
        "after 364 of 3,280 epochs: 87.70, 19 units",
        "after 364 of 3,280 epochs: 88.60, 19 units",
    ]
    assert list(table.display["paper, at the end"]) == ["85.54, 22 units", "86.47, 20 units"]
    assert set(table.display["last moved"]) == {"2024-01-01 00:00"}
    assert table.greyed == {(0, "so far"), (1, "so far")}
    assert depth.under_way_table([]) is None


def test_the_papers_layout_greys_them_and_leaves_them_out_of_the_best(filling: Report) -> None:
    table = side_by_side(filling.cells, "burda-table1", gather(filling.under_way))
    shown = table.display.set_index("k")
    assert set(table.groups) == {"MNIST, 1 layer"}
    assert shown.loc["5", "IWAE: NLL"] == "87.70 (85.54)"
    assert {(row, heading) for row, heading in table.greyed if "NLL" in heading} == {(1, "VAE: NLL"), (1, "IWAE: NLL")}
    assert table.best == {(2, "IWAE: NLL")}
    assert shown.loc["1", "VAE: NLL"] == shown.loc["1", "IWAE: NLL"] == "86.70 (86.76)"


def test_before_any_run_the_papers_layout_holds_the_papers_numbers() -> None:
    table = side_by_side({}, "burda-table1", {})
    assert len(table.display) == 12
    assert table.display.iloc[1]["IWAE: NLL"] == "– (85.54)"
    assert not table.best


def test_the_series_of_a_run_goes_through_its_waypoints(filling: Report) -> None:
    figure = depth.series_figure(filling)
    assert isinstance(figure, Figure)
    series = figure.data[figure.data["run"] == "iwae-M1-K5-s0"]
    assert list(series["epochs"]) == [1, 4, 13, 40, 121, 364]
    assert series["nll"].is_monotonic_decreasing
    assert series["nll"].iloc[-1] == pytest.approx(87.7)
    assert series["under_way"].all()
    assert list(figure.data[figure.data["run"] == "vae-M1-K1-s0"]["epochs"])[-1] == 3280


def test_claims_are_decided_at_every_depth_by_the_runs_as_they_were_then(make: Make) -> None:
    vae = deepened(make("vae", 50, 1, nll=90.0, noise=0.1, scale="overnight"), 40)
    iwae = deepened(make("iwae", 1, 50, nll=88.0, noise=0.1, scale="overnight"), 40)
    # After one epoch IWAE was behind.
    late = iwae.waypoints[0]
    late.metrics["nll"] += 5.0
    late.metrics["log_p_hat"] -= 5.0
    late.arrays["log_p_hat"] = late.arrays["log_p_hat"] - 5.0
    data = depth.claims_by_depth(gathered([vae, iwae], "overnight", Path("none"), judged=True))
    beats = data[data["claim"] == "MNIST, 1 layer: IWAE beats VAE at k = 50"].set_index("epochs")
    assert list(beats["effect"].round(6)) == [-3.0, 2.0, 2.0, 2.0]
    assert beats["decision"].iloc[0].startswith("does not hold")
    assert beats["decision"].iloc[-1].startswith("holds")
    assert (beats["paper_effect"].round(2) == 1.57).all()
    table = depth.claims_table(data)
    assert table is not None
    row = table.display.set_index("family").loc["IWAE beats VAE at equal k"]
    assert (row["1 epochs"], row["40 epochs"]) == ("0 hold, 1 not, of 1", "1 hold, 0 not, of 1")
    figure = depth.claims_figure(data)
    assert isinstance(figure, Figure)
    assert "IWAE beats VAE at equal k" in figure.svg


def test_with_one_depth_nothing_is_drawn_against_epochs(make: Make) -> None:
    flat = gathered([make("vae"), make("iwae", 1, 5)], "quick", Path("none"))
    assert depth.series_figure(flat) is None
    assert depth.claims_by_depth(flat).empty
    assert depth.claims_figure(depth.claims_by_depth(flat)) is None


@pytest.mark.parametrize(("epochs", "text"), [(0.336, "0.34"), (1, "1"), (3280.0, "3,280")])
def test_epochs_in_words(epochs: float, text: str) -> None:
    assert depth.whole_epochs(epochs) == text
