"""Images drawn from a model: h_L ~ N(0, I), down to the Bernoulli means."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.draws.streams import Stream
from pipeline.models.log_weights import decode
from pipeline.models.networks import Parameters


def draw_samples(p: Parameters, count: int, seed: int) -> NDArray[np.float32]:
    """Pixel means of `count` draws from one model (R = 1), [count, 784] in [0, 1]; the same noise for every model."""
    numbers = torch.arange(count, device=p.flat.device)
    noise = [
        Stream(seed, f"samples{l}", p.flat.device).normals(numbers, (units,)).unsqueeze(0)
        for l, units in enumerate(p.latent, start=1)
    ]
    return decode(p, noise)[0].sigmoid().cpu().numpy().astype(np.float32)
