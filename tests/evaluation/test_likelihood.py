"""The likelihood estimator on models whose log p(x) is known by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import (
    PassSize,
    doubling_bounds,
    likelihoods,
    model_log_weights,
    plain_log_weights,
    summarize,
)
from pipeline.models import compiled_step
from pipeline.models.log_weights import forward
from pipeline.models.networks import Parameters, count_parameters
from tests.conftest import numbered

NODES = 101


def tiny_model(layers: int) -> tuple[Parameters, Tensor]:
    """A random model with one unit per stochastic layer, and six images."""
    latent = (1,) * layers
    generator = torch.Generator().manual_seed(layers)
    p = Parameters(latent, 0.15 * torch.randn(1, count_parameters(latent), generator=generator))
    # Posteriors within reach of q: moderate encoder heads, a decoder that says little about h.
    p.weight["p1.logits"].mul_(0.1)
    for name, weight in p.weight.items():
        if name.endswith(("mean", "log_std")):
            weight.mul_(0.2)
    images = torch.bernoulli(torch.full((6, 784), 0.3), generator=generator)
    return p, images


def log_joint(p: Parameters, x: Tensor, h: list[Tensor]) -> Tensor:
    """log p(x, h) [rows] in float64 for one image [784] and one unit per layer, h[l]: [rows]."""
    w = {name: tensor.double() for name, tensor in p.named_tensors(0).items()}

    def mlp(block: str, rows: Tensor, heads: list[str]) -> list[Tensor]:
        for layer in ("hidden1", "hidden2"):
            rows = torch.tanh(rows @ w[f"{block}.{layer}.weight"] + w[f"{block}.{layer}.bias"])
        return [rows @ w[f"{block}.{head}.weight"] + w[f"{block}.{head}.bias"] for head in heads]

    normal = torch.distributions.Normal
    total = normal(0.0, 1.0).log_prob(h[-1])
    if len(h) == 2:
        mean, log_std = mlp("p2", h[1][:, None], ["mean", "log_std"])
        total = total + normal(mean[:, 0], log_std[:, 0].exp()).log_prob(h[0])
    (logits,) = mlp("p1", h[0][:, None], ["logits"])
    return total + torch.distributions.Bernoulli(logits=logits).log_prob(x.double()).sum(-1)


def exact_log_p(p: Parameters, images: Tensor) -> Tensor:
    """log p(x) by the trapezoid rule on [-8, 8] per latent dimension, [images]."""
    grid = torch.linspace(-8, 8, NODES if len(p.latent) == 2 else 4001, dtype=torch.float64)
    step = math.log(grid[1] - grid[0]) * len(p.latent)
    mesh = [axis.reshape(-1) for axis in torch.meshgrid(*[grid] * len(p.latent), indexing="ij")]
    return torch.stack([torch.logsumexp(log_joint(p, x, mesh), 0) + step for x in images])


@pytest.mark.parametrize("layers", [1, 2])
def test_estimate_agrees_with_quadrature_and_bounds_rise(layers: int) -> None:
    p, images = tiny_model(layers)
    exact = exact_log_p(p, images)
    samples = 5000
    log_w = model_log_weights(p, 0)
    ours = torch.from_numpy(likelihoods(log_w, numbered(images), samples, 64).log_p_hat)
    weights = torch.cat([log_w(numbered(images), first, 50) for first in range(0, samples, 50)]).double()
    # Delta method: the standard error of log mean w is that of w over its mean.
    relative = (weights - torch.logsumexp(weights, 0) + math.log(samples)).exp()
    error = relative.std(0) / math.sqrt(samples)
    assert (error < 0.2).all(), "the test's own model must be one that 5000 samples can estimate"
    assert ((ours - exact).abs() < 3 * error + 1e-4).all(), (ours - exact, error)
    bounds = [likelihoods(log_w, numbered(images), samples, k) for k in (1, 8, 64, 1000)]
    means = [float(b.bound.mean()) for b in bounds]
    assert means == sorted(means)
    assert means[0] == pytest.approx(float(bounds[0].elbo.mean()), abs=1e-4)
    assert means[-1] < exact.mean() + 0.05


@pytest.mark.parametrize("layers", [1, 2])
def test_log_w_is_log_joint_minus_log_q(layers: int) -> None:
    p, images = tiny_model(layers)
    eps = [torch.randn(1, 7, 6, 1, generator=torch.Generator().manual_seed(3)) for _ in range(layers)]
    f = forward(p, images.unsqueeze(0), eps)
    for b, x in enumerate(images):
        h = [part[0, :, b, 0].double() for part in f.h]
        log_q = torch.zeros(7, dtype=torch.float64)
        for l, block in enumerate(f.q):
            at = block.mean.view(1, -1, 6, 1)[0, :, b, 0].double(), block.std.view(1, -1, 6, 1)[0, :, b, 0].double()
            log_q = log_q + torch.distributions.Normal(*at).log_prob(h[l])
        expected = log_joint(p, x, h) - log_q
        torch.testing.assert_close(f.log_w[0, :, b].double(), expected, rtol=1e-5, atol=2e-3)


def test_summary_against_a_direct_computation() -> None:
    log_w = torch.from_numpy(np.random.default_rng(0).normal(-90, 5, (130, 3)))
    log_p_hat, bound, elbo, ess, bounds, relative_variance = (part.numpy() for part in summarize(log_w, 64))
    w = np.exp(log_w.numpy() + 90)
    np.testing.assert_allclose(log_p_hat, np.log(w.mean(0)) - 90)
    np.testing.assert_allclose(elbo, log_w.numpy().mean(0))
    groups = w[:128].reshape(2, 64, 3)
    np.testing.assert_allclose(bound, (np.log(groups.mean(1)) - 90).mean(0))
    np.testing.assert_allclose(ess, (groups.sum(1) ** 2 / (groups**2).sum(1) / 64).mean(0))
    np.testing.assert_allclose(relative_variance, w.var(0) / w.mean(0) ** 2)
    assert bounds.shape == (3, 8)
    equal = summarize(torch.full((64, 2), -700.0), 64)
    np.testing.assert_allclose(equal[0].numpy(), -700)
    np.testing.assert_allclose(equal[3].numpy(), 1)


@pytest.mark.parametrize("samples", [1, 2, 7, 64, 130])
def test_bounds_at_every_k_against_a_loop_over_groups(samples: int) -> None:
    log_w = torch.from_numpy(np.random.default_rng(samples).normal(-90, 4, (samples, 2)))
    bounds = doubling_bounds(log_w).numpy()
    assert bounds.shape == (2, samples.bit_length())
    w = np.exp(log_w.numpy() + 90)
    for j in range(samples.bit_length()):
        K = 2**j
        groups = [np.log(w[g * K : (g + 1) * K].mean(0)) - 90 for g in range(samples // K)]
        np.testing.assert_allclose(bounds[:, j], np.mean(groups, axis=0))


def test_exactly_so_many_samples_are_used_however_they_are_split() -> None:
    _, images = tiny_model(1)
    matrix = torch.randn(5003, len(images), generator=torch.Generator().manual_seed(5))
    taken: list[int] = []

    def log_w(some: Images, first: int, samples: int) -> Tensor:
        assert first == sum(taken)
        taken.append(samples)
        return matrix[first : first + samples, : len(some)]

    results = []
    for chunk in (50, 64, 5003, 7):
        taken.clear()
        results.append(likelihoods(log_w, numbered(images), 5003, 64, pass_size=PassSize(20, chunk)).log_p_hat)
        assert sum(taken) == 5003
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_masked_units_leave_the_model(layers: int) -> None:
    """Masking the second of two units per layer gives the model that never had it."""
    generator = torch.Generator().manual_seed(0)
    wide = Parameters((2,) * layers, 0.2 * torch.randn(1, count_parameters((2,) * layers), generator=generator))
    narrow = Parameters((1,) * layers, torch.zeros(1, count_parameters((1,) * layers)))
    named = wide.named_tensors(0)
    for name, tensor in narrow.named_tensors(0).items():
        rows, *columns = tensor.shape
        source = named[name]
        tensor.copy_(source[:rows] if not columns else source[:rows, : columns[0]])
    x = torch.bernoulli(torch.full((1, 5, 784), 0.3), generator=generator)
    eps = [torch.randn(1, 8, 5, 2, generator=generator) for _ in range(layers)]
    masked = forward(wide, x, eps, [torch.tensor([1.0, 0.0])] * layers).log_w
    torch.testing.assert_close(masked, forward(narrow, x, [e[..., :1] for e in eps]).log_w, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(masked, forward(wide, x, eps).log_w, atol=0.1)


def test_same_noise_for_every_model_and_new_noise_for_every_image_and_sample() -> None:
    p, images = tiny_model(1)
    alike = Images(images[:1].expand(2, -1), torch.tensor([4, 9]))
    log_w = model_log_weights(p, 0)(alike, 0, 50)
    assert torch.equal(log_w, model_log_weights(p, 0)(alike, 0, 50))
    # Of fifty, a few may be alike by chance.
    assert int(torch.isclose(log_w[:, 0], log_w[:, 1]).sum()) < 10
    assert not torch.equal(log_w, model_log_weights(p, 1)(alike, 0, 50))
    assert len(log_w[:, 0].unique()) > 45


@pytest.mark.skipif(isinstance(compiled_step.library(), str), reason=f"no compiled step: {compiled_step.library()}")
@pytest.mark.parametrize("latent", [(50,), (100, 50), (3, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_log_weights_are_the_plain_ones(latent: tuple[int, ...], masked: bool) -> None:
    """Blocks of up to twenty images and larger ones; a block again, and another one after it."""
    generator = torch.Generator().manual_seed(0)
    p = Parameters(latent, 0.1 * torch.randn(1, count_parameters(latent), generator=generator))
    images = numbered(torch.bernoulli(torch.full((45, 784), 0.3), generator=generator))
    active = [(torch.arange(units) % 3 != 1).float() for units in latent] if masked else None
    ours, plain = model_log_weights(p, 3, active), plain_log_weights(p, 3, active)
    few, others = images[np.arange(3, 16)], images[np.arange(20, 40)]
    for batch, first, samples in ((few, 0, 9), (few, 9, 2), (others, 5, 6), (images, 0, 5)):
        torch.testing.assert_close(ours(batch, first, samples), plain(batch, first, samples), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("latent", [(1,), (50,), (3, 5)])
def test_estimates_depend_neither_on_blocks_nor_on_other_images(latent: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    p = Parameters(latent, 0.1 * torch.randn(1, count_parameters(latent), generator=generator))
    images = numbered(torch.bernoulli(torch.full((7, 784), 0.3), generator=generator))
    whole = likelihoods(model_log_weights(p, 3), images, 131, 64, PassSize(7, 131))
    parts = likelihoods(model_log_weights(p, 3), images, 131, 64, PassSize(3, 17))
    some = likelihoods(model_log_weights(p, 3), images[np.array([5, 2])], 131, 64)
    np.testing.assert_allclose(parts.log_p_hat, whole.log_p_hat, rtol=0, atol=2e-4)
    np.testing.assert_allclose(some.log_p_hat, whole.log_p_hat[[5, 2]], rtol=0, atol=2e-4)
    other_seed = likelihoods(model_log_weights(p, 4), images, 131, 64)
    assert (np.abs(other_seed.log_p_hat - whole.log_p_hat) > 1e-3).any()
