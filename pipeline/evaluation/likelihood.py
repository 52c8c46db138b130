"""The 5000-sample log-likelihood of test images, and the bounds that the same samples give.

Samples are streamed: no more logits exist at a time than a `PassSize` says; what is kept is one log-weight per sample
of the images of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.philox import stream_key
from pipeline.draws.streams import Stream
from pipeline.evaluation.images import Images
from pipeline.experiments.spec import BATCH_SIZE
from pipeline.models import compiled_step
from pipeline.models.log_weights import Gaussian, encode, forward
from pipeline.models.networks import Parameters


@dataclass(frozen=True)
class PassSize:
    """What is computed in one pass: so many samples of so many images."""

    images: int
    samples: int


PASS_SIZES = {"cpu": PassSize(20, 50), "cuda": PassSize(1000, 50)}
"""By device type: on a CPU, logits that stay in a core's cache (3 MB); on a GPU, enough
rows to fill it (157 MB of logits)."""

LogWeights = Callable[[Images, int, int], Tensor]
"""(B images, number of the first sample, samples) -> log w [samples, B] nats"""


@dataclass(frozen=True)
class Likelihoods:
    """Per-image estimates, [images] each, nats (`ess` is a fraction in (0, 1])."""

    log_p_hat: NDArray[np.float32]
    """log of the mean of all weights; minus its mean over images is the NLL."""
    bound: NDArray[np.float32]
    """The bound with `bound_samples` samples (IWAE-64), averaged over the groups that all samples make."""
    elbo: NDArray[np.float32]
    ess: NDArray[np.float32]
    """(sum w)^2 / sum w^2 / bound_samples, averaged over the same groups."""
    bounds: NDArray[np.float32]
    """The bounds with K = 1, 2, 4, ... samples up to all of them, [images, K], each averaged over its groups."""
    relative_variance: NDArray[np.float32]
    """Var(w) / E[w]^2 of the weights: bounds fall short of log p by about half of it divided by K."""


def model_log_weights(p: Parameters, seed: int, active: list[Tensor] | None = None) -> LogWeights:
    """log w of one model (R = 1), by the compiled forward pass where there is one, else by the plain one.

    Noise is a function of (seed, image number, sample): all models see the same.

    In layer l (from 1) an image's samples are the draw of index `number` in the stream (seed, "likelihood<l>"), which
    has the units of sample 0 first, then those of sample 1, and so on: number s * units + u is that of unit u in
    sample s. `active`: unit masks as in `forward`.
    """
    in_float32_on_a_cpu = p.flat.device.type == "cpu" and p.flat.dtype == torch.float32
    if in_float32_on_a_cpu and not isinstance(compiled_step.library(), str):
        return _compiled_log_weights(p, seed, active)
    return plain_log_weights(p, seed, active)


def _compiled_log_weights(p: Parameters, seed: int, active: list[Tensor] | None) -> LogWeights:
    masks = [torch.ones(units) for units in p.latent] if active is None else active
    model = compiled_step.CompiledLogWeights(p.latent, p.flat[0].contiguous(), torch.cat(masks).float())
    keys = np.array([stream_key(seed, purpose) for purpose in _purposes(p.latent)], np.uint32)
    last: Images | None = None

    def log_weights(images: Images, first: int, samples: int) -> Tensor:
        nonlocal last
        if len(images) > BATCH_SIZE:
            return torch.cat([log_weights(some, first, samples) for some in images.split(BATCH_SIZE)], dim=1)
        if last is not images:
            model.encode(images.bits)
            last = images
        return model.of(images.numbers.numpy(), first, samples, keys)

    return log_weights


def _purposes(latent: tuple[int, ...]) -> list[str]:
    return [f"likelihood{l}" for l in range(1, len(latent) + 1)]


def plain_log_weights(p: Parameters, seed: int, active: list[Tensor] | None = None) -> LogWeights:
    """`model_log_weights` in torch, on any device."""
    streams = [Stream(seed, purpose, p.flat.device) for purpose in _purposes(p.latent)]
    last: tuple[Images, Gaussian] | None = None

    def log_weights(images: Images, first: int, samples: int) -> Tensor:
        nonlocal last
        if last is None or last[0] is not images:
            last = images, encode(p, images.bits.unsqueeze(0))
        eps = [
            stream.normals(images.numbers, (samples, units), skipped=first).transpose(0, 1).unsqueeze(0)
            for stream, units in zip(streams, p.latent, strict=True)
        ]
        return forward(p, images.bits.unsqueeze(0), eps, active, encoded=last[1]).log_w[0]

    return log_weights


def likelihoods(
    log_weights: LogWeights,
    images: Images,
    num_samples: int,
    bound_samples: int,
    pass_size: PassSize | None = None,
    between_passes: Callable[[], None] = lambda: None,
) -> Likelihoods:
    """Estimate from `num_samples` samples per image.

    `pass_size`: how much at once; by default what suits the device. Estimates do not depend on it, nor on which
    other images there are, beyond rounding.
    `between_passes` is called before every pass; it may raise to stop.
    """
    size = pass_size or PASS_SIZES[images.bits.device.type]
    parts: list[tuple[Tensor, ...]] = []
    for some in images.split(size.images):
        passes = []
        for first in range(0, num_samples, size.samples):
            between_passes()
            passes.append(log_weights(some, first, min(size.samples, num_samples - first)))
        parts.append(summarize(torch.cat(passes), bound_samples))
    columns = (torch.cat(column).cpu().numpy().astype(np.float32) for column in zip(*parts, strict=True))
    return Likelihoods(*columns)


def summarize(log_w: Tensor, bound_samples: int) -> tuple[Tensor, ...]:
    """The fields of `Likelihoods` from log w [samples, B]."""
    samples = log_w.shape[0]
    groups = samples // bound_samples
    grouped = log_w[: groups * bound_samples].unflatten(0, (groups, bound_samples)).double()
    bound = (torch.logsumexp(grouped, 1) - math.log(bound_samples)).mean(0)
    ess = (2 * torch.logsumexp(grouped, 1) - torch.logsumexp(2 * grouped, 1)).exp().mean(0) / bound_samples
    all_w = log_w.double()
    log_p_hat = torch.logsumexp(all_w, 0) - math.log(samples)
    second_moment = torch.logsumexp(2 * all_w, 0) - math.log(samples)
    relative_variance = torch.expm1(second_moment - 2 * log_p_hat)
    return log_p_hat, bound, all_w.mean(0), ess, doubling_bounds(all_w), relative_variance


def doubling_bounds(log_w: Tensor) -> Tensor:
    """IWAE_K for K = 1, 2, 4, ..., averaged over the groups of K that log w [samples, B] makes: [B, K's]."""
    bounds = [log_w.mean(0)]
    while len(log_w) > 1:
        # Two neighbouring groups of K make one of 2 K; a last one without neighbour is left out.
        whole = log_w[: len(log_w) // 2 * 2]
        log_w = torch.logaddexp(whole[0::2], whole[1::2]) - math.log(2)
        bounds.append(log_w.mean(0))
    return torch.stack(bounds, 1)
