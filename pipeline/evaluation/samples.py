"""Images drawn from a model: h_L ~ N(0, I), down to the Bernoulli means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.models.log_weights import decode
from pipeline.models.networks import Parameters
from pipeline.randomness import Randomness


def draw_samples(p: Parameters, count: int, seed: int) -> NDArray[np.float32]:
    """Pixel means of `count` draws from one model (R = 1), [count, 784] in [0, 1]; the same noise for every model."""
    randomness = Randomness(p.flat.device)
    noise = [randomness.normal((1, count, units), seed, f"samples{l + 1}", 0) for l, units in enumerate(p.latent)]
    return decode(p, noise)[0].sigmoid().cpu().numpy().astype(np.float32)
