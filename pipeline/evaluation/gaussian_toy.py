"""Rainforth's Gaussian model (section 4): gradient SNR against M and K where nearly everything is known exactly.

    z ~ N(mu, I),  x | z ~ N(z, I),  q(z | x) = N(A x + b, 2/3 I),  D = 20, N = 1024 points drawn from the model

at parameters near the optimum mu = mean(x), A = I/2, b = mu/2. Every entry of mu, A and b is moved from its optimum by
an independent N(0, .01^2); the paper says no more, so one seeded draw serves all settings.

With delta = E_q[z] - E[z | x] and z = E_q[z] + s eps, s^2 = 2/3, a sample's log-weight is, exactly,

    log w = log p(x) + c - |delta|^2 - 2 s delta.eps - |eps|^2 / 6,    c = D/2 log(4/3)

so an estimator needs of its samples only the weighted sums of 1 and of eps (`weighted_gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream
from pipeline.evaluation.snr import Draw, estimate_snr
from pipeline.experiments.spec import ToySpec, toy_split
from pipeline.objectives import OBJECTIVES, Weights

DIMENSIONS, POINTS = 20, 1024
Q_VARIANCE, POSTERIOR_VARIANCE = 2 / 3, 1 / 2
OFFSET = 0.01
GROUPS = ("b", "A", "encoder", "mu")
"""The encoder's parameters apart and together (b first), and the decoder's."""
NUMBERS_PER_PASS = {"cpu": 2**22, "cuda": 2**28}
"""Noise that is held at once."""
KEPT_DRAWS = 1000
"""Gradients of the first b and mu that are kept for histograms (Rainforth's Figure 1)."""


@dataclass(frozen=True)
class Toy:
    """Data and parameters, float64: x [N, D], mu [D], A [D, D], b [D]."""

    x: Tensor
    mu: Tensor
    A: Tensor
    b: Tensor

    @property
    def posterior_mean(self) -> Tensor:
        """E[z | x], [N, D]; the posterior is N(it, I/2)."""
        return (self.x + self.mu) / 2

    @property
    def q_mean(self) -> Tensor:
        return self.x @ self.A.T + self.b

    @property
    def delta(self) -> Tensor:
        """What q's mean is off by, [N, D]."""
        return self.q_mean - self.posterior_mean

    @property
    def log_px(self) -> Tensor:
        """log p(x), [N] nats: x ~ N(mu, 2 I)."""
        D = self.x.shape[1]
        return -(self.x - self.mu).square().sum(1) / 4 - D / 2 * math.log(4 * math.pi)

    @property
    def elbo(self) -> Tensor:
        """log p(x) - KL(q || posterior), [N] nats."""
        ratio = Q_VARIANCE / POSTERIOR_VARIANCE
        D = self.x.shape[1]
        return self.log_px - self.delta.square().sum(1) - D / 2 * (ratio - 1 - math.log(ratio))


def toy_optimum(x: Tensor) -> Toy:
    """The parameters that maximize the bound on this data, whatever M and K."""
    mu = x.mean(0)
    return Toy(x, mu, torch.eye(x.shape[1], dtype=x.dtype) / 2, mu / 2)


def make_toy(seed: int, dimensions: int = DIMENSIONS, points: int = POINTS, offset: float = OFFSET) -> Toy:
    """Data from the model, its mean drawn from N(0, I), and parameters off their optimum by N(0, offset^2)."""

    def normal(purpose: str, *shape: int) -> Tensor:
        return Stream(seed, f"toy {purpose}", torch.device("cpu")).normal(0, shape).double()

    z = normal("mean", dimensions) + normal("z", points, dimensions)
    best = toy_optimum(z + normal("x", points, dimensions))
    return Toy(
        best.x,
        best.mu + offset * normal("mu", dimensions),
        best.A + offset * normal("A", dimensions, dimensions),
        best.b + offset * normal("b", dimensions),
    )


def log_weights(toy: Toy, eps: Tensor) -> Tensor:
    """log w of the samples E_q[z] + s eps, [..., N, T] nats. `eps`: [..., N, T, D] standard normal."""
    D = toy.x.shape[1]
    constant = toy.log_px - toy.delta.square().sum(1) - D / 2 * math.log(POSTERIOR_VARIANCE / Q_VARIANCE)
    linear = (eps @ toy.delta.to(eps.dtype).unsqueeze(2)).squeeze(-1)
    quadratic = eps.square().sum(-1) * (Q_VARIANCE / (2 * POSTERIOR_VARIANCE) - 0.5)
    slope = math.sqrt(Q_VARIANCE) / POSTERIOR_VARIANCE
    return constant.to(eps.dtype).unsqueeze(1) - slope * linear - quadratic


def weighted_gradients(toy: Toy, weights: Weights, eps: Tensor) -> dict[str, Tensor]:
    """R gradients of the mean over points by group, [R, parameters] each (A row by row).

    `weights`: [M, K, R * N] each; `eps`: [R, N, M * K, D]. With s the standard deviation of q,
    d log w / d z = -2 (z - E[z | x]) + eps / s at fixed q; d log w / d E_q[z] = -eps / s at fixed z;
    d log w / d mu = z - mu.
    """
    R, N = eps.shape[:2]
    flat = eps.flatten(0, 1)

    def sums(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sums over samples of 1, [R, N, 1], and of eps, [R, N, D]."""
        rows = weight.flatten(0, 1).T.contiguous()
        of_eps = torch.bmm(rows.unsqueeze(1), flat)
        return rows.sum(1).view(R, N, 1), of_eps.view(R, N, -1)

    s = math.sqrt(Q_VARIANCE)
    path, path_eps = sums(weights.path)
    theta, theta_eps = (path, path_eps) if weights.theta is weights.path else sums(weights.theta)
    score_eps = path_eps if weights.score is weights.path else sums(weights.score)[1]
    delta, from_mu, x = (value.to(eps.dtype) for value in (toy.delta, toy.q_mean - toy.mu, toy.x))
    of_mu = theta * from_mu + s * theta_eps
    of_q_mean = -(path * delta + s * path_eps) / POSTERIOR_VARIANCE + (path_eps - score_eps) / s
    b = of_q_mean.mean(1)
    A = torch.einsum("rni,nj->rij", of_q_mean, x).flatten(1) / N
    return {"b": b, "A": A, "encoder": torch.cat([b, A], dim=1), "mu": of_mu.mean(1)}


@dataclass(frozen=True)
class Tilted:
    """q(z) (p(z | x) / q(z))^power / `E[rho^power]`, a Gaussian; rho = w / p(x). All per point."""

    log_norm: Tensor
    """log E_q[rho^power], [N]"""
    mean: Tensor
    """Minus E[z | x], [N, D]."""
    variance: float


def tilted(toy: Toy, power: int) -> Tilted:
    """Moments of normalized weights under q, in closed form: the product of powers of two Gaussians."""
    precision = power / POSTERIOR_VARIANCE - (power - 1) / Q_VARIANCE
    delta = toy.delta
    mean = -(power - 1) / Q_VARIANCE / precision * delta
    D = delta.shape[1]
    log_scale = (power - 1) * math.log(Q_VARIANCE) - power * math.log(POSTERIOR_VARIANCE) - math.log(precision)
    exponent = (power - 1) / Q_VARIANCE * delta.square() + precision * mean.square()
    return Tilted(D / 2 * log_scale + exponent.sum(1) / 2, mean, 1 / precision)


def _snr(mean: Tensor, variance: Tensor, by: Tensor | None) -> Tensor:
    """|mean| / sd of a sum over independent points, [parameters]; `by`: what each point is multiplied by."""
    if by is None:
        return mean.sum(0).abs() / variance.sum(0).sqrt()
    total, spread = mean.T @ by, variance.T @ by.square()
    return (total.abs() / spread.sqrt()).flatten()


def _groups(toy: Toy, q_mean: tuple[Tensor, Tensor], mu: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """SNR by group from the (mean, variance) of every point's gradients in E_q[z] and in mu, [N, D] each."""
    b, A = _snr(*q_mean, None), _snr(*q_mean, toy.x)
    return {"b": b, "A": A, "encoder": torch.cat([b, A]), "mu": _snr(*mu, None)}


def exact_snr_vae(toy: Toy, M: int) -> dict[str, Tensor]:
    """The SNR of VAE with M samples (K = 1) by group, exact."""
    ones = torch.ones_like(toy.delta)
    q_mean = -toy.delta / POSTERIOR_VARIANCE, ones * Q_VARIANCE / POSTERIOR_VARIANCE**2 / M
    mu = toy.q_mean - toy.mu, ones * Q_VARIANCE / M
    return _groups(toy, q_mean, mu)


def asymptotic_snr_iwae(toy: Toy, M: int, K: int) -> dict[str, Tensor]:
    """What Rainforth's Theorem 1 says of the SNR of (M)IWAE by group, with its constants; exact for K to infinity.

    sqrt(M) |sum sqrt(K) d log p(x) - d E[rho^2] / (2 sqrt(K))| / sqrt(sum E[rho^2 (d log w - d log p(x))^2]), where
    the encoder has d log p(x) = 0.
    """
    two = tilted(toy, 2)
    second = two.log_norm.exp().unsqueeze(1)
    square = second * (two.variance + two.mean.square())
    # d E[rho^2] / d delta = E[rho^2] * 2 delta / (2 q - p), with p and q the two variances.
    slope = second * 2 * toy.delta / (2 * Q_VARIANCE - POSTERIOR_VARIANCE)
    q_mean = -slope / 2 / K, square / POSTERIOR_VARIANCE**2 / (M * K)
    # delta falls by half of what mu rises.
    return _groups(toy, q_mean, ((toy.x - toy.mu) / 2 + slope / 4 / K, square / (M * K)))


def asymptotic_snr_dreg(toy: Toy, K: int) -> dict[str, Tensor]:
    """The leading term of the SNR of IWAE-DReG (Tucker et al. 2019) by group; its decoder gradient is IWAE's.

    Its encoder gradient is sum_k w~_k^2 g_k, g the path derivative. To first order in 1/K it is the mean over k of
    rho^2 g - E[rho^2 g] (2 rho - 1), over K: mean O(1 / K), standard deviation O(K^(-3/2)).
    """
    tilts = {power: tilted(toy, power) for power in (2, 3, 4)}
    norms = {power: tilt.log_norm.exp().unsqueeze(1) for power, tilt in tilts.items()}
    # g = slope * (z - E[z | x]) + shift
    slope, shift = 1 / Q_VARIANCE - 1 / POSTERIOR_VARIANCE, -toy.delta / Q_VARIANCE
    first = {power: norms[power] * (slope * tilt.mean + shift) for power, tilt in tilts.items()}
    four = tilts[4]
    second = norms[4] * (slope**2 * (four.variance + four.mean.square()) + 2 * slope * shift * four.mean + shift**2)
    mean = first[2]
    variance = second - mean.square() - 4 * mean * (first[3] - mean) + 4 * mean.square() * (norms[2] - 1)
    unused = torch.zeros_like(mean), torch.ones_like(mean)
    return _groups(toy, (mean / K, variance / K**3), unused) | {"mu": asymptotic_snr_iwae(toy, 1, K)["mu"]}


@dataclass(frozen=True)
class Sweep:
    """A line of Rainforth's figures: one objective, M or K growing while the other is 1."""

    objective: str
    """One of `TOY_SWEEPS`."""
    encoder_slope: float
    """Slope of the encoder's log SNR in the logarithm of what grows, in the limit."""
    snr: Callable[[Toy, int], dict[str, Tensor]]
    """The SNR in closed form: exact in M, asymptotic in K."""
    decoder_slope: float = 0.5

    def split(self, T: int) -> tuple[int, int]:
        """(M, K) of T samples."""
        return toy_split(self.objective, T)

    def slope(self, group: str) -> float:
        return self.decoder_slope if group == "mu" else self.encoder_slope


SWEEPS = {
    "iwae": Sweep("iwae", -0.5, lambda toy, K: asymptotic_snr_iwae(toy, 1, K)),
    "vae": Sweep("vae", 0.5, exact_snr_vae),
    "iwae-dreg": Sweep("iwae-dreg", 0.5, asymptotic_snr_dreg),
}


def toy_gradients(toy: Toy, T: int, seed: int, device: torch.device) -> Draw:
    """Draws for `estimate_snr` of every sweep at T samples, as `<sweep>/<group>`; the sweeps share their noise."""
    stream = Stream(seed, f"toy noise {T}", device)
    there = Toy(*(value.to(device) for value in (toy.x, toy.mu, toy.A, toy.b)))
    points, dimensions = toy.x.shape

    def draw(first: int, count: int) -> dict[str, Tensor]:
        eps = stream.normals(torch.arange(first, first + count, device=device), (points, T, dimensions))
        log_w = log_weights(there, eps).flatten(0, 1).T
        gradients: dict[str, Tensor] = {}
        for name, sweep in SWEEPS.items():
            weights = OBJECTIVES[sweep.objective].weights(log_w.unflatten(0, sweep.split(T)))
            of_sweep = weighted_gradients(there, weights, eps)
            gradients |= {f"{name}/{group}": values for group, values in of_sweep.items()}
        return gradients

    return draw


def fitted_slope(
    sizes: NDArray[np.float64], squares: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope of log sqrt(squares) in log sizes by least squares, and its standard error from those of the squares.

    Fitted to the upper half of the logarithmic axis, since the theory is of large sizes. NaN where noise hides a value.
    """
    chosen = (sizes >= np.sqrt(sizes.max())) & (squares > 0)
    if chosen.sum() < 2:
        return float("nan"), float("nan")
    x = np.log(sizes[chosen]) - np.log(sizes[chosen]).mean()
    c = x / np.square(x).sum()
    relative = errors[chosen] / squares[chosen] / 2
    return float(c @ np.log(squares[chosen]) / 2), float(np.sqrt(np.square(c) @ np.square(relative)))


def measure_toy(
    spec: ToySpec, device: torch.device, toy: Toy | None = None, advance: Callable[[int], None] = lambda samples: None
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Every sweep of `SWEEPS`. `advance(samples)` is called as samples of all points are drawn.

    Metrics, each followed by `/<sweep>/<group>`: `slope`, `slope_se`, `slope_closed_form` (the same fit to the closed
    form) and `slope_limit`; and `gradients`. Arrays: `samples`; and by sweep and group, a row for each of `samples`,
    `<sweep>/<group>/snr` and `snr_closed_form` [parameters], `square`, `square_se` (see `SnrEstimate`), `dsnr` and its
    quartiles [3], `draws` (the first gradients in the first parameter).
    """
    toy = toy or make_toy(spec.seed)
    per_pass = NUMBERS_PER_PASS[device.type]
    rows: dict[str, list[NDArray[Any]]] = {}
    for T in spec.samples:
        kept: dict[str, list[Tensor]] = {}
        source = toy_gradients(toy, T, spec.seed, device)

        def draw(
            first: int, count: int, T: int = T, source: Draw = source, kept: dict[str, list[Tensor]] = kept
        ) -> dict[str, Tensor]:
            gradients = source(first, count)
            for key, values in gradients.items():
                kept.setdefault(key, []).append(values[:, 0].cpu())
            advance(count * T)
            return gradients

        estimates = estimate_snr(draw, spec.gradients, max(1, per_pass // (toy.x.numel() * T)))
        for name, sweep in SWEEPS.items():
            for group, closed_form in sweep.snr(toy, T).items():
                key = f"{name}/{group}"
                estimate = estimates[key]
                values = {
                    "snr": estimate.per_parameter.float().numpy(),
                    "snr_closed_form": closed_form.float().numpy(),
                    "square": np.array(estimate.square),
                    "square_se": np.array(estimate.square_se),
                    "dsnr": np.array([estimate.dsnr, *np.quantile(estimate.ratios.numpy(), [0.25, 0.75])]),
                    "draws": torch.cat(kept[key])[:KEPT_DRAWS].float().numpy(),
                }
                for part, value in values.items():
                    rows.setdefault(f"{key}/{part}", []).append(value)
    arrays = {key: np.stack(values) for key, values in rows.items()}
    sizes = np.array(spec.samples, dtype=np.float64)
    metrics: dict[str, float] = {"gradients": float(spec.gradients)}
    for name, sweep in SWEEPS.items():
        for group in GROUPS:
            key = f"{name}/{group}"
            slope, error = fitted_slope(sizes, arrays[f"{key}/square"], arrays[f"{key}/square_se"])
            closed = np.square(arrays[f"{key}/snr_closed_form"].astype(np.float64)).mean(1)
            metrics |= {f"slope/{key}": slope, f"slope_se/{key}": error}
            metrics[f"slope_closed_form/{key}"] = fitted_slope(sizes, closed, np.zeros_like(closed))[0]
            metrics[f"slope_limit/{key}"] = sweep.slope(group)
    return metrics, arrays | {"samples": np.array(spec.samples)}
