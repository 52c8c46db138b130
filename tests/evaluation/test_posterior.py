"""Spread, decoded samples and posterior grids, against plain loops and integrals over a far larger grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.classifier import DigitReader
from pipeline.evaluation.posterior import (
    DECODED_SAMPLES,
    FLOOR,
    decoded_samples,
    measure_spread,
    posterior_grid,
    reconstructions,
    sample_weights,
    samples_of_q,
)
from pipeline.models.networks import Parameters, count_parameters
from tests.conftest import numbered


def tiny_model(latent: tuple[int, ...] = (2,)) -> tuple[Parameters, Tensor]:
    """A random model whose posteriors lie within reach of the prior, and five images."""
    generator = torch.Generator().manual_seed(0)
    p = Parameters(latent, 0.15 * torch.randn(1, count_parameters(latent), generator=generator))
    p.weight["p1.logits"].mul_(0.3)
    for name, weight in p.weight.items():
        if name.endswith(("mean", "log_std")):
            weight.mul_(0.3)
    return p, torch.bernoulli(torch.full((5, 784), 0.3), generator=generator)


def plain_layers(p: Parameters, block: str, rows: Tensor, heads: list[str]) -> list[Tensor]:
    """The block in float64, from its named tensors."""
    w = {name: tensor.double() for name, tensor in p.named_tensors(0).items()}
    for layer in ("hidden1", "hidden2"):
        rows = torch.tanh(rows @ w[f"{block}.{layer}.weight"] + w[f"{block}.{layer}.bias"])
    return [rows @ w[f"{block}.{head}.weight"] + w[f"{block}.{head}.bias"] for head in heads]


def plain_log_joint(p: Parameters, x: Tensor, h: Tensor) -> Tensor:
    (logits,) = plain_layers(p, "p1", h, ["logits"])
    log_px = torch.distributions.Bernoulli(logits=logits).log_prob(x.double()).sum(-1)
    return log_px + torch.distributions.Normal(0.0, 1.0).log_prob(h).sum(-1)


def test_grids_against_integrals_over_a_wide_fine_grid() -> None:
    p, images = tiny_model()
    images = images[:1]
    grid = posterior_grid(p, images)
    axis = torch.linspace(-8, 8, 131, dtype=torch.float64)
    h = torch.stack([part.reshape(-1) for part in torch.meshgrid(axis, axis, indexing="ij")], 1)
    cell = 2 * math.log(axis[1] - axis[0])
    for n, x in enumerate(images):
        log_joint = plain_log_joint(p, x, h)
        log_p = torch.logsumexp(log_joint, 0) + cell
        assert grid.log_p[n] == pytest.approx(float(log_p), abs=2e-3)
        mean, log_std = plain_layers(p, "q1", x.double(), ["mean", "log_std"])
        np.testing.assert_allclose(grid.q_mean[n], mean, atol=1e-4)
        np.testing.assert_allclose(grid.q_sd[n], log_std.exp(), rtol=1e-4)
        log_q = torch.distributions.Normal(mean, log_std.exp()).log_prob(h).sum(-1)
        kl = ((log_q + cell).exp() * (log_q - log_joint + log_p)).sum()
        assert grid.kl_q_p[n] == pytest.approx(float(kl), abs=5e-3)
        assert grid.kl_q_p[n] > 0
        # The kept density is the joint at the points of the window, h_1 along the second axis.
        side = torch.linspace(-1, 1, grid.log_density.shape[1], dtype=torch.float64) * float(grid.radius[n])
        for row, column in ((25, 38), (33, 27), (30, 40)):
            at = torch.tensor([grid.center[n, 0] + side[column], grid.center[n, 1] + side[row]], dtype=torch.float64)
            centre = torch.tensor([grid.center[n, 0] + side[30], grid.center[n, 1] + side[30]], dtype=torch.float64)
            expected = plain_log_joint(p, x, torch.stack([at, centre]))
            assert grid.log_density[n, row, column] > FLOOR
            kept = grid.log_density[n, row, column] - grid.log_density[n, 30, 30]
            assert kept == pytest.approx(float(expected[0] - expected[1]), abs=5e-3)
        assert grid.log_density[n].max() == 0
        assert grid.log_density[n].min() >= FLOOR


def test_the_window_follows_a_narrow_posterior_far_from_q() -> None:
    """A decoder that pins the first unit near 2: the posterior is a sliver, and q, at 0, stays inside the window."""
    p, images = tiny_model()
    p.flat.zero_()
    p.weight["p1.hidden1"][0, 0, 0] = 1.0
    p.weight["p1.hidden2"][0, 0, 0] = 1.0
    p.weight["p1.logits"][0, 0, :] = 8.0
    p.bias["p1.logits"][:] = -8 * math.tanh(math.tanh(2.0)) + math.log(0.3 / 0.7)
    grid = posterior_grid(p, images[:1])
    low, high = grid.center[0] - grid.radius[0], grid.center[0] + grid.radius[0]
    assert (low <= -2.4).all()
    assert (high >= 2.4).all()
    density = np.exp(grid.log_density[0])
    h1 = low[0] + (high - low)[0] * np.arange(density.shape[1]) / (density.shape[1] - 1)
    assert abs(density.sum(0) @ h1 / density.sum()) > 0.5


def test_a_grid_needs_two_units() -> None:
    p, images = tiny_model((3,))
    with pytest.raises(ValueError, match="two units"):
        posterior_grid(p, images)


@pytest.mark.parametrize("latent", [(2,), (3, 2)])
def test_decoding_against_plain_layers(latent: tuple[int, ...]) -> None:
    p, images = tiny_model(latent)
    mean, log_std = plain_layers(p, "q1", images.double(), ["mean", "log_std"])
    (logits,) = plain_layers(p, "p1", mean, ["logits"])
    np.testing.assert_allclose(reconstructions(p, images), logits.sigmoid(), atol=1e-5)
    # With no spread every sample is the reconstruction.
    p.weight["q1.log_std"].zero_()
    p.bias["q1.log_std"][:] = -30.0
    same = decoded_samples(p, numbered(images), 4, 1, "a")
    assert same.shape == (4, 5, 784)
    np.testing.assert_allclose(same, reconstructions(p, images).expand(4, -1, -1), atol=1e-5)
    p.bias["q1.log_std"][:] = 0.0
    first = decoded_samples(p, numbered(images), 4, 1, "a")
    assert torch.equal(first, decoded_samples(p, numbered(images), 4, 1, "a"))
    assert not torch.allclose(first, decoded_samples(p, numbered(images), 4, 1, "b"))
    assert not torch.allclose(first[0], first[1])
    assert log_std.shape[-1] == latent[0]


def test_weights_of_samples_against_plain_densities() -> None:
    p, images = tiny_model()
    h = samples_of_q(p, numbered(images), 3, 1, "a")
    log_w = sample_weights(p, images, h)
    assert log_w.shape == (3, len(images))
    for n, x in enumerate(images):
        mean, log_std = plain_layers(p, "q1", x.double(), ["mean", "log_std"])
        log_q = torch.distributions.Normal(mean, log_std.exp()).log_prob(h[:, n].double()).sum(-1)
        np.testing.assert_allclose(log_w[:, n], plain_log_joint(p, x, h[:, n].double()) - log_q, atol=1e-3)


def test_spread_counts_active_units_and_reads_every_sample() -> None:
    p, images = tiny_model()
    p.weight["q1.log_std"].zero_()
    p.bias["q1.log_std"][0, 0] = torch.tensor([-1.0, -3.0])
    many = numbered(images.repeat(21, 1))  # more than one pass
    reader = DigitReader(
        {
            "hidden": torch.zeros(784, 3),
            "hidden_bias": torch.ones(3),
            "out": torch.zeros(3, 10),
            "out_bias": torch.eye(10)[7],
        },
        1.0,
    )
    first = measure_spread(p, many, torch.tensor([1.0, 0.0]), reader, 0)
    np.testing.assert_allclose(first.log_sd, -1.0)
    np.testing.assert_allclose(measure_spread(p, many, torch.tensor([1.0, 1.0]), None, 0).log_sd, -2.0)
    # None active: all count.
    none = measure_spread(p, many, torch.zeros(2), None, 0)
    np.testing.assert_allclose(none.log_sd, -2.0)
    assert none.digits is None
    assert first.digits is not None
    assert first.digits.shape == (105, DECODED_SAMPLES)
    assert (first.digits == 7).all()
    decoded = decoded_samples(p, many[np.arange(50)], DECODED_SAMPLES, 0, "spread").numpy()
    np.testing.assert_allclose(first.decoded_sd[:50], np.sqrt(decoded.var(0, ddof=1).mean(-1)), rtol=1e-4)
    p.bias["q1.log_std"][0, 0] = torch.tensor([0.0, 0.0])
    assert (measure_spread(p, many, torch.ones(2), None, 0).decoded_sd > first.decoded_sd).mean() > 0.9
