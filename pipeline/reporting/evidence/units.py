"""Active units beside the one threshold: how a count depends on it, and where the variances have a gap.

A unit is active when the variance of its posterior mean over images is above `ACTIVE_VARIANCE`. Early in training a
cluster of dying units may sit at just that height: then the count hangs on the bits of the 500 images, while the number
of units above the gap over the cluster does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.records.metrics import ACTIVE_VARIANCE

THRESHOLDS = (0.001, 0.002, 0.005, ACTIVE_VARIANCE, 0.02, 0.05, 0.1)
NEAR = 2.0
"""A variance within this factor of the threshold may lie on its other side under other bits."""
CLEAR = 3.0
"""Neighbouring variances this many times apart are divided by a gap."""


def counts(variances: NDArray[np.floating]) -> dict[float, int]:
    """Threshold -> units above it. `variances`: [units]."""
    return {threshold: int((variances > threshold).sum()) for threshold in THRESHOLDS}


def doubtful(variances: NDArray[np.floating]) -> int:
    """Units so near to the threshold that other bits may count them otherwise."""
    return int(((variances > ACTIVE_VARIANCE / NEAR) & (variances < ACTIVE_VARIANCE * NEAR)).sum())


@dataclass(frozen=True)
class VarianceGap:
    """The widest gap between neighbouring variances above which units are clearly active."""

    low: float
    high: float
    above: int
    """Units above it."""


def widest_gap(variances: NDArray[np.floating]) -> VarianceGap | None:
    """The widest gap (by ratio) that ends well above the threshold.

    None when no two neighbours lie `CLEAR` times apart.
    """
    ordered = np.sort(np.asarray(variances, dtype=np.float64))
    widest: VarianceGap | None = None
    for place in range(1, len(ordered)):
        low, high = float(ordered[place - 1]), float(ordered[place])
        if high <= ACTIVE_VARIANCE * NEAR or high < CLEAR * low:
            continue
        if widest is None or high * widest.low > widest.high * low:
            widest = VarianceGap(low, high, len(ordered) - place)
    return widest
