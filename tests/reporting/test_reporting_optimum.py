"""The best M with its interval, on sweeps of which the answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import Estimate, gather
from pipeline.reporting.evidence.optimum import (
    Optimum,
    Point,
    optimum,
    papers_best,
    sweep_points,
    sweep_settings,
)
from pipeline.reporting.sections.optimum import optimum_table

Make = Callable[..., RunResult]
MS = (1, 2, 4, 8, 16, 32, 64)


def points(values: list[float], sd: float | None, seeds: int = 4, noise: float = 0.2) -> list[Point]:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 15, 300)
    made = []
    for M, value in zip(MS, values, strict=True):
        deviation = rng.normal(0, noise, 300)
        per_image = value + difficulty - difficulty.mean() + deviation - deviation.mean()
        made.append(Point(M, Estimate(value, 0.9, sd, seeds if sd is not None else 1), per_image))
    return made


def test_a_clear_best_has_an_interval_of_itself() -> None:
    result = optimum(points([-86, -85.5, -85, -85.6, -86, -86.3, -86.7], 0.02), "iwae_64")
    assert (result.best, result.low, result.high) == (4, 4, 4)
    assert dict(result.shares)[4] == 1
    assert (result.interior, result.within_noise, result.assumed) == (1, (4,), False)


def test_two_that_tie_share_the_resamples_and_an_end_is_no_interior() -> None:
    result = optimum(points([-85, -86, -86, -86, -86, -86, -85], 0.1), "iwae_64")
    shares = dict(result.shares)
    assert shares[1] == pytest.approx(0.5, abs=0.1)
    assert shares[1] + shares[64] > 0.99
    assert (result.low, result.high) == (1, 64)
    assert result.interior < 0.01
    assert result.within_noise == (1, 64)


def test_seeds_widen_the_interval_and_the_images_do_not_when_paired() -> None:
    """Images differ by 15 nats, which all cells share; a seed's 0.1 nats decide between neighbours 0.1 nats apart."""
    close = [-86, -85.1, -85.0, -85.1, -86, -86, -86]
    known, loose = optimum(points(close, 0.005, noise=0.01), "iwae_64"), optimum(points(close, 0.2), "iwae_64")
    assert known.within_noise == (4,)
    assert {2, 4, 8} <= set(loose.within_noise)
    assert (loose.low, loose.high) == (2, 8)


def test_one_seed_a_cell_takes_the_assumed_spread() -> None:
    result = optimum(points([-86, -85.1, -85.0, -85.1, -86, -86, -86], None), "iwae_64")
    assert result.assumed
    assert (result.best, result.low, result.high) == (4, 2, 8)


def test_coverage_of_the_interval() -> None:
    """The best cell is in the interval in 95 % of repeats or more: four seeds, three cells within their error."""
    rng = np.random.default_rng(1)
    truth = np.array([-86, -85.3, -85.0, -85.1, -85.3, -86, -87.0])
    hit = 0
    for _ in range(120):
        seeds = truth[:, None] + rng.normal(0, 0.1, (7, 4))
        made = [
            Point(
                M,
                Estimate(float(values.mean()), 0.9, float(values.std(ddof=1)), 4),
                values.mean() + rng.normal(0, 0.1, 60),
            )
            for M, values in zip(MS, seeds, strict=True)
        ]
        result = optimum(made, "iwae_64")
        hit += result.low <= 4 <= result.high
    assert hit >= 114


def test_the_papers_sweep() -> None:
    assert [setting.M for setting in sweep_settings("miwae")] == list(MS)
    assert [setting.M for setting in sweep_settings("piwae")] == list(MS[:-1])
    assert [papers_best("miwae", metric) for metric in ("iwae_64", "log_p_hat", "kl_q_p")] == [4, 1, 64]
    # Two of PIWAE's values can be judged by; the third, which would be the best, nobody checked against the paper.
    assert [papers_best("piwae", metric) for metric in ("iwae_64", "log_p_hat", "kl_q_p")] == [None] * 3


def test_the_table_says_where_the_best_is_and_what_is_missing(make: Make) -> None:
    runs = [
        make(s.objective, s.M, s.K, experiment="rainforth-table1", nll=84.5 + abs(np.log2(s.M) - 2), iwae_64=-86.0)
        for s in sweep_settings("miwae")
    ]
    cells = gather(runs)
    made = sweep_points(cells, "miwae", "log_p_hat")
    assert made is not None
    assert isinstance(optimum(made, "log_p_hat"), Optimum)
    assert sweep_points(cells, "piwae", "log_p_hat") is None
    assert sweep_points(gather(runs[:-1]), "miwae", "log_p_hat") is None
    table = optimum_table(cells)
    assert table is not None
    row = table.display.set_index("metric").loc["log p̂"]
    assert (row["best M"], row["95 % interval"], row["paper's best M"]) == ("4", "4 to 4", "1")
    assert optimum_table(gather(runs[:-1])) is None
