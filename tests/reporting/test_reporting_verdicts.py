"""Verdicts on our numbers beside the papers', from the interval of the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.published import Published
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import Cell, estimate, gather
from pipeline.reporting.evidence.verdicts import (
    BETTER,
    CANNOT_SAY,
    MARGIN,
    REPRODUCED,
    WORSE,
    Comparison,
    Judged,
    beside_chance,
    bits_sd,
    compare,
    pool,
    verdict,
)

Make = Callable[..., RunResult]


def published(value: float, tag: str = "read", sd: float | None = None, runs: int = 1) -> Published:
    return Published(value, sd, "a paper", tag, runs)


def cell_of(*runs: RunResult) -> Cell:
    ((cell,),) = gather(list(runs)).values()
    return cell


def sweep(make: Make, values: list[float], **where: object) -> Cell:
    place = {"experiment": "rainforth-table1", "scale": "paper"}
    return cell_of(*(make("iwae", 1, 64, seed=s, nll=-value, **place, **where) for s, value in enumerate(values)))


def test_one_run_against_one_cannot_show_that_they_are_equal(make: Make) -> None:
    """0.10 nats a run and 0.05 of bits on each side: 0.158, times 1.70 (t with some 28 df) is 0.27 > 0.25."""
    comparison = compare(cell_of(make(nll=86.76, scale="paper")), "nll", published(86.76))
    assert comparison is not None
    assert comparison.run_se == pytest.approx(0.1 * np.sqrt(2))
    assert comparison.bits_se == pytest.approx(0.05 * np.sqrt(2))
    assert comparison.se == pytest.approx(0.1581, abs=1e-4)
    assert comparison.df == pytest.approx(18 * (0.1581 / 0.1414) ** 4, rel=1e-3)
    assert comparison.half_width == pytest.approx(0.269, abs=1e-3)
    assert comparison.assumed


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(86.76, CANNOT_SAY), (87.27, CANNOT_SAY), (87.29, WORSE), (86.25, CANNOT_SAY), (86.23, BETTER)],
)
def test_verdict_on_nll_at_the_paper_scale(make: Make, ours: float, expected: str) -> None:
    assert verdict(cell_of(make(nll=ours, scale="paper")), "nll", published(86.76), "paper") == expected


@pytest.mark.parametrize(
    ("ours", "expected"), [(88.71, REPRODUCED), (88.714, REPRODUCED), (88.72, CANNOT_SAY), (89.21, WORSE)]
)
def test_the_fixed_binarization_has_no_error_of_bits(make: Make, ours: float, expected: str) -> None:
    """0.1414 times 1.734 is 0.2452: one run against one run just suffices where they agree to 0.0048."""
    cell = cell_of(make(nll=ours, dataset="fixed-mnist", experiment="burda-table3", scale="paper"))
    comparison = compare(cell, "nll", published(88.71))
    assert comparison is not None
    assert (comparison.bits_se, comparison.df) == (0, pytest.approx(18))
    assert comparison.half_width == pytest.approx(0.2452, abs=1e-4)
    assert verdict(cell, "nll", published(88.71), "paper") == expected


def test_four_runs_against_four_have_six_degrees_of_freedom(make: Make) -> None:
    sd = float(np.std([0.0, 0.1, 0.1, 0.2], ddof=1))
    ours = sweep(make, [-84.6, -84.5, -84.5, -84.4])
    without_bits = replace(ours, place=replace(ours.place, dataset="fixed-mnist"))
    comparison = compare(without_bits, "log_p_hat", published(-84.52, "quoted", sd, 4))
    assert comparison is not None
    assert comparison.df == pytest.approx(6)
    assert comparison.se == pytest.approx(sd / np.sqrt(2))
    assert not comparison.assumed
    assert comparison.half_width == pytest.approx(1.943180 * sd / np.sqrt(2), rel=1e-5)
    # Where the spreads are unlike there are fewer.
    unlike = compare(without_bits, "log_p_hat", published(-84.52, "quoted", sd / 5, 4))
    assert unlike is not None
    assert 3 < unlike.df < 3.5


@pytest.mark.parametrize(
    ("ours", "expected"), [(-84.5, REPRODUCED), (-84.2, CANNOT_SAY), (-84.0, BETTER), (-85.0, WORSE)]
)
def test_more_is_better_where_it_is(make: Make, ours: float, expected: str) -> None:
    cell = sweep(make, [ours - 0.05, ours - 0.05, ours + 0.05, ours + 0.05])
    assert verdict(cell, "log_p_hat", published(-84.52, "quoted", 0.06, 4), "paper") == expected


def test_measured_bits_count_in_place_of_the_assumed(make: Make) -> None:
    run = make(nll=86.76, scale="paper")
    assert bits_sd(cell_of(run), "nll") == 0.050
    assert bits_sd(cell_of(make(dataset="omniglot")), "log_p_hat") == 0.053
    assert bits_sd(cell_of(run), "kl_q_p") == 0.007
    assert bits_sd(cell_of(make(dataset="fixed-mnist", experiment="burda-table3")), "kl_q_p") == 0
    measured = replace(run, metrics={**run.metrics, "bits_sd_nll": 0.03, "bits_sd_kl_q_p": 0.01})
    assert bits_sd(cell_of(measured), "log_p_hat") == pytest.approx(0.03)
    assert bits_sd(cell_of(measured), "kl_q_p") == pytest.approx(0.01)
    comparison = compare(cell_of(measured), "nll", published(86.76))
    assert comparison is not None
    assert comparison.bits_se == pytest.approx(0.03 * np.sqrt(2))


def test_verdicts_on_equal_and_on_different_cells_err_as_rarely_as_they_say() -> None:
    """By simulation: a gap of exactly the margin is called equal in 5 % at most, equals are called different never."""
    rng = np.random.default_rng(0)
    for sd in (0.05, 0.10, 0.15):
        for gap, most in ((MARGIN, 0.055), (0.4, 0.01)):
            ours = gap + rng.normal(0, sd, (20_000, 4))
            theirs = rng.normal(0, sd, (20_000, 4))
            difference = ours.mean(1) - theirs.mean(1)
            variances = np.stack([ours.var(1, ddof=1), theirs.var(1, ddof=1)]) / 4
            df = variances.sum(0) ** 2 / (variances**2 / 3).sum(0)
            half = stats.t.ppf(0.95, df) * np.sqrt(variances.sum(0))
            assert (np.abs(difference) + half <= MARGIN).mean() < most
    # The rule before this one, within 0.25 by the point alone, at a seed sd of 0.10: 7.7 % of equals missed.
    assert 2 * stats.norm.sf(0.25 / (0.1 * np.sqrt(2))) == pytest.approx(0.077, abs=5e-4)
    assert 2 * stats.norm.sf(0.25 / (0.15 * np.sqrt(2))) == pytest.approx(0.24, abs=2e-3)
    assert stats.norm.cdf((0.25 - 0.4) / (0.1 * np.sqrt(2))) == pytest.approx(0.145, abs=5e-3)


def test_what_chance_makes_of_equal_cells() -> None:
    rng = np.random.default_rng(0)
    for one in (Comparison(0.0, 0.06, 0.0, 6.0, False), Comparison(0.0, 0.1, 0.07, 18.0, True)):
        shares = one.share_of_equals()
        errors = one.se * rng.standard_t(one.df, 200_000)
        inside = (np.abs(errors) + one.half_width <= MARGIN).mean()
        outside = (np.abs(errors) - one.half_width > MARGIN).mean()
        assert shares[REPRODUCED] == pytest.approx(inside, abs=0.004)
        assert shares[BETTER] + shares[WORSE] == pytest.approx(outside, abs=0.002)
        assert sum(shares.values()) == pytest.approx(1)
    assert Comparison(0.0, 0.0, 0.0, np.inf, False).share_of_equals()[REPRODUCED] == 1


def test_many_cells_together_say_more_than_each(make: Make) -> None:
    one = Comparison(0.02, 0.1 * np.sqrt(2), 0.05 * np.sqrt(2), 18.0, True)
    ten = pool([Judged("mnist", one, CANNOT_SAY)] * 10)
    # Runs: 0.1414 / sqrt(10) = 0.0447; bits, the same for all ten: 0.0707; together 0.0837, times 1.734.
    assert ten.high - ten.difference == pytest.approx(1.734064 * np.hypot(0.04472, 0.07071), abs=1e-4)
    two_sets = pool([Judged(name, one, CANNOT_SAY) for name in ("mnist", "omniglot") for _ in range(5)])
    assert two_sets.high - two_sets.difference == pytest.approx(1.734064 * np.hypot(0.04472, 0.05), abs=1e-4)
    text = beside_chance([Judged("mnist", one, CANNOT_SAY)] * 9 + [Judged("mnist", one, WORSE)])
    assert "Verdicts on 10 cells: 0 reproduced, 0 better, 1 worse, 9 cannot say." in text
    assert "chance alone would call 0.0 of them better or worse, 0.0 reproduced, and leave 10.0 without" in text
    assert "The interval holds no difference at all in 10 (of equal cells 90% would)." in text
    assert "Mean difference of all: +0.02 nats [−0.13, +0.17]." in text
    assert beside_chance([]) == ""


def test_metrics_of_one_run_have_a_mean_each() -> None:
    """−KL(Q‖P) is IWAE-64 minus log p̂: the three are not three independent cells."""
    one = Comparison(0.02, 0.07, 0.05, 6.0, False)
    text = beside_chance([Judged("mnist", one, REPRODUCED, metric) for metric in ("iwae_64", "log_p_hat")] * 4)
    half = 1.943180 * np.hypot(0.07 / 2, 0.05)
    assert text.startswith("Verdicts on 8 numbers: 8 reproduced")
    ends = f"[−{half - 0.02:.2f}, +{half + 0.02:.2f}]"
    assert text.endswith(f"Mean difference of all: IWAE-64 +0.02 nats {ends}; log p̂ +0.02 nats {ends}.")


def test_a_published_kl_without_an_error_gets_the_spread_of_a_kl(make: Make) -> None:
    cell = sweep(make, [-84.6, -84.5, -84.5, -84.4])
    fixed = replace(cell, place=replace(cell.place, dataset="fixed-mnist"))
    known = compare(fixed, "kl_q_p", published(-1.04, "derived", None, 4))
    assert known is not None
    sd = estimate(fixed, "kl_q_p")
    assert sd is not None
    assert sd.seed_sd is not None
    assert known.run_se == pytest.approx(np.hypot(sd.seed_sd, 0.13) / 2)


def test_burdas_tables_are_judged_under_their_codes_protocol_alone(make: Make) -> None:
    def under(protocol: str, run: RunResult) -> str:
        cell = cell_of(replace(run, spec=replace(run.spec, protocol_name=protocol)))
        return verdict(cell, "nll", published(86.76), "paper")

    burda = make(nll=86.76, scale="paper")
    assert under("published-code", burda) == CANNOT_SAY
    assert under("paper-text", burda) == "other protocol"
    rainforth = make("vae", 64, 1, experiment="rainforth-table1", nll=86.76, scale="paper")
    assert under("paper-text", rainforth) == CANNOT_SAY


def test_other_verdicts(make: Make) -> None:
    cell, diverged = cell_of(make(nll=86.76)), cell_of(make(status="diverged at step 7"))
    assert verdict(cell, "nll", published(86.76), "quick") == "not comparable"
    assert verdict(cell, "nll", published(86.76), "tiny") == "not comparable"
    assert verdict(cell, "nll", None, "paper") == "no published value"
    assert verdict(cell, "nll", published(86.76, "unverified"), "paper") == "not judged"
    assert verdict(None, "nll", published(86.76), "paper") == "not run"
    assert verdict(diverged, "nll", published(86.76), "paper") == "diverged"
    assert compare(diverged, "nll", published(86.76)) is None
