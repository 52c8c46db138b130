"""How far one draw of the test set's bits moves a mean over test images.

Grey images are binarized at random, and papers print numbers of one draw, which is not ours. The variance between draws
is measured image by image and pooled, so that a few hundred images tell the spread of the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.likelihood import Likelihoods


def is_fixed(grey: NDArray[np.uint8]) -> bool:
    """True for images that are 0 or 255 everywhere: every draw gives the same bits."""
    return bool(np.isin(grey, (0, 255)).all())


def spread_of_mean(draws: NDArray[np.float64], images: int) -> float:
    """Standard deviation that one draw of the bits gives the mean over `images` images.

    `draws`: values of some of the images under several binarizations, [draws, those images], independent between both.
    """
    return float(np.sqrt(draws.var(axis=0, ddof=1).mean() / images))


def bits_spread(
    draws: Sequence[Likelihoods], test_images: int
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """What the choice of bits does to the test metrics of one model.

    `draws`: estimates for the same images under each binarization, the common one first. `test_images`: so many are in
    the test metrics. Metrics: `bits_sd_<metric>` of `nll`, `iwae_64` and `kl_q_p`, nats; `bits_draws`; `bits_images`.
    Arrays, of these images alone and of as few samples as the estimates took: `bits/nll`, `bits/iwae_64` [draws].
    """
    log_p = np.stack([one.log_p_hat for one in draws]).astype(np.float64)
    bound = np.stack([one.bound for one in draws]).astype(np.float64)
    metrics = {
        f"bits_sd_{name}": spread_of_mean(values, test_images)
        for name, values in {"nll": -log_p, "iwae_64": bound, "kl_q_p": bound - log_p}.items()
    }
    counts = {"bits_draws": float(len(draws)), "bits_images": float(log_p.shape[1])}
    return metrics | counts, {"bits/nll": -log_p.mean(1), "bits/iwae_64": bound.mean(1)}
