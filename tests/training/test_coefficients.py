"""The estimators in the terms of the compiled step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline import objectives
from pipeline.objectives import OBJECTIVES, Objective, Weights, elbo, miwae_bound, normalized, uniform
from pipeline.training.coefficients import coefficients


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("parameter", [-1.0, 0.0, 0.3, 1.0, 1.5])
def test_every_objective_has_coefficients(objective: str, parameter: float) -> None:
    entry = OBJECTIVES[objective]
    M, K = 1 if entry.single_M else 5, 1 if entry.single_K else 7
    assert coefficients(objective, parameter if entry.parameter else None, M, K) is not None


def test_some_by_hand() -> None:
    vae, miwae, over_all = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)
    piwae = coefficients("piwae", None, 5, 7)
    assert piwae is not None
    assert (piwae.theta, piwae.path, piwae.score, piwae.bound) == (over_all, miwae, miwae, (0.0, 0.0, 1.0))
    ciwae = coefficients("ciwae", 0.3, 1, 7)
    assert ciwae is not None
    assert (ciwae.theta, ciwae.bound) == ((0.3, 0.7, 0.0, 0.0), (0.3, 0.7, 0.0))
    rws = coefficients("rws-dreg", None, 1, 7)
    assert rws is not None
    assert (rws.path, rws.score) == ((0.0, 1.0, 0.0, -1.0), (0.0, 0.0, 0.0, 0.0))
    vr = coefficients("vr", 0.25, 1, 7)
    assert vr is not None
    assert (vr.path, vr.power, vr.greatest) == (miwae, 0.75, False)
    greatest = coefficients("vr-max", None, 1, 7)
    assert greatest is not None
    assert (greatest.path, greatest.greatest) == (miwae, True)
    renyi_of_one = coefficients("vr", 1.0, 1, 7)
    assert renyi_of_one is not None
    assert (renyi_of_one.theta, renyi_of_one.bound) == (vae, (1.0, 0.0, 0.0))


def cubes(log_w: Tensor) -> Weights:
    w = normalized(log_w)
    return Weights(w, w**3, w)


def of_one_shape(log_w: Tensor) -> Weights:
    """What the terms can say at the shape of the fit alone."""
    w = (1 if log_w.shape[1] == 4 else 2) * uniform(log_w)
    return Weights(w, w, w)


@pytest.mark.parametrize("weights", [cubes, of_one_shape])
def test_what_the_terms_cannot_say(weights: Callable[[Tensor], Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objectives.OBJECTIVES, "new", Objective(weights, elbo, "here"))
    coefficients.cache_clear()
    assert coefficients("new", None, 3, 5) is None
    coefficients.cache_clear()


def test_an_estimator_that_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(log_w: Tensor) -> Weights:
        w = (uniform(log_w) + normalized(log_w)) / 2
        return Weights(w, w, torch.zeros_like(w))

    monkeypatch.setitem(objectives.OBJECTIVES, "new", Objective(halves, miwae_bound, "here"))
    coefficients.cache_clear()
    result = coefficients("new", None, 3, 5)
    coefficients.cache_clear()
    assert result is not None
    assert (result.theta, result.score, result.bound) == ((0.5, 0.5, 0.0, 0.0), (0.0,) * 4, (0.0, 1.0, 0.0))
