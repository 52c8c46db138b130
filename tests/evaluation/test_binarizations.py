"""The spread that the test bits cause, held to what it is where it can be computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.binarizations import bits_spread, is_fixed, spread_of_mean
from pipeline.evaluation.images import binarize_once
from pipeline.evaluation.likelihood import Likelihoods


def independent_pixels(bits: Tensor) -> Likelihoods:
    """log p of pixels that are on with probability 0.2, whatever the image; the bound is a nat below."""
    on = bits.sum(1).double().numpy()
    log_p = (on * np.log(0.2) + (784 - on) * np.log(0.8)).astype(np.float32)
    nothing = np.zeros_like(log_p)
    return Likelihoods(log_p, log_p - 1, log_p - 5, nothing, nothing[:, None], nothing)


def under(grey: NDArray[np.uint8], draws: int) -> list[Likelihoods]:
    """The model on so many binarizations of all images."""
    rows, device = np.arange(len(grey)), torch.device("cpu")
    return [independent_pixels(binarize_once(grey, rows, 7, f"draw {draw}", device).bits) for draw in range(draws)]


def test_the_spread_of_a_model_whose_spread_is_known() -> None:
    """A pixel of grey g adds g (1 - g) log(0.2 / 0.8)^2 to an image's variance."""
    grey = np.random.default_rng(0).integers(0, 256, (400, 784)).astype(np.uint8)
    metrics, arrays = bits_spread(under(grey, 5), test_images=10_000)
    g = grey / 255
    exact = abs(np.log(0.2 / 0.8)) * np.sqrt((g * (1 - g)).sum(1).mean() / 10_000)
    # 400 images of five draws: 1600 degrees of freedom, an error of 1.8 %.
    assert metrics["bits_sd_nll"] == pytest.approx(exact, rel=0.05)
    assert metrics["bits_sd_iwae_64"] == pytest.approx(metrics["bits_sd_nll"], rel=1e-4)
    # The bound moves with the likelihood: their difference does not move at all.
    assert metrics["bits_sd_kl_q_p"] < 1e-6
    assert (metrics["bits_draws"], metrics["bits_images"]) == (5, 400)
    assert arrays["bits/nll"].shape == (5,)
    np.testing.assert_allclose(arrays["bits/nll"], -arrays["bits/iwae_64"] - 1, atol=1e-4)
    # The five means themselves say the same, but with four degrees of freedom only.
    spread = arrays["bits/nll"].std(ddof=1) * np.sqrt(400 / 10_000)
    assert 0.3 < spread / exact < 2


def test_a_fixed_binarization_has_no_spread() -> None:
    grey = np.random.default_rng(0).choice([0, 255], (30, 784)).astype(np.uint8)
    assert is_fixed(grey)
    assert not is_fixed(np.full((1, 784), 254, np.uint8))
    assert bits_spread(under(grey, 3), 30)[0]["bits_sd_nll"] == 0


def test_the_pooled_spread_by_hand() -> None:
    """Two images: variances 2 and 8, mean 5; of a mean over 20 images the root of 5 / 20."""
    assert spread_of_mean(np.array([[1.0, 10.0], [3.0, 14.0]]), 20) == pytest.approx(0.5)
