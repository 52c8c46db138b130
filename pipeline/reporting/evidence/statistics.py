"""How sure a difference is: paired bootstrap over test images, joined with the spread over seeds, and Holm's procedure.

The error of an effect has two independent parts. Over images it is resampled: the same resamples of the test set for
every effect, so that all models are compared on equal terms. Over seeds it is Student's t with the standard error and
degrees of freedom of the spread, measured or assumed. The distribution of their sum is the mixture of the second over
the resampled first, whose tails need no further simulation. docs/statistics.md works each rule through by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

RESAMPLES = 2000
RESAMPLING_SEED = 20160
COUNTS_PER_PASS = 2**22


def bootstrap_deviations(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Resampled mean minus mean for each array of per-image values, all [images]: [arrays, RESAMPLES].

    Arrays of one length see the same resamples, which are a function of `RESAMPLING_SEED`.
    """
    stacked = np.stack(values)
    centred = stacked - stacked.mean(1, keepdims=True)
    images = stacked.shape[1]
    rng = np.random.default_rng([RESAMPLING_SEED, images])
    parts = []
    step = max(1, COUNTS_PER_PASS // images)
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(0, images, (min(step, RESAMPLES - start), images))
        counts = np.stack([np.bincount(row, minlength=images) for row in drawn])
        parts.append(centred @ counts.T.astype(np.float64) / images)
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Spread:
    """A standard deviation and how well it is known: as if measured on `df` + 1 values."""

    sd: float
    df: float

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Where the true standard deviation lies, missing it with probability `level` (chi-square, normal values)."""
        ends = (float(stats.chi2.ppf(part, self.df)) for part in (1 - level / 2, level / 2))
        low, high = (self.sd * float(np.sqrt(self.df / end)) for end in ends)
        return low, high


def pooled(deviations: Sequence[float], runs: int) -> Spread:
    """One spread from several standard deviations over `runs` runs each: the root of their mean square."""
    return Spread(float(np.sqrt(np.mean(np.square(deviations)))), len(deviations) * (runs - 1))


def spread_of_reruns(differences: Sequence[float]) -> Spread:
    """The spread of one run from differences between two runs of the same thing, whose true mean is zero."""
    return Spread(float(np.sqrt(np.mean(np.square(differences)) / 2)), len(differences))


@dataclass(frozen=True)
class ErrorDistribution:
    """Of an estimate's error: resampled deviations over images [RESAMPLES] (or none), and the t error over seeds."""

    deviations: NDArray[np.float64]
    seed_se: float
    seed_df: float = np.inf

    def cdf(self, error: float) -> float:
        """Probability of an error no larger than this."""
        if self.seed_se == 0:
            return float((self.deviations <= error).mean())
        standard = (error - self.deviations) / self.seed_se
        below = special.ndtr(standard) if np.isinf(self.seed_df) else special.stdtr(self.seed_df, standard)
        return float(below.mean())

    def quantile(self, probability: float) -> float:
        """The error that is exceeded with probability 1 - `probability`."""
        if self.seed_se == 0:
            return float(np.quantile(self.deviations, probability))
        # The mixture's quantile lies between those of its first and last part.
        reach = self.seed_se * (1 + abs(float(stats.t.ppf(probability, self.seed_df))))
        low, high = float(self.deviations.min()) - reach, float(self.deviations.max()) + reach
        return float(optimize.brentq(lambda error: self.cdf(error) - probability, low, high, xtol=1e-9))

    def p_value(self, effect: float) -> float:
        """Two-sided, of the hypothesis that the true effect is zero.

        Resamples alone cannot show a smaller p than their number allows; where nothing has a spread, p is 1.
        """
        if self.seed_se == 0:
            count = len(self.deviations)
            sides = (int(side.sum()) for side in (self.deviations <= effect, self.deviations >= effect))
            return min(1.0, 2 * (min(sides) + 1) / (count + 1))
        below = self.cdf(effect)
        return min(1.0, 2 * min(below, 1 - below))

    def interval(self, effect: float, level: float) -> tuple[float, float]:
        """Around the effect, missing it with probability `level`, half on each side."""
        return effect - self.quantile(1 - level / 2), effect - self.quantile(level / 2)


def satterthwaite(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom (infinite for errors known exactly) of a sum of independent terms."""
    total = sum(se**2 for se, _ in errors)
    doubtful = sum(se**4 / df for se, df in errors if np.isfinite(df))
    return float(np.sqrt(total)), float(total**2 / doubtful) if doubtful else np.inf


def holm_levels(p_values: Sequence[float], alpha: float, family: int | None = None) -> list[float]:
    """The level at which Holm's procedure tests each hypothesis, so that all its rejections are right at once.

    `family`: how many hypotheses there are in all; those that have no p yet count as not rejected. From the smallest p
    on, the r-th of m is tested at alpha / (m - r + 1) until one is not rejected; the rest keep that one's level, which
    none of them meets. A hypothesis is rejected when its p is at most its level. A p that comes in later takes no
    rejection back. A p that is no number rejects nothing.
    """
    p_values = [1.0 if np.isnan(p) else p for p in p_values]
    planned = len(p_values) if family is None else family
    assert planned >= len(p_values), f"{len(p_values)} p-values in a family of {planned}"
    levels = [alpha] * len(p_values)
    level = alpha
    stopped = False
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not stopped:
            level = alpha / (planned - rank)
            stopped = p_values[i] > level
        levels[i] = level
    return levels


@dataclass(frozen=True)
class ToyBias:
    """The bias of log((w_1 + ... + w_K) / K) for log-normal weights of mean 1, [K's] each, nats."""

    K: NDArray[np.int64]
    bias: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    relative_variance: float
    """Var(w) / E[w]^2 = exp(sigma^2) - 1."""


@lru_cache
def log_normal_bias(sigma: float, doublings: int = 12, draws: int = 2**20) -> ToyBias:
    """Simulated with `draws` weights w = exp(sigma z - sigma^2 / 2), in groups of K = 1, 2, 4, ..., 2^doublings.

    log m has a nearly linear part, m - 1, of known mean zero; it is taken off where that narrows the error.
    """
    rng = np.random.default_rng(RESAMPLING_SEED)
    log_w = sigma * rng.standard_normal(draws) - sigma**2 / 2
    means, errors = [], []
    for _ in range(doublings + 1):
        candidates = (log_w, log_w - np.expm1(log_w))
        best = min(candidates, key=lambda values: float(values.var()))
        means.append(float(best.mean()))
        errors.append(float(best.std(ddof=1) / np.sqrt(len(best))))
        log_w = np.logaddexp(log_w[0::2], log_w[1::2]) - np.log(2)
    counts = 2 ** np.arange(doublings + 1)
    return ToyBias(counts, np.array(means), np.array(errors), float(np.expm1(sigma**2)))
