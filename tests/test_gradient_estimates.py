"""Expectation and variance of the encoder's gradient estimates, on a model small enough for 200,000 draws of each.

Two stochastic layers of one unit each, in the form that the big model has: q(h1 | x) q(h2 | h1), p(h2) p(h1 | h2)
p(x | h1); with one layer h2 is left out. Every draw has its own copy of q's parameters, so that one backward pass gives
the gradients of all draws. Two means count as equal when no parameter is 4 standard errors off, as different when some
parameter is 8 off; the draws are seeded, so either is decided once and for all.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from pipeline.objectives import OBJECTIVES, Weights

DRAWS, K, X = 200_000, 4, 1.5
EQUAL, DIFFERENT = 4.0, 8.0
PHI = {"mean1": 0.3, "log_std1": -0.4, "slope2": 0.6, "mean2": -0.2, "log_std2": -0.3, "log_std_slope2": 0.25}
"""q(h1 | x) = N(mean1, exp(log_std1)^2); q(h2 | h1) = N(mean2 + slope2 h1, exp(log_std2 + log_std_slope2 h1)^2)."""
ENCODERS = {1: list(PHI)[:2], 2: list(PHI)}


def normal_log_prob(value: Tensor, mean: Tensor | float, log_std: Tensor | float) -> Tensor:
    log_std = torch.as_tensor(log_std)
    return -0.5 * ((value - mean) / log_std.exp()).square() - log_std


def sample(phi: dict[str, Tensor], eps: list[Tensor]) -> list[Tensor]:
    h1 = phi["mean1"] + phi["log_std1"].exp() * eps[0]
    if len(eps) == 1:
        return [h1]
    std2 = (phi["log_std2"] + phi["log_std_slope2"] * h1).exp()
    return [h1, phi["mean2"] + phi["slope2"] * h1 + std2 * eps[1]]


def log_weight(h: list[Tensor], phi: dict[str, Tensor], cut: bool = False) -> Tensor:
    """log w [K, draws] up to a constant; `cut` also stops the gradient through h1 into log q(h2 | h1)."""
    h1 = h[0]
    log_w = normal_log_prob(torch.tensor(X), h1, -0.3) - normal_log_prob(h1, phi["mean1"], phi["log_std1"])
    if len(h) == 1:
        return log_w + normal_log_prob(h1, 0.0, 0.0)
    below = h1.detach() if cut else h1
    mean2, log_std2 = phi["mean2"] + phi["slope2"] * below, phi["log_std2"] + phi["log_std_slope2"] * below
    log_w = log_w - normal_log_prob(h[1], mean2, log_std2)
    return log_w + normal_log_prob(h[1], 0.0, 0.0) + normal_log_prob(h1, 0.8 * h[1].tanh(), -0.2)


def leaves_and_noise(layers: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(layers)
    eps = [torch.randn(K, DRAWS, generator=generator, dtype=torch.float64) for _ in range(layers)]
    phi = {name: torch.full((DRAWS,), PHI[name], dtype=torch.float64) for name in ENCODERS[layers]}
    return {name: value.requires_grad_() for name, value in phi.items()}, eps


def gradients(weights: Weights, layers: int, cut: bool = False) -> Tensor:
    """The encoder's gradient estimate of every draw, [parameters, draws], by the formula of pipeline.objectives."""
    phi, eps = leaves_and_noise(layers)
    held = {name: value.detach() for name, value in phi.items()}
    h = sample(phi, eps)
    path = (weights.path[0] * log_weight(h, held, cut)).sum()
    score = (weights.score[0] * log_weight([value.detach() for value in h], phi)).sum()
    return torch.stack(torch.autograd.grad(path + score, list(phi.values())))


@functools.cache
def log_w(layers: int) -> Tensor:
    phi, eps = leaves_and_noise(layers)
    return log_weight(sample(phi, eps), phi).detach().unsqueeze(0)


@functools.cache
def estimates(name: str, layers: int) -> Tensor:
    args = (0.3,) if OBJECTIVES[name].parameter else ()
    return gradients(OBJECTIVES[name].weights(log_w(layers), *args), layers)


def z_scores(a: Tensor, b: Tensor) -> Tensor:
    """Per parameter the difference of the means in standard errors; the draws share their noise, so they are paired."""
    difference = a - b
    return difference.mean(1).abs() / (difference.std(1) / DRAWS**0.5)


def wake_phase(layers: int) -> Tensor:
    """What RWS climbs at its wake phase: sum_k w~_k d log q(h_k | x) / d phi."""
    w = torch.softmax(log_w(layers), 1)
    return gradients(Weights(w, torch.zeros_like(w), -w), layers)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_formula_gives_autograds_gradient_of_the_bound(layers: int) -> None:
    phi, eps = leaves_and_noise(layers)
    bound = torch.logsumexp(log_weight(sample(phi, eps), phi), 0).sum()
    torch.testing.assert_close(estimates("iwae", layers), torch.stack(torch.autograd.grad(bound, list(phi.values()))))


@pytest.mark.parametrize("layers", [1, 2])
def test_dreg_has_iwaes_mean_and_less_variance(layers: int) -> None:
    dreg, iwae = estimates("iwae-dreg", layers), estimates("iwae", layers)
    assert z_scores(dreg, iwae).max() < EQUAL
    assert (dreg.var(1) < iwae.var(1)).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_rws_dreg_has_the_wake_phases_mean_and_less_variance(layers: int) -> None:
    dreg, wake = estimates("rws-dreg", layers), wake_phase(layers)
    assert z_scores(dreg, wake).max() < EQUAL
    assert (dreg.var(1) < wake.var(1)).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_dreg_alpha_has_the_mean_of_its_two_parts(layers: int) -> None:
    mixed = 0.7 * estimates("iwae", layers) + 0.3 * wake_phase(layers)
    assert z_scores(estimates("dreg", layers), mixed).max() < EQUAL


@pytest.mark.parametrize("layers", [1, 2])
def test_the_others_have_another_mean(layers: int) -> None:
    """That the test above can fail: STL is biased for K > 1, and the Renyi bounds are other bounds."""
    for name in ("stl", "rws-dreg", "vr", "vr-max"):
        assert z_scores(estimates(name, layers), estimates("iwae", layers)).max() > DIFFERENT, name


def test_the_path_through_h1_into_q_of_h2_belongs_to_dreg() -> None:
    """With two layers, stopping it as well would bias the estimate."""
    weights = OBJECTIVES["iwae-dreg"].weights(log_w(2))
    assert z_scores(gradients(weights, 2, cut=True), estimates("iwae", 2)).max() > DIFFERENT
