"""An estimator of `pipeline.objectives` in the terms of the compiled step, found from its functions alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pipeline.models.compiled_step import Coefficients
from pipeline.objectives import (
    OBJECTIVES,
    elbo,
    iwae_bound_over_all,
    normalized,
    uniform,
    vr_bound,
    vr_max,
    vr_max_bound,
)

_TOLERANCE = 1e-9
_DIGITS = 12


def _log_weights(M: int, K: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(M, K, 64, dtype=torch.float64, generator=generator) - 90


def _terms(log_w: Tensor, power: float, greatest: bool) -> tuple[Tensor, Tensor]:
    """What weights are made of, [M * K * batch, 4], and bounds, [batch, 3]; see `Coefficients`."""
    M = log_w.shape[0]
    w = vr_max(log_w).theta if greatest else normalized(power * log_w)
    over_all = torch.softmax(log_w.flatten(0, 1), dim=0).view_as(log_w)
    bound = vr_max_bound(log_w) if greatest else vr_bound(log_w, 1 - power)
    # At the greatest alone the square is w once more: zeros, for one solution.
    squared = torch.zeros_like(w) if greatest else M * w.square()
    weights = torch.stack([t.flatten() for t in (uniform(log_w), w, over_all, squared)], dim=1)
    return weights, torch.stack((elbo(log_w), bound, iwae_bound_over_all(log_w)), dim=1)


def _fitted(terms: Tensor, value: Tensor) -> tuple[float, ...]:
    # By singular values: torch's default, a pivoted QR, now and then takes a column of zeros for the first pivot.
    solution = torch.linalg.lstsq(terms, value.flatten().unsqueeze(1), driver="gelsd").solution
    return tuple(round(float(c), _DIGITS) + 0.0 for c in solution.flatten())


def _agrees(c: Coefficients, log_w: Tensor, values: tuple[Tensor, ...]) -> bool:
    """Whether the coefficients give the weights and the bound at these log-weights."""
    weights, bounds = _terms(log_w, c.power, c.greatest)
    pairs = zip((weights, weights, weights, bounds), (c.theta, c.path, c.score, c.bound), values, strict=True)
    for terms, factors, value in pairs:
        difference = terms @ torch.tensor(factors, dtype=torch.float64) - value.flatten()
        if not float(difference.abs().max()) <= _TOLERANCE * float(1 + value.abs().max()):
            return False
    return True


@lru_cache
def coefficients(objective: str, parameter: float | None, M: int, K: int) -> Coefficients | None:
    """The coefficients of an estimator with M groups of K samples; None where the compiled step has no such terms.

    They are fitted to the objective's functions at random log-weights and must hold at others, of the shape asked for.
    """
    entry = OBJECTIVES[objective]
    args = () if parameter is None else (parameter,)

    def values(log_w: Tensor) -> tuple[Tensor, ...]:
        return (*entry.weights(log_w, *args), entry.bound(log_w, *args))

    # More groups and samples than one: there the terms are independent of each other.
    fitting = _log_weights(3, 4, seed=0)
    powers = [1.0] if parameter is None or parameter == 1 else [1.0, 1 - parameter]
    for power, greatest in [*((power, False) for power in powers), (1.0, True)]:
        terms, bounds = _terms(fitting, power, greatest)
        *weights, bound = values(fitting)
        theta, path, score = (_fitted(terms, weight) for weight in weights)
        candidate = Coefficients(theta, path, score, _fitted(bounds, bound), power, greatest)
        checks = (_log_weights(3, 4, seed=1), _log_weights(M, K, seed=2))
        if all(_agrees(candidate, log_w, values(log_w)) for log_w in checks):
            return candidate
    return None
