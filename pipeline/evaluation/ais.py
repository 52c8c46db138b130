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
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream
from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import PASS_SIZES, likelihoods, model_log_weights
from pipeline.models.log_weights import decode
from pipeline.models.networks import Parameters
from pipeline.models.output_layer import bernoulli

IMAGES_PER_BLOCK = PASS_SIZES["cpu"].images
PILOT_IMAGES = 20
"""Test images whose chains find the step sizes."""
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
    """log p(x | u) of one model (R = 1) in float64, which PyTorch differentiates. `x`: [images, 784] in {0, 1}."""

    def log_likelihood(u: Tensor) -> Tensor:
        rows = u.flatten(0, 1).unsqueeze(0)
        logits = decode(p, list(rows.split(p.latent, dim=-1)))
        return bernoulli(logits, x.unsqueeze(0), residual=False)[0][0]

    return log_likelihood


@dataclass(frozen=True)
class ChainNoise:
    """The random moves of the chains of some images, functions of (seed, purpose, transition, image number).

    Streams (seed, "ais <purpose>/<what>"). A draw of `start` and `momentum` (chains x dimensions, normal) and of
    `accept` (chains, uniform) belongs to one image and has the index transition * 2^32 + image number; of `jitter`
    (one uniform number for all chains) the index is the transition's number.
    """

    seed: int
    purpose: str
    numbers: Tensor
    """[images] int64."""
    chains: int

    def _stream(self, what: str) -> Stream:
        return Stream(self.seed, f"ais {self.purpose}/{what}", self.numbers.device)

    def start(self, dimensions: int) -> Tensor:
        """Draws of N(0, I) to start from, [chains, images, D] float64."""
        return self._stream("start").normals(self.numbers, (self.chains, dimensions)).transpose(0, 1).double()

    def momentum(self, transition: int, dimensions: int) -> Tensor:
        """Standard normal, [chains, images, D] float64."""
        drawn = self._stream("momentum").normals((transition << 32) + self.numbers, (self.chains, dimensions))
        return drawn.transpose(0, 1).double()

    def jitter(self, transition: int) -> float:
        """Uniform on [-1, 1)."""
        return 2 * self._stream("jitter").uniform(transition, (1,)).item() - 1

    def accept(self, transition: int) -> Tensor:
        """Uniform on [0, 1), [chains, images]."""
        return self._stream("accept").uniforms((transition << 32) + self.numbers, (self.chains,)).T


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
    log_likelihood: LogLikelihood,
    start: _Point,
    beta: float,
    step: float,
    leapfrogs: int,
    noise: ChainNoise,
    number: int,
) -> tuple[_Point, Tensor]:
    """Transition `number`, which leaves f_beta as it is, and its acceptance probability [chains, images]."""
    momentum = first = noise.momentum(number, start.u.shape[-1])
    step *= 1 + JITTER * noise.jitter(number)
    point = start
    for _ in range(leapfrogs):
        momentum = momentum + step / 2 * point.force(beta)
        point = _Point.at(log_likelihood, point.u + step * momentum)
        momentum = momentum + step / 2 * point.force(beta)
    gained = point.log_f(beta) - start.log_f(beta) - (momentum.square() - first.square()).sum(-1) / 2
    probability = gained.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accepted = noise.accept(number) < probability
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
    log_likelihood: LogLikelihood, u: Tensor, transitions: int, noise: ChainNoise, leapfrogs: int = LEAPFROGS
) -> Path:
    """A path of `transitions` with step sizes from a pilot run of chains that start at `u`, draws of N(0, I)."""
    pilot = betas(max(transitions // PILOT_SHARE, 10))
    step, steps = FIRST_STEP, []
    point = _Point.at(log_likelihood, u)
    numbers = count()
    for place, beta in enumerate(pilot.tolist()):
        for _ in range(PILOT_REPEATS if place else PILOT_START):
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, noise, next(numbers))
            step *= math.exp(probability.mean().item() - ACCEPTANCE)
        steps.append(step)
    whole = betas(transitions)
    return Path(whole, _interpolated(whole, pilot, torch.tensor(steps, dtype=torch.float64)))


def _interpolated(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation of log values."""
    right = torch.searchsorted(known, at).clamp(1, len(known) - 1)
    share = (at - known[right - 1]) / (known[right] - known[right - 1])
    return (values.log()[right - 1] * (1 - share) + values.log()[right] * share).exp()


def anneal(
    log_likelihood: LogLikelihood,
    u: Tensor,
    path: Path,
    noise: ChainNoise,
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
    for number, (beta, step, rise) in enumerate(_way(path, reverse)):
        if reverse:
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, noise, number)
            log_w += rise * point.log_px
        else:
            log_w += rise * point.log_px
            point, probability = _hmc(log_likelihood, point, beta, step, leapfrogs, noise, number)
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
    """Number of test images, evenly spaced, and of simulated ones."""
    transitions: int
    chains: int
    """Per image."""
    num_samples: int
    """Samples per image of the importance-weighted estimate that is checked."""
    seed: int

    @property
    def work(self) -> int:
        """Transitions of blocks of images: up the path for both sets, down it for the simulated one."""
        return 3 * self.transitions * math.ceil(self.images / IMAGES_PER_BLOCK)


def simulate_images(p: Parameters, images: int, seed: int) -> tuple[Images, Tensor]:
    """Images from the model (float64), and what they were made from, u [images, D]: posterior samples."""
    device = p.flat.device
    numbers = torch.arange(images, device=device)
    u = Stream(seed, "ais simulated/u", device).normals(numbers, (sum(p.latent),)).to(p.flat.dtype)
    logits = decode(p, list(u.unsqueeze(0).split(p.latent, dim=-1)))[0]
    uniform = Stream(seed, "ais simulated/bits", device).uniforms(numbers, (logits.shape[1],))
    return Images((uniform < logits.sigmoid()).to(p.flat.dtype), numbers), u


def second_opinion(
    flat: Tensor,
    latent: tuple[int, ...],
    test: Images,
    spec: AisSpec,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """The importance-weighted estimate of a trained model beside AIS, on test images and on simulated ones.

    `flat`: one row of weights [count]. Returns what `summary_of` says and the mean `acceptance`; and per image, nats,
    `test/...` and `simulated/...`: `estimate` (log p_hat of `num_samples`), `lower` (AIS), and for simulated images
    `upper` (the reverse chain). `advance(1)` follows every transition of a block.
    """
    p = Parameters(latent, flat.double().unsqueeze(0))
    dimensions = sum(latent)
    simulated, posterior = simulate_images(p, len(test), spec.seed)
    arrays: dict[str, list[Tensor]] = {}
    rates = []

    def annealed(name: str, images: Images, path: Path, exact: Tensor | None = None) -> Tensor:
        """log w of the chains of some images; those of reverse chains start at `exact`, [images, D]."""
        noise = ChainNoise(spec.seed, name, images.numbers, spec.chains)
        u = noise.start(dimensions) if exact is None else exact.expand(spec.chains, -1, -1)
        log_likelihood = decoder_log_likelihood(p, images.bits.double())
        log_w, rate = anneal(log_likelihood, u, path, noise, reverse=exact is not None, advance=lambda: advance(1))
        rates.append(rate)
        return log_w

    pilots = Images(test.bits[:PILOT_IMAGES], test.numbers[:PILOT_IMAGES])
    noise = ChainNoise(spec.seed, "pilot", pilots.numbers, spec.chains)
    path = tune(decoder_log_likelihood(p, pilots.bits.double()), noise.start(dimensions), spec.transitions, noise)
    for some in test.split(IMAGES_PER_BLOCK):
        arrays.setdefault("test/lower", []).append(lower_bound(annealed("test", some, path)))
    for some, exact in zip(simulated.split(IMAGES_PER_BLOCK), posterior.split(IMAGES_PER_BLOCK), strict=True):
        arrays.setdefault("simulated/lower", []).append(lower_bound(annealed("simulated", some, path)))
        arrays.setdefault("simulated/upper", []).append(upper_bound(annealed("reverse", some, path, exact)))
    per_image = {key: torch.cat(parts).cpu().numpy() for key, parts in arrays.items()}
    q = Parameters(latent, flat.unsqueeze(0))
    for name, images in (("test", test), ("simulated", simulated)):
        single = Images(images.bits.to(flat.dtype), images.numbers)
        estimate = likelihoods(model_log_weights(q, spec.seed), single, spec.num_samples, 1)
        per_image[f"{name}/estimate"] = estimate.log_p_hat.astype(np.float64)
    return summary_of(per_image) | {"acceptance": float(np.mean(rates))}, per_image


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
