"""Bootstrap, error distributions and Holm's procedure against plain versions and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from pipeline.reporting.evidence.statistics import (
    RESAMPLES,
    ErrorDistribution,
    bootstrap_deviations,
    holm_levels,
    log_normal_bias,
    satterthwaite,
)


def test_bootstrap_agrees_with_scipy_and_is_repeatable() -> None:
    """Percentile interval of a skewed mean; both are simulations with 2000 resamples."""
    values = np.random.default_rng(0).gamma(0.5, 2, 80)
    (deviations,) = bootstrap_deviations([values])
    assert deviations.shape == (RESAMPLES,)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="basic", random_state=np.random.default_rng(1)
    ).confidence_interval
    low, high = ErrorDistribution(deviations, 0.0).interval(values.mean(), 0.05)
    room = 0.1 * (theirs.high - theirs.low)
    assert low == pytest.approx(theirs.low, abs=room)
    assert high == pytest.approx(theirs.high, abs=room)
    np.testing.assert_array_equal(deviations, bootstrap_deviations([values])[0])


def test_all_effects_see_the_same_resamples() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 50), rng.normal(3, 1, 50)
    together = bootstrap_deviations([first, second, first - second])
    np.testing.assert_allclose(together[2], together[0] - together[1], atol=1e-12)
    np.testing.assert_allclose(bootstrap_deviations([first])[0], together[0], atol=1e-12)
    # And a constant has no error.
    np.testing.assert_allclose(bootstrap_deviations([np.full(50, 7.0)]), 0, atol=1e-12)


def test_error_distribution_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    deviations = rng.gamma(1, 1, 500) - 1
    error = ErrorDistribution(deviations, 0.7, 4.0)
    sums = rng.choice(deviations, 400_000) + 0.7 * rng.standard_t(4, 400_000)
    for at in (-2.0, 0.0, 0.5, 3.0):
        assert error.cdf(at) == pytest.approx((sums <= at).mean(), abs=4e-3)
    for q in (0.01, 0.3, 0.995):
        assert error.cdf(error.quantile(q)) == pytest.approx(q, abs=1e-6)


def test_without_images_it_is_the_normal_or_students_interval() -> None:
    low, high = ErrorDistribution(np.zeros(1), 0.5).interval(2.0, 0.05)
    assert (low, high) == (pytest.approx(2 - 1.959964 * 0.5), pytest.approx(2 + 1.959964 * 0.5))
    low, _ = ErrorDistribution(np.zeros(1), 0.5, 3.0).interval(2.0, 0.05)
    assert low == pytest.approx(2 - 3.182446 * 0.5)
    assert ErrorDistribution(np.zeros(1), 0.5).p_value(2.0) == pytest.approx(2 * stats.norm.sf(4))


@pytest.mark.parametrize("effect", [-2.5, -1.0, -0.2, 0.0, 0.3, 1.2, 3.0])
@pytest.mark.parametrize("level", [0.05, 0.004])
def test_p_value_and_interval_say_the_same(effect: float, level: float) -> None:
    error = ErrorDistribution(np.random.default_rng(1).gamma(1, 0.5, 300) - 0.5, 0.3, 5.0)
    low, high = error.interval(effect, level)
    assert low < effect < high
    assert (low > 0 or high < 0) == (error.p_value(effect) < level)


def test_errors_of_several_cells_add_up() -> None:
    assert satterthwaite([(0.3, np.inf), (0.4, np.inf)]) == (pytest.approx(0.5), np.inf)
    # Two means of equal spread and n: Student's test with 2 (n - 1) degrees of freedom.
    assert satterthwaite([(0.2, 3), (0.2, 3)]) == (pytest.approx(0.2 * np.sqrt(2)), pytest.approx(6))
    se, df = satterthwaite([(0.2, 3), (0.1, np.inf)])
    assert se == pytest.approx(np.sqrt(0.05))
    assert 3 < df < np.inf
    assert satterthwaite([(0.0, 3)]) == (0.0, np.inf)


def plain_holm(p_values: list[float], alpha: float) -> list[bool]:
    """Reject where every set of hypotheses that holds this one is rejected by Bonferroni (closed testing)."""
    m = len(p_values)
    groups = [g for size in range(1, m + 1) for g in itertools.combinations(range(m), size)]
    rejected = {g: min(p_values[i] for i in g) <= alpha / len(g) for g in groups}
    return [all(rejected[g] for g in groups if i in g) for i in range(m)]


@pytest.mark.parametrize("seed", range(20))
def test_holm_against_closed_testing(seed: int) -> None:
    p_values = list(np.random.default_rng(seed).uniform(0, 1, 6) ** 4)
    levels = holm_levels(p_values, 0.05)
    assert [p <= level for p, level in zip(p_values, levels, strict=True)] == plain_holm(p_values, 0.05)
    assert all(0.05 / 6 <= level <= 0.05 for level in levels)


def test_holm_of_one_and_none() -> None:
    assert holm_levels([0.04], 0.05) == [0.05]
    assert holm_levels([], 0.05) == []


def test_log_mean_bias_of_known_weights() -> None:
    toy = log_normal_bias(1.0, doublings=6, draws=2**17)
    assert toy.K.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert toy.relative_variance == pytest.approx(np.e - 1)
    # At K = 1 the bias is E[log w] = -sigma^2 / 2.
    assert toy.bias[0] == pytest.approx(-0.5, abs=4 * toy.standard_error[0])
    # E[log of the mean of two], by quadrature over the two normals.
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    pairs = np.log((np.exp(points[:, None] - 0.5) + np.exp(points - 0.5)) / 2)
    exact = (weights[:, None] * weights * pairs).sum() / weights.sum() ** 2
    assert toy.bias[1] == pytest.approx(exact, abs=4 * toy.standard_error[1])
    ratio = -toy.bias[-1] * 2 * 64 / toy.relative_variance
    assert ratio == pytest.approx(1, abs=0.1)
