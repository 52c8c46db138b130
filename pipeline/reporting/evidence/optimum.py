"""Where the best M lies at fixed M * K, and how sure that is.

The best of several noisy cells is itself a random thing: its error is resampled. Each resample draws test images, the
same for all cells (paired), and adds to each cell an error over seeds; the M that then is best is noted. The interval
holds the M between which the best one lay in all but 5 % of the resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.published import Place, Setting, published_at
from pipeline.reporting.evidence.cells import SPLITS, Cells, Estimate, estimate, find, images, seed_spread
from pipeline.reporting.evidence.statistics import RESAMPLES, RESAMPLING_SEED, bootstrap_deviations

OPTIMUM_LEVEL = 0.05


@dataclass(frozen=True)
class Point:
    """One M of a sweep with its estimate and its values by test image, all signed so that more is better."""

    M: int
    known: Estimate
    per_image: NDArray[np.float64]


@dataclass(frozen=True)
class Optimum:
    """The best M of a sweep over M at fixed M * K."""

    best: int
    low: int
    high: int
    """Between which the best M lies, missing it with probability 5 %."""
    shares: tuple[tuple[int, float], ...]
    """M -> the share of resamples in which it is best."""
    assumed: bool
    """True where the spread between seeds of a cell is assumed."""

    @property
    def interior(self) -> float:
        """The share of resamples in which the best M is none of the two ends of the sweep."""
        ends = {self.shares[0][0], self.shares[-1][0]}
        return sum(share for M, share in self.shares if M not in ends)

    @property
    def within_noise(self) -> tuple[int, ...]:
        """The M that are best in 5 % of the resamples or more."""
        return tuple(M for M, share in self.shares if share >= OPTIMUM_LEVEL)


def sweep_settings(objective: str) -> list[Setting]:
    """The settings of T = 64 by M: IWAE at M = 1 for both; MIWAE ends as VAE(64, 1)."""
    inside = [Setting(objective, M, K) for M, K in SPLITS]
    end = [Setting("vae", 64, 1)] if objective == "miwae" else []
    return [Setting("iwae", 1, 64), *inside, *end]


def sweep_points(cells: Cells, objective: str, metric: str) -> list[Point] | None:
    """The cells of a sweep, or None when one was not run or their test images differ."""
    points = []
    for setting in sweep_settings(objective):
        cell = find(cells, Place.rainforth(setting))
        known = estimate(cell, metric)
        per_image = images(cell, metric) if cell else None
        if known is None or per_image is None:
            return None
        points.append(Point(setting.M, known, per_image))
    return points if len({len(point.per_image) for point in points}) == 1 else None


def optimum(points: Sequence[Point], metric: str) -> Optimum:
    """The best M of a sweep with its interval, from `RESAMPLES` resamples; a function of the points alone."""
    rng = np.random.default_rng([RESAMPLING_SEED, len(points)])
    values = np.array([point.known.value for point in points])
    totals = values[:, None] + bootstrap_deviations([point.per_image for point in points])
    assumed = False
    # One assumed spread serves all cells that need it, so a resample doubts it once.
    doubt: NDArray[np.float64] | None = None
    for row, point in zip(totals, points, strict=True):
        spread, own_assumed = seed_spread(point.known, metric)
        if spread is None:
            continue
        if own_assumed:
            assumed = True
            doubt = _doubt(rng, spread.df) if doubt is None else doubt
            scale = doubt
        else:
            scale = _doubt(rng, spread.df)
        row += spread.sd / np.sqrt(point.known.seeds) * scale * rng.standard_normal(RESAMPLES)
    best = np.argmax(totals, axis=0)
    low, high = np.quantile(best, [OPTIMUM_LEVEL / 2, 1 - OPTIMUM_LEVEL / 2], method="inverted_cdf")
    shares = np.bincount(best, minlength=len(points)) / RESAMPLES
    return Optimum(
        best=points[int(np.argmax(values))].M,
        low=points[int(low)].M,
        high=points[int(high)].M,
        shares=tuple((point.M, float(share)) for point, share in zip(points, shares, strict=True)),
        assumed=assumed,
    )


def _doubt(rng: np.random.Generator, df: float) -> NDArray[np.float64]:
    """What turns normal errors into Student's t: the root of df over a chi-square, [RESAMPLES]."""
    return np.sqrt(df / rng.chisquare(df, RESAMPLES))


def papers_best(objective: str, metric: str) -> int | None:
    """The best M among the paper's values of a sweep; None where fewer than three of them can be judged by."""
    known = {
        setting.M: published.value
        for setting in sweep_settings(objective)
        if (published := published_at(Place.rainforth(setting), metric)) is not None and published.judged
    }
    return max(known, key=known.__getitem__) if len(known) > 2 else None
