from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.gaussian_toy import (
    GROUPS,
    SWEEPS,
    Toy,
    asymptotic_snr_dreg,
    asymptotic_snr_iwae,
    exact_snr_vae,
    fitted_slope,
    log_weights,
    make_toy,
    measure_toy,
    tilted,
    toy_gradients,
    toy_optimum,
    weighted_gradients,
)
from pipeline.evaluation.snr import estimate_snr
from pipeline.experiments.spec import ToySpec
from pipeline.objectives import OBJECTIVES

CPU = torch.device("cpu")
Q_STD = math.sqrt(2 / 3)


def small(points: int = 6, dimensions: int = 3, offset: float = 0.3) -> Toy:
    return make_toy(1, dimensions, points, offset)


def noise(toy: Toy, replicates: int, T: int) -> Tensor:
    shape = (replicates, *toy.x.shape[:1], T, toy.x.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gaussian(value: Tensor, mean: Tensor, variance: float) -> Tensor:
    """log N(value; mean, variance I), summed over the last axis."""
    D = value.shape[-1]
    return -(value - mean).square().sum(-1) / (2 * variance) - D / 2 * math.log(2 * math.pi * variance)


def plain_log_weights(toy: Toy, eps: Tensor, fixed_q: bool = False) -> Tensor:
    """log p(z) + log p(x | z) - log q(z | x), [N, T], term by term; q's parameters held in log q if `fixed_q`."""
    mean = (toy.x @ toy.A.T + toy.b).unsqueeze(1)
    z = mean + Q_STD * eps
    x = toy.x.unsqueeze(1)
    return gaussian(z, toy.mu, 1) + gaussian(x, z, 1) - gaussian(z, mean.detach() if fixed_q else mean, 2 / 3)


def test_log_weights_are_those_of_the_densities() -> None:
    toy = small()
    eps = noise(toy, 1, 5)[0]
    torch.testing.assert_close(log_weights(toy, eps), plain_log_weights(toy, eps))


@pytest.mark.parametrize(("objective", "M", "K"), [("vae", 4, 1), ("iwae", 1, 4), ("miwae", 2, 2), ("piwae", 2, 2)])
def test_gradients_are_autograds_of_the_bound(objective: str, M: int, K: int) -> None:
    toy, entry = small(), OBJECTIVES[objective]
    eps = noise(toy, 2, M * K)
    grouped = log_weights(toy, eps).flatten(0, 1).T.unflatten(0, (M, K))
    drawn = weighted_gradients(toy, entry.weights(grouped), eps)
    for r in range(2):
        learnable = replace(toy, **{name: getattr(toy, name).clone().requires_grad_() for name in ("mu", "A", "b")})
        log_w = plain_log_weights(learnable, eps[r]).T.unflatten(0, (M, K))
        (mu,) = torch.autograd.grad(entry.bound(log_w).mean(), learnable.mu, retain_graph=True)
        A, b = torch.autograd.grad((entry.encoder_bound or entry.bound)(log_w).mean(), [learnable.A, learnable.b])
        torch.testing.assert_close(drawn["mu"][r], mu)
        torch.testing.assert_close(drawn["b"][r], b)
        torch.testing.assert_close(drawn["A"][r], A.flatten())
        torch.testing.assert_close(drawn["encoder"][r], torch.cat([b, A.flatten()]))


def test_dreg_gradient_is_the_weighted_path_derivative() -> None:
    toy = small()
    eps = noise(toy, 1, 4)
    grouped = log_weights(toy, eps).flatten(0, 1).T.unflatten(0, (1, 4))
    drawn = weighted_gradients(toy, OBJECTIVES["iwae-dreg"].weights(grouped), eps)
    learnable = replace(toy, A=toy.A.clone().requires_grad_(), b=toy.b.clone().requires_grad_())
    log_w = plain_log_weights(learnable, eps[0], fixed_q=True)
    surrogate = (torch.softmax(log_w, 1).square().detach() * log_w).sum(1).mean()
    A, b = torch.autograd.grad(surrogate, [learnable.A, learnable.b])
    torch.testing.assert_close(drawn["b"][0], b)
    torch.testing.assert_close(drawn["A"][0], A.flatten())


def test_likelihood_bound_and_optimum_are_exact() -> None:
    toy = small(offset=0.1)
    # log p(x) = log p(x, z) - log p(z | x) at any z.
    z = torch.zeros_like(toy.x)
    joint = gaussian(z, toy.mu, 1) + gaussian(toy.x, z, 1)
    torch.testing.assert_close(toy.log_px, joint - gaussian(z, toy.posterior_mean, 1 / 2))
    log_w = log_weights(toy, noise(toy, 1, 200_000)[0])
    error = 5 * log_w.std(1) / math.sqrt(200_000)
    assert ((log_w.mean(1) - toy.elbo).abs() < error).all()
    assert ((torch.logsumexp(log_w, 1) - math.log(200_000) - toy.log_px).abs() < 0.02).all()
    best = toy_optimum(toy.x)
    learnable = replace(best, **{name: getattr(best, name).clone().requires_grad_() for name in ("mu", "A", "b")})
    for gradient in torch.autograd.grad(learnable.elbo.mean(), [learnable.mu, learnable.A, learnable.b]):
        assert gradient.abs().max() < 1e-12
    assert best.delta.abs().max() < 1e-12
    assert (best.elbo.mean() > toy.elbo.mean()).all()


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_tilted_moments_against_quadrature(power: int) -> None:
    toy = make_toy(2, 1, 3, 0.3)
    grid = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    moments = tilted(toy, power)
    for n in range(3):
        delta = toy.delta[n, 0]
        log_q = gaussian(grid[:, None], delta[None], 2 / 3)
        log_rho = gaussian(grid[:, None], torch.zeros(1, dtype=torch.float64), 1 / 2) - log_q
        density = (log_q + power * log_rho).exp() * (grid[1] - grid[0])
        assert moments.log_norm[n] == pytest.approx(float(density.sum().log()), abs=1e-9)
        mean = float((density * grid).sum() / density.sum())
        assert moments.mean[n, 0] == pytest.approx(mean, abs=1e-9)
        assert moments.variance == pytest.approx(float((density * (grid - mean) ** 2).sum() / density.sum()), abs=1e-9)


def test_simulated_vae_meets_its_exact_snr() -> None:
    toy = make_toy(4, 2, 64, 0.1)
    estimates = estimate_snr(toy_gradients(toy, 3, 3, CPU), 1500, 200)
    exact = exact_snr_vae(toy, 3)
    for group in GROUPS:
        assert estimates[f"vae/{group}"].rms == pytest.approx(float(exact[group].square().mean().sqrt()), rel=0.06)


def test_asymptotes_against_quadrature() -> None:
    """Theorem 1 and its counterpart for DReG, every expectation over q a sum on a grid (D = 1)."""
    toy = make_toy(2, 1, 3, 0.3)
    M, K = 3, 7
    u = torch.linspace(-12, 12, 40_001, dtype=torch.float64)  # z - E[z | x]
    q_log = [gaussian(u[:, None], delta, 2 / 3) for delta in toy.delta]

    def over_q(n: int, values: Tensor) -> Tensor:
        return (q_log[n].exp() * values).sum() * (u[1] - u[0])

    def rho_squared(delta: Tensor) -> Tensor:
        log_q = gaussian(u[:, None], delta, 2 / 3)
        log_rho = gaussian(u[:, None], torch.zeros(1, dtype=torch.float64), 1 / 2) - log_q
        return (log_q + 2 * log_rho).exp().sum() * (u[1] - u[0])

    means: dict[str, list[Tensor]] = {"iwae": [], "mu": [], "dreg": []}
    variances: dict[str, list[Tensor]] = {"iwae": [], "mu": [], "dreg": []}
    for n, delta in enumerate(toy.delta):
        rho = (gaussian(u[:, None], torch.zeros(1, dtype=torch.float64), 1 / 2) - q_log[n]).exp()
        slope = (rho_squared(delta + 1e-4) - rho_squared(delta - 1e-4)) / 2e-4
        means["iwae"].append(-slope / 2 / K)
        variances["iwae"].append(over_q(n, rho**2 * (2 * u) ** 2) / (M * K))
        # log p(x) rises with mu by (x - mu) / 2; a sample's gradient is z - mu = u + (x - mu) / 2; delta falls by 1/2.
        means["mu"].append((toy.x[n, 0] - toy.mu[0]) / 2 - slope * -0.5 / 2 / K)
        variances["mu"].append(over_q(n, rho**2 * u**2) / (M * K))
        path = -2 * u + 1.5 * (u - delta)
        mean = over_q(n, rho**2 * path)
        assert mean / K == pytest.approx(float(means["iwae"][-1]), rel=1e-6)  # DReG's expectation is IWAE's
        means["dreg"].append(mean / K)
        influence = rho**2 * path - mean - 2 * mean * (rho - 1)
        variances["dreg"].append(over_q(n, influence**2) / K**3)
    iwae, dreg = asymptotic_snr_iwae(toy, M, K), asymptotic_snr_dreg(toy, K)
    for name, ours in (("iwae", iwae["b"]), ("mu", iwae["mu"]), ("dreg", dreg["b"])):
        exact = torch.stack(means[name]).sum().abs() / torch.stack(variances[name]).sum().sqrt()
        assert ours[0] == pytest.approx(float(exact), rel=1e-6)
    by_x = [mean * x for mean, x in zip(means["iwae"], toy.x[:, 0], strict=True)]
    spread = [variance * x**2 for variance, x in zip(variances["iwae"], toy.x[:, 0], strict=True)]
    assert iwae["A"][0] == pytest.approx(float(torch.stack(by_x).sum().abs() / torch.stack(spread).sum().sqrt()))


def test_slopes_on_the_toy() -> None:
    """Rainforth's setting on fewer points: the encoder's SNR falls as 1 / sqrt(K), DReG's and VAE's rise."""
    toy = make_toy(0, points=512)
    metrics, arrays = measure_toy(ToySpec(0, (4, 8, 16, 32, 64), 200), CPU, toy)
    assert metrics["slope/iwae/encoder"] == pytest.approx(-0.5, abs=0.1)
    assert metrics["slope/vae/encoder"] == pytest.approx(0.5, abs=0.06)
    assert metrics["slope/vae/mu"] == pytest.approx(0.5, abs=0.08)
    assert metrics["slope/iwae-dreg/encoder"] > 0.25
    assert metrics["slope/iwae/mu"] == pytest.approx(metrics["slope_closed_form/iwae/mu"], abs=0.08)
    for sweep in SWEEPS:
        assert metrics[f"slope_closed_form/{sweep}/b"] == pytest.approx(metrics[f"slope_limit/{sweep}/b"], abs=1e-6)
        assert arrays[f"{sweep}/A/snr"].shape == arrays[f"{sweep}/A/snr_closed_form"].shape == (5, 400)
        assert arrays[f"{sweep}/mu/dsnr"].shape == (5, 3)
        assert arrays[f"{sweep}/b/draws"].shape == (5, 200)


@pytest.mark.parametrize(("seed", "least"), [(0, 10), (1, 8), (2, 8), (3, 8)])
def test_decoder_slope_approaches_its_limit(seed: int, least: int) -> None:
    """The toy of seed 0 needs more samples than others."""
    toy = make_toy(seed)
    sizes = np.array([2.0**i for i in range(least, least + 8)])
    squares = np.array([float(asymptotic_snr_iwae(toy, 1, int(K))["mu"].square().mean()) for K in sizes])
    assert fitted_slope(sizes, squares, np.zeros(8))[0] == pytest.approx(0.5, abs=1e-3)


def test_fitted_slope_of_a_power_law() -> None:
    sizes = np.array([1.0, 2, 4, 8, 16])
    squares = 3 * sizes**-1.4
    squares[0] = 99  # below the upper half of the axis: not looked at
    slope, error = fitted_slope(sizes, squares, 0.2 * squares)
    assert slope == pytest.approx(-0.7)
    assert error == pytest.approx(0.1 / np.sqrt(2) / np.log(2))  # three points, log 2 apart, errors of 0.1 each
    assert np.isnan(fitted_slope(sizes, -squares, squares)).all()


def test_fingerprints_are_of_what_is_measured() -> None:
    """`ToySpec.settings`, by which results are matched, and the sweeps name the same estimators."""
    spec = ToySpec(0, (1, 3, 7), 16)
    assert spec.settings() == [(sweep.objective, *sweep.split(T)) for sweep in SWEEPS.values() for T in spec.samples]


def test_sweeps_share_their_noise_and_agree_at_one_sample() -> None:
    toy = small()
    one = toy_gradients(toy, 1, 0, CPU)(0, 4)
    for group in GROUPS:
        torch.testing.assert_close(one[f"vae/{group}"], one[f"iwae/{group}"])
