"""What q(h | x) and the true posterior look like: spread, decoded samples, and densities on a grid where h is 2-D."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.draws.streams import Stream
from pipeline.evaluation.classifier import DigitReader
from pipeline.evaluation.images import Images
from pipeline.models.log_weights import decoder_logits, encode
from pipeline.models.networks import Parameters

DECODED_SAMPLES = 20
"""Samples of q(h1 | x) that are decoded per image."""
IMAGES_PER_GRID = 50
SEARCH_RADIUS, SEARCH_POINTS = 7.0, 141
"""A first grid, over all of the prior's reach, finds where the posterior lies (2 * 7 / 140: every tenth)."""
GRID_POINTS = 61
"""Points a side of the grid on which a posterior is kept."""
ROWS_PER_PASS = 4000
FLOOR = -30.0
"""Nats below its peak at which a kept density is cut off: e^-30 is nothing."""


@dataclass(frozen=True)
class PosteriorSpread:
    """Measures of q(h1 | x), and of what it decodes to, per image."""

    log_sd: NDArray[np.float32]
    """log standard deviation of q, averaged over the units chosen, [images]."""
    unit_log_sd: NDArray[np.float32]
    """The same of every unit, [images, units]."""
    decoded_sd: NDArray[np.float32]
    """Standard deviation of decoded pixel means over q's samples: root mean square over pixels, [images]."""
    digits: NDArray[np.uint8] | None
    """The digits that a reader sees in the decoded samples, [images, DECODED_SAMPLES]."""


def samples_of_q(p: Parameters, images: Images, count: int, seed: int, purpose: str) -> Tensor:
    """`count` samples of q(h1 | x) of each image, [count, N, units].

    The noise of an image is a function of (seed, purpose, its number).
    """
    q = encode(p, images.bits.unsqueeze(0))
    eps = Stream(seed, f"decoded/{purpose}", p.flat.device).normals(images.numbers, (count, p.latent[0]))
    return q.mean + q.std * eps.transpose(0, 1)


def decoded_samples(p: Parameters, images: Images, count: int, seed: int, purpose: str) -> Tensor:
    """Pixel means decoded from `samples_of_q` of one model (R = 1), [count, N, 784]."""
    h = samples_of_q(p, images, count, seed, purpose)
    logits = decoder_logits(p, h.reshape(1, -1, p.latent[0]))
    return logits.sigmoid().view(count, len(images), -1)


def reconstructions(p: Parameters, images: Tensor) -> Tensor:
    """Pixel means decoded from the mean of q(h1 | x), [N, 784]."""
    return decoder_logits(p, encode(p, images.unsqueeze(0)).mean)[0].sigmoid()


def measure_spread(
    p: Parameters,
    images: Images,
    active: Tensor,
    reader: DigitReader | None,
    seed: int,
    between_passes: Callable[[], None] = lambda: None,
) -> PosteriorSpread:
    """Spread over `images`; `active`: units of layer 1 to average over, [units] in {0, 1} (all where none)."""
    chosen = active > 0 if active.any() else torch.ones_like(active, dtype=torch.bool)
    unit_log_sd, decoded_sd, digits = [], [], []
    for some in images.split(IMAGES_PER_GRID):
        between_passes()
        unit_log_sd.append(encode(p, some.bits.unsqueeze(0)).log_std[0])
        decoded = decoded_samples(p, some, DECODED_SAMPLES, seed, "spread")
        decoded_sd.append(decoded.var(0, correction=1).mean(-1).sqrt())
        if reader is not None:
            digits.append(reader.read(decoded).T.to(torch.uint8))
    every = torch.cat(unit_log_sd)
    return PosteriorSpread(
        every[:, chosen].mean(-1).cpu().numpy().astype(np.float32),
        every.cpu().numpy().astype(np.float32),
        torch.cat(decoded_sd).cpu().numpy().astype(np.float32),
        torch.cat(digits).cpu().numpy() if digits else None,
    )


@dataclass(frozen=True)
class PosteriorGrid:
    """p(h | x) of a model with one layer of two units, on a square window per image; arrays [N, ...]."""

    center: NDArray[np.float32]
    """[N, 2]"""
    radius: NDArray[np.float32]
    """Half the side of the window, [N]."""
    log_density: NDArray[np.float32]
    """log p(h | x) minus its largest value, cut at FLOOR: [N, GRID_POINTS (h_2), GRID_POINTS (h_1)]."""
    q_mean: NDArray[np.float32]
    q_sd: NDArray[np.float32]
    """The encoder's Gaussian, [N, 2] each."""
    log_p: NDArray[np.float32]
    """log p(x) by quadrature, [N], nats."""
    kl_q_p: NDArray[np.float32]
    """KL(q(h | x) || p(h | x)) by quadrature, [N], nats."""


def posterior_grid(p: Parameters, images: Tensor, points: int = GRID_POINTS) -> PosteriorGrid:
    """The true posteriors of `images` [N, 784] beside the encoder's. Raises: ValueError unless there are two units."""
    if p.latent != (2,):
        raise ValueError(f"a grid needs one layer of two units, not {p.latent}")
    q = encode(p, images.unsqueeze(0))
    q_mean, q_sd = q.mean[0].double(), q.std[0].double()
    axis = torch.linspace(-SEARCH_RADIUS, SEARCH_RADIUS, SEARCH_POINTS, device=images.device, dtype=torch.float64)
    search = torch.cartesian_prod(axis, axis)
    weight = torch.softmax(_log_joint(p, images, search), 1)
    mean = weight @ search
    # A posterior narrower than the first grid's mesh looks like a point on it.
    variance = (weight @ search.square() - mean.square()).clamp(min=(axis[1] - axis[0]) ** 2 / 4)
    low = torch.minimum(mean - 4 * variance.sqrt(), q_mean - 2.5 * q_sd)
    high = torch.maximum(mean + 4 * variance.sqrt(), q_mean + 2.5 * q_sd)
    center, radius = (low + high) / 2, (high - low).amax(1) / 2
    side = torch.linspace(-1, 1, points, device=images.device, dtype=torch.float64)
    square = torch.cartesian_prod(side, side).flip(1)  # h_1 runs fastest
    densities, log_p, kl = [], [], []
    for n in range(len(images)):
        image = images[n : n + 1]
        # Each integral has a window made to its measure: where the posterior is, and where q is.
        reach = 6 * variance[n].sqrt()
        cell = (2 * reach / (points - 1)).log().sum()
        log_p.append(torch.logsumexp(_log_joint(p, image, mean[n] + reach * square)[0], 0) + cell)
        log_q = -0.5 * (6 * square).square().sum(1) - q_sd[n].log().sum() - math.log(2 * math.pi)
        log_joint = _log_joint(p, image, q_mean[n] + 6 * q_sd[n] * square)[0]
        kl.append((torch.softmax(log_q, 0) * (log_q - log_joint)).sum() + log_p[-1])
        log_joint = _log_joint(p, image, center[n] + radius[n] * square)[0]
        densities.append((log_joint - log_joint.max()).clamp(min=FLOOR).view(points, points))

    def stored(tensor: Tensor) -> NDArray[np.float32]:
        return tensor.cpu().numpy().astype(np.float32)

    columns = (center, radius, torch.stack(densities), q_mean, q_sd, torch.stack(log_p), torch.stack(kl))
    return PosteriorGrid(*(stored(column) for column in columns))


def sample_weights(p: Parameters, images: Tensor, h: Tensor) -> Tensor:
    """log w = log p(x, h) - log q(h | x) of each image's own samples `h` [count, N, 2]: [count, N] float64, nats."""
    q = encode(p, images.unsqueeze(0))
    mean, sd = q.mean[0].double(), q.std[0].double()
    log_q = -0.5 * ((h.double() - mean) / sd).square().sum(-1) - sd.log().sum(-1) - math.log(2 * math.pi)
    log_joint = [_log_joint(p, images[n : n + 1], h[:, n].double())[0] for n in range(len(images))]
    return torch.stack(log_joint, 1) - log_q


def _log_joint(p: Parameters, images: Tensor, h: Tensor) -> Tensor:
    """log p(x, h) of every image at every h [rows, 2]: [N, rows] float64. The decoder runs once for all images."""
    parts = []
    for rows in h.split(ROWS_PER_PASS):
        logits = decoder_logits(p, rows.float().unsqueeze(0))[0]
        parts.append((images @ logits.T - softplus(logits).sum(-1)).double())
    return torch.cat(parts, 1) - 0.5 * h.square().sum(-1) - math.log(2 * math.pi)
