"""Annealed importance sampling: log p(x) of a trained decoder without the help of its encoder.

The latent variables are written as standard normal noise u (h_L = u_L, h_l = mean_l(h_(l+1)) + std_l(h_(l+1)) u_l), so
that models of any depth have the prior N(0, I), and the geometric path from prior to joint is

    log f_beta(u) = log N(u; 0, I) + beta log p(x | u),   beta from 0 to 1.

AIS (Neal 2001; for decoders Wu et al. 2017) moves chains up the path by Hamiltonian Monte Carlo and weighs them:
E[w] = p(x), so log mean w is a stochastic lower bound. On data simulated from the model an exact posterior sample is
known; the reverse chain from it gives E[1 / w] = 1 / p(x), a stochastic upper bound: bidirectional Monte Carlo (Grosse
et al. 2015, 2016). Step sizes are found in a pilot run and then held: adapting on the way would break E[w] = p(x).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.likelihood import IMAGES_PER_BLOCK, likelihoods, model_log_weights
from pipeline.models.kernels import bernoulli
from pipeline.models.log_weights import decode
from pipeline.models.networks import Parameters
from pipeline.randomness import stream_seed

LEAPFROGS = 3
"""Few, for more temperatures: at equal cost 5 and 10 left two and three times the spread of log w (docs/ais.md)."""
ACCEPTANCE = 0.65
"""What the pilot run steers each step size to."""
FIRST_STEP = 0.1
PILOT_SHARE, PILOT_REPEATS, PILOT_START = 20, 2, 20
"""The pilot run has so many times fewer temperatures, with so many transitions at each and at the first one."""
JITTER = 0.2
"""Steps vary by this share at random: equal ones can bring a chain back to where it started."""
PATIENCE = 4.0
"""Slope of the sigmoid that spaces the betas: they are dense at both ends."""

LogLikelihood = Callable[[Tensor], Tensor]
"""u [chains, images, D] -> log p(x | u) [chains, images], nats; differentiable."""


def betas(transitions: int) -> Tensor:
    """The path's inverse temperatures 0 = beta_0 < ... < beta_transitions = 1 [transitions + 1], float64."""
    raw = torch.sigmoid(PATIENCE * torch.linspace(-1, 1, transitions + 1, dtype=torch.float64))
    return (raw - raw[0]) / (raw[-1] - raw[0])


def decoder_log_likelihood(p: Parameters, x: Tensor) -> LogLikelihood:
    """Of one model (R = 1) in float64, which PyTorch differentiates. `x`: [images, 784] in {0, 1}."""

    def log_likelihood(u: Tensor) -> Tensor:
        rows = u.flatten(0, 1).unsqueeze(0)
        logits = decode(p, list(rows.split(p.latent, dim=-1)))
        return bernoulli(logits, x.unsqueeze(0), residual=False)[0][0]

    return log_likelihood


@dataclass(frozen=True)
class _Point:
    """Where chains stand: u [chains, images, D], its log-likelihood [chains, images] and that one's gradient."""

    u: Tensor
    log_px: Tensor
    gradient: Tensor

    @staticmethod
    def at(log_likelihood: LogLikelihood, u: Tensor) -> _Point:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            log_px = log_likelihood(u)
            (gradient,) = torch.autograd.grad(log_px.sum(), u)
        return _Point(u.detach(), log_px.detach(), gradient)

    def log_f(self, beta: float) -> Tensor:
        return beta * self.log_px - self.u.square().sum(-1) / 2

    def force(self, beta: float) -> Tensor:
        return beta * self.gradient - self.u


def _hmc(
    log_likelihood: LogLikelihood, start: _Point, beta: float, step: float, leapfrogs: int, generator: torch.Generator
) -> tuple[_Point, Tensor]:
    """One transition that leaves f_beta as it is, and its acceptance probability [chains, images]."""

    def drawn(shape: torch.Size, draw: Callable[..., Tensor]) -> Tensor:
        return draw(shape, generator=generator, device=generator.device, dtype=start.u.dtype)

    momentum = first = drawn(start.u.shape, torch.randn)
    step *= 1 + JITTER * (2 * drawn(torch.Size([]), torch.rand).item() - 1)
    point = start
    for _ in range(leapfrogs):
        momentum = momentum + step / 2 * point.force(beta)
        point = _Point.at(log_likelihood, point.u + step * momentum)
        momentum = momentum + step / 2 * point.force(beta)
    gained = point.log_f(beta) - start.log_f(beta) - (momentum.square() - first.square()).sum(-1) / 2
    probability = gained.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accepted = drawn(probability.shape, torch.rand) < probability
    taken = accepted.unsqueeze(-1)
    return (
        _Point(
            torch.where(taken, point.u, start.u),
            torch.where(accepted, point.log_px, start.log_px),
            torch.where(taken, point.gradient, start.gradient),
        ),
        probability,
    )


@dataclass(frozen=True)
class Path:
    """Inverse temperatures [transitions + 1] and the leapfrog step at each."""

    betas: Tensor
    steps: Tensor


def tune(
    log_likelihood: LogLikelihood, u: Tensor, transitions: int, generator: torch.Generator, leapfrogs: int = LEAPFROGS
) -> Path:
    """A path of `transitions` with step sizes from a pilot run of chains that start at `u`, draws of N(0, I)."""
    pilot = betas(max(transitions // PILOT_SHARE, 10))
    step, found = FIRST_STEP, []
    point = _Point.at(log_likelihood, u)
    for number, beta in enumerate(pilot.tolist()):
        for _ in range(PILOT_REPEATS if number else PILOT_START):
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, generator)
            step *= math.exp(probability.mean().item() - ACCEPTANCE)
        found.append(step)
    own = betas(transitions)
    return Path(own, _interpolated(own, pilot, torch.tensor(found, dtype=torch.float64)))


def _interpolated(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation of log values."""
    right = torch.searchsorted(known, at).clamp(1, len(known) - 1)
    share = (at - known[right - 1]) / (known[right] - known[right - 1])
    return (values.log()[right - 1] * (1 - share) + values.log()[right] * share).exp()


def anneal(
    log_likelihood: LogLikelihood,
    u: Tensor,
    path: Path,
    generator: torch.Generator,
    reverse: bool = False,
    leapfrogs: int = LEAPFROGS,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, float]:
    """log w of AIS chains [chains, images] and their mean acceptance rate. `advance()` is called every transition.

    Forward: `u` are draws of N(0, I), E[w] = p(x). Reverse: `u` are exact draws of p(u | x), E[1 / w] = 1 / p(x).
    """
    log_w = torch.zeros(u.shape[:2], dtype=u.dtype, device=u.device)
    point = _Point.at(log_likelihood, u)
    rates = []
    for beta, step, rise in _way(path, reverse):
        if reverse:
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, generator)
            log_w += rise * point.log_px
        else:
            log_w += rise * point.log_px
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, generator)
        rates.append(probability.mean())
        advance()
    return log_w, float(torch.stack(rates).mean())


def _way(path: Path, reverse: bool) -> Iterator[tuple[float, float, float]]:
    """(beta, step size, rise of beta to it from the one before) of every transition, in the order of the chain."""
    rises = path.betas.diff()
    stops = list(zip(path.betas[1:].tolist(), path.steps[1:].tolist(), rises.tolist(), strict=True))
    return iter(stops[::-1] if reverse else stops)


def lower_bound(log_w: Tensor) -> Tensor:
    """log mean w of forward chains, [images]: its expectation is below log p(x)."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def upper_bound(log_w: Tensor) -> Tensor:
    """-log mean 1/w of reverse chains, [images]: its expectation is above log p(x)."""
    return math.log(len(log_w)) - torch.logsumexp(-log_w, 0)


@dataclass(frozen=True)
class AisSpec:
    """How a trained model's likelihood is checked."""

    images: int
    """So many test images, evenly spaced, and so many simulated ones."""
    transitions: int
    chains: int
    """Per image."""
    num_samples: int
    """Of the importance-weighted estimate that is checked."""
    seed: int

    @property
    def work(self) -> int:
        """Transitions of blocks of images: up the path for both sets, down it for the simulated one."""
        return 3 * self.transitions * math.ceil(self.images / IMAGES_PER_BLOCK)


def simulate(p: Parameters, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images from the model [images, 784] in {0, 1}, and what they were made from, u [images, D]: posterior samples."""
    u = torch.randn((images, sum(p.latent)), generator=generator, device=generator.device, dtype=p.flat.dtype)
    logits = decode(p, list(u.unsqueeze(0).split(p.latent, dim=-1)))[0]
    uniform = torch.rand(logits.shape, generator=generator, device=generator.device, dtype=p.flat.dtype)
    return (uniform < logits.sigmoid()).to(p.flat.dtype), u


def second_opinion(
    flat: Tensor,
    latent: tuple[int, ...],
    test: Tensor,
    spec: AisSpec,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """The importance-weighted estimate of a trained model beside AIS, on test images and on simulated ones.

    `flat`: one row of weights [count]; `test`: [images, 784] in {0, 1}. Returns what `summary_of` says and the mean
    `acceptance`; and per image, nats, `test/...` and `simulated/...`: `estimate` (log p_hat of `num_samples`), `lower`
    (AIS), and for simulated images `upper` (the reverse chain). `advance(1)` follows every transition of a block.
    """
    p = Parameters(latent, flat.double().unsqueeze(0))
    generator = torch.Generator(flat.device).manual_seed(stream_seed(spec.seed, "ais", 0))
    simulated, posterior = simulate(p, len(test), generator)
    dimensions = sum(latent)

    def prior(images: int) -> Tensor:
        shape = (spec.chains, images, dimensions)
        return torch.randn(shape, generator=generator, device=flat.device, dtype=torch.float64)

    first = test[:IMAGES_PER_BLOCK].double()
    path = tune(decoder_log_likelihood(p, first), prior(len(first)), spec.transitions, generator)
    found: dict[str, list[Tensor]] = {}
    rates = []
    for name, images in (("test", test.double()), ("simulated", simulated)):
        for start in range(0, len(images), IMAGES_PER_BLOCK):
            own = images[start : start + IMAGES_PER_BLOCK]
            log_likelihood = decoder_log_likelihood(p, own)
            log_w, rate = anneal(log_likelihood, prior(len(own)), path, generator, advance=lambda: advance(1))
            found.setdefault(f"{name}/lower", []).append(lower_bound(log_w))
            rates.append(rate)
            if name == "simulated":
                exact = posterior[start : start + IMAGES_PER_BLOCK].expand(spec.chains, -1, -1)
                log_w, rate = anneal(log_likelihood, exact, path, generator, reverse=True, advance=lambda: advance(1))
                found.setdefault(f"{name}/upper", []).append(upper_bound(log_w))
                rates.append(rate)
    arrays = {key: torch.cat(parts).cpu().numpy() for key, parts in found.items()}
    q = Parameters(latent, flat.unsqueeze(0))
    for name, images in (("test", test), ("simulated", simulated)):
        estimate = likelihoods(model_log_weights(q, spec.seed), images.to(flat.dtype), spec.num_samples, 1)
        arrays[f"{name}/estimate"] = estimate.log_p_hat.astype(np.float64)
    return summary_of(arrays) | {"acceptance": float(np.mean(rates))}, arrays


def summary_of(arrays: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Means over images, and the differences that say how far off the estimate is, with standard errors over images."""
    summary: dict[str, float] = {key: float(values.mean()) for key, values in arrays.items()}
    differences = {
        "test/lower_minus_estimate": arrays["test/lower"] - arrays["test/estimate"],
        "simulated/lower_minus_estimate": arrays["simulated/lower"] - arrays["simulated/estimate"],
        "simulated/upper_minus_lower": arrays["simulated/upper"] - arrays["simulated/lower"],
    }
    for key, values in differences.items():
        summary |= {key: float(values.mean()), f"{key}_se": float(values.std(ddof=1) / np.sqrt(len(values)))}
    return summary


def facts(spec: AisSpec, flat: Tensor) -> dict[str, Any]:
    """How it was done, for the result file."""
    device = torch.cuda.get_device_name(flat.device) if flat.device.type == "cuda" else "cpu"
    return {**asdict(spec), "leapfrogs": LEAPFROGS, "device": device, "torch": torch.__version__}
