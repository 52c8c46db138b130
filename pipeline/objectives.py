"""The estimators, each as three weightings of one matrix of log-weights.

With `log_w[m, k] = log p(x, h_mk) - log q(h_mk | x)` the gradient estimate of every objective here is

    theta:  sum_mk theta[m, k] * d log_w[m, k] / d theta                     (decoder)
    phi:    sum_mk path[m, k]  * d log_w[m, k] / d h_mk * d h_mk / d phi     (encoder, through the samples)
          + sum_mk score[m, k] * d log_w[m, k] / d phi  at fixed h_mk        (encoder, through q's parameters)

With two stochastic layers h = (h1, h2) is one sample of the joint q(h1, h2 | x): the path part follows h1 into h2, into
p and also into log q(h2 | h1), of which only the parameters are held fixed; their direct gradient is the score part.
This is d log_w / d h * d h / d phi of the joint sample, for which the identity of Tucker et al. 2019 holds, and what
Roeder et al. 2017 do: they stop the gradient at q's parameters, not at the samples.

To add an estimator: write a function `log_w [M, K, batch] -> Weights` and give it a line in `OBJECTIVES`
(docs/add-an-estimator.md). Each is tested against autograd.

Below, w = exp(log_w), and w~ are the weights w of a group divided by their sum over its K samples. "Burda" is Burda et
al. 2016 (section 2: the VAE, section 3: the IWAE), "Rainforth" is Rainforth et al. 2018 (section 5: new estimators).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import UserError

NAME = r"[a-z0-9-]+"


class Weights(NamedTuple):
    """What each sample's gradient counts, [M, K, batch] each; see the module's text."""

    theta: Tensor
    path: Tensor
    score: Tensor


@dataclass(frozen=True)
class Objective:
    """An estimator of the family.

    `weights(log_w)` or, where `parameter` names one, `weights(log_w, value)`; `bound` likewise gives the value that
    the decoder climbs, `[M, K, batch] -> [batch]` nats; `encoder_bound` what the encoder climbs, where that is
    another one. Estimators that are the gradient of no bound (`score` zeroed) say so with `drops_score`.
    """

    weights: Callable[..., Weights]
    bound: Callable[..., Tensor]
    source: str
    encoder_bound: Callable[..., Tensor] | None = None
    parameter: str | None = None
    between: tuple[float, float] = (-100.0, 100.0)
    """What the parameter may be; far out, log w times it is beyond float32."""
    single_M: bool = False
    """Defined for one group of samples only (M = 1)."""
    single_K: bool = False
    """Defined for groups of one sample only (K = 1)."""
    drops_score: bool = False


def log_mean_exp(log_w: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The log of the mean of exp(log_w) over `dims`, without exponentials that overflow."""
    count = math.prod([log_w.shape[d] for d in dims])
    return torch.logsumexp(log_w, dims) - math.log(count)


def uniform(log_w: Tensor) -> Tensor:
    """1 / (M K) for every sample."""
    return torch.full_like(log_w, 1 / (log_w.shape[0] * log_w.shape[1]))


def normalized(log_w: Tensor) -> Tensor:
    """w~ / M: self-normalized importance weights over the K samples of each of the M groups; Burda section 3."""
    return torch.softmax(log_w, dim=1) / log_w.shape[0]


def elbo(log_w: Tensor) -> Tensor:
    """The ELBO, (1 / MK) sum_mk log w_mk, of all samples; Burda section 2."""
    return log_w.mean((0, 1))


def miwae_bound(log_w: Tensor) -> Tensor:
    """(1 / M) sum_m log (1 / K) sum_k w_mk: Rainforth section 5, MIWAE; at M = 1 the L_K of Burda section 3."""
    return log_mean_exp(log_w, (1,)).mean(0)


def iwae_bound_over_all(log_w: Tensor) -> Tensor:
    """log (1 / MK) sum_mk w_mk, the IWAE bound of all samples, which PIWAE's decoder climbs: Rainforth section 5."""
    return log_mean_exp(log_w, (0, 1))


def ciwae_bound(log_w: Tensor, beta: float) -> Tensor:
    """beta * ELBO + (1 - beta) * IWAE on the same samples: Rainforth section 5, CIWAE."""
    return beta * elbo(log_w) + (1 - beta) * miwae_bound(log_w)


def vr_bound(log_w: Tensor, alpha: float) -> Tensor:
    """The Renyi bound, log((1 / K) sum_k w_k^(1 - alpha)) / (1 - alpha), mean over groups; Li & Turner 2016.

    alpha = 0 is IWAE's bound; alpha -> 1 the ELBO, and that is what it is at 1.
    """
    return elbo(log_w) if alpha == 1 else log_mean_exp((1 - alpha) * log_w, (1,)).mean(0) / (1 - alpha)


def vr_max_bound(log_w: Tensor) -> Tensor:
    """max_k log w_k, mean over groups: VR for alpha -> -infinity without its 1 / K; Li & Turner 2016, VR-max."""
    return log_w.amax(1).mean(0)


def vae(log_w: Tensor) -> Weights:
    """The gradient of `elbo`: theta = path = score = 1 / (M K); Burda section 2."""
    w = uniform(log_w)
    return Weights(w, w, w)


def miwae(log_w: Tensor) -> Weights:
    """The gradient of `miwae_bound`: theta = path = score = w~ / M; Burda section 3, Rainforth section 5."""
    w = normalized(log_w)
    return Weights(w, w, w)


def ciwae(log_w: Tensor, beta: float) -> Weights:
    """The gradient of `ciwae_bound`: theta = path = score = beta / K + (1 - beta) w~ at M = 1; Rainforth section 5."""
    w = beta * uniform(log_w) + (1 - beta) * normalized(log_w)
    return Weights(w, w, w)


def piwae(log_w: Tensor) -> Weights:
    """theta = w / (sum of w over all M K samples), path = score = w~ / M: Rainforth section 5, PIWAE."""
    theta = torch.softmax(log_w.flatten(0, 1), dim=0).view_as(log_w)
    w = normalized(log_w)
    return Weights(theta, w, w)


def stl(log_w: Tensor) -> Weights:
    """IWAE without the score term, theta = path = w~, score = 0: 'sticking the landing', Roeder et al. 2017.

    Biased for K > 1.
    """
    w = normalized(log_w)
    return Weights(w, w, torch.zeros_like(w))


def iwae_dreg(log_w: Tensor) -> Weights:
    """Doubly reparameterized, theta = w~, path = w~^2, score = 0: unbiased for IWAE's gradient; Tucker et al. 2019."""
    w = normalized(log_w)
    return Weights(w, log_w.shape[0] * w.square(), torch.zeros_like(w))


def rws_dreg(log_w: Tensor) -> Weights:
    """Doubly reparameterized wake phase of reweighted wake-sleep, path = w~ - w~^2, score = 0; Tucker et al. 2019."""
    w = normalized(log_w)
    return Weights(w, w - log_w.shape[0] * w.square(), torch.zeros_like(w))


def dreg(log_w: Tensor, alpha: float) -> Weights:
    """path = (1 - alpha) w~^2 + alpha (w~ - w~^2), score = 0; Tucker et al. 2019. At 1/2 half of STL's."""
    iwae, rws = iwae_dreg(log_w), rws_dreg(log_w)
    return iwae._replace(path=(1 - alpha) * iwae.path + alpha * rws.path)


def dreg_bound(log_w: Tensor, alpha: float) -> Tensor:
    """IWAE's bound, which the decoder climbs whatever alpha makes of the encoder."""
    return miwae_bound(log_w)


def vr(log_w: Tensor, alpha: float) -> Weights:
    """The gradient of `vr_bound`: w^(1 - alpha), normalized within each group, / M; Li & Turner 2016."""
    w = normalized((1 - alpha) * log_w)
    return Weights(w, w, w)


def vr_max(log_w: Tensor) -> Weights:
    """The gradient of `vr_max_bound`: 1 / M for the largest w of each group, 0 for all others; Li & Turner 2016."""
    w = torch.zeros_like(log_w).scatter(1, log_w.argmax(1, keepdim=True), 1 / log_w.shape[0])
    return Weights(w, w, w)


BURDA, RAINFORTH = "Burda et al. 2016", "Rainforth et al. 2018"
ROEDER, TUCKER, LI = "Roeder et al. 2017", "Tucker et al. 2019", "Li & Turner 2016"

OBJECTIVES: dict[str, Objective] = {
    "vae": Objective(vae, elbo, BURDA, single_K=True),
    "iwae": Objective(miwae, miwae_bound, BURDA, single_M=True),
    "miwae": Objective(miwae, miwae_bound, RAINFORTH),
    "ciwae": Objective(ciwae, ciwae_bound, RAINFORTH, parameter="beta", between=(0.0, 1.0), single_M=True),
    "piwae": Objective(piwae, iwae_bound_over_all, RAINFORTH, encoder_bound=miwae_bound),
    "stl": Objective(stl, miwae_bound, ROEDER, single_M=True, drops_score=True),
    "iwae-dreg": Objective(iwae_dreg, miwae_bound, TUCKER, single_M=True, drops_score=True),
    "rws-dreg": Objective(rws_dreg, miwae_bound, TUCKER, single_M=True, drops_score=True),
    "dreg": Objective(dreg, dreg_bound, TUCKER, parameter="alpha", between=(0.0, 1.0), single_M=True, drops_score=True),
    "vr": Objective(vr, vr_bound, LI, parameter="alpha", single_M=True),
    "vr-max": Objective(vr_max, vr_max_bound, LI, single_M=True),
}


@lru_cache
def fingerprint(name: str, M: int, K: int, parameter: float | None = None) -> str:
    """16 hexadecimal digits that name what an estimator computes: its three weightings and its bound.

    They are taken on one fixed matrix of log-weights, [M, K, 3], and rounded to 8 decimals: another formula is another
    fingerprint, another way to write it is not. Estimators that are the same (VAE and IWAE at K = 1) share theirs.
    """
    objective, args = OBJECTIVES[name], () if parameter is None else (parameter,)
    log_w = (4 * torch.sin(torch.arange(1, 3 * M * K + 1, dtype=torch.float64))).view(M, K, 3)
    parts = torch.cat([part.flatten() for part in (*objective.weights(log_w, *args), objective.bound(log_w, *args))])
    # The shift keeps what weights often are, fractions such as 1 / 1024, away from the edges of rounding.
    rounded = torch.floor(1e8 * parts + 0.37).long().tolist()
    return hashlib.sha256(repr(rounded).encode()).hexdigest()[:16]


RANGES = ((-1.0, 1.0), (-551.0, -549.0), (-300.0, 0.0))
"""Log-weights at which an estimator is tried: small ones; those of a model that has learned nothing, at which exp is
zero in float32; and some that lie so far apart within an image that exp of their distance from the mean is infinite."""


def check_estimator(name: str, M: int, K: int, parameter: float | None) -> None:
    """Try an estimator on a few log-weights before anything is trained with it.

    Raises: UserError naming it, when there is no such estimator or it does not give what a step needs.
    """
    where = f"pipeline/objectives.py: OBJECTIVES[{name!r}]"
    if not re.fullmatch(NAME, name):
        raise UserError(f"{where}: a name becomes a folder's: lower-case letters, digits and - alone")
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}; allowed: {', '.join(OBJECTIVES)}")
    for between in RANGES:
        _try_in(between, OBJECTIVES[name], where, (M, K, 3), () if parameter is None else (parameter,))


def _try_in(
    between: tuple[float, float], entry: Objective, where: str, shape: tuple[int, int, int], args: tuple[float, ...]
) -> None:
    """Raises: UserError when the functions do not give what a step needs at log-weights in that range."""
    low, high = between
    log_w = (low + high) / 2 + (high - low) / 2 * torch.linspace(-3, 3, math.prod(shape)).sin().view(shape)
    kept = log_w.clone()

    def checked(what: str, value: object, expected: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            actual = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{where}: {what} is to be a tensor {list(expected)} for log_w {list(shape)}, not {actual}")
        if value.dtype != log_w.dtype:
            raise UserError(f"{where}: {what} is to be of log_w's type, {log_w.dtype}, not {value.dtype}")
        if not value.isfinite().all():
            raise UserError(f"{where}: {what} is not finite for log_w between {low:.0f} and {high:.0f}")

    def given(log_w: Tensor) -> dict[str, Tensor]:
        weights = entry.weights(log_w, *args)
        if not isinstance(weights, Weights):
            raise UserError(f"{where}: gives {type(weights).__name__} instead of Weights(theta, path, score)")
        bounds = {"bound": entry.bound(log_w, *args)}
        if entry.encoder_bound is not None:
            bounds["encoder_bound"] = entry.encoder_bound(log_w, *args)
        return weights._asdict() | bounds

    try:
        parts, first = given(log_w), given(kept[:, :, :1].clone())
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user's raises
        told = " ".join(str(error).split())
        raise UserError(f"{where}: raises {type(error).__name__} for log_w {list(shape)}: {told}") from error
    for what, value in parts.items():
        checked(what, value, shape if what in Weights._fields else shape[2:])
    if not torch.equal(log_w, kept):
        raise UserError(f"{where}: changes log_w, which others read after it; compute a new tensor")
    for what, value in parts.items():
        if not torch.allclose(first[what], value[..., :1], rtol=1e-3, atol=1e-5):
            told = "at a second call, for the first image alone"
            raise UserError(
                f"{where}: {what} is another {told}; it is to depend on that image's log_w and nothing else"
            )
