"""Active units: A_u = Var_x(E_q(u|x)[u]) > 0.01, by the recipe of Burda's code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream
from pipeline.evaluation.images import Images
from pipeline.models.log_weights import forward
from pipeline.models.networks import Parameters
from pipeline.records.metrics import ACTIVE_VARIANCE

BURDA_IMAGES = 500
"""Burda's code looks at the first 500 training images, binarized once."""
IMAGES_PER_PASS = 500


def posterior_means(p: Parameters, images: Images, seed: int) -> list[NDArray[np.float64]]:
    """E_q(h_l | below)[h_l] of one model (R = 1) for every image, per layer [N, units].

    For layer 2 the mean given one sampled h_1 per image, as in Burda's code.
    """
    streams = [Stream(seed, f"active units{l}", p.flat.device) for l in range(1, len(p.latent) + 1)]
    parts: list[list[NDArray[np.float64]]] = [[] for _ in p.latent]
    for some in images.split(IMAGES_PER_PASS):
        eps = [
            stream.normals(some.numbers, (units,)).view(1, 1, len(some), units)
            for stream, units in zip(streams, p.latent, strict=True)
        ]
        for part, block in zip(parts, forward(p, some.bits.unsqueeze(0), eps).q, strict=True):
            part.append(block.mean[0].double().cpu().numpy())
    return [np.concatenate(part) for part in parts]


def unit_variances(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """A_u of each unit, [units], from means [N, units]: the population variance over images (ddof 0)."""
    return np.asarray(means.var(axis=0, ddof=0))


def active_masks(variances: list[NDArray[np.float64]], device: torch.device) -> list[Tensor]:
    """1 for active units, 0 for the others, [units] per layer."""
    return [torch.from_numpy((v > ACTIVE_VARIANCE).astype(np.float32)).to(device) for v in variances]
