from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.evaluation.ais import (
    AisSpec,
    ChainNoise,
    Path,
    anneal,
    betas,
    decoder_log_likelihood,
    lower_bound,
    second_opinion,
    simulate_images,
    tune,
    upper_bound,
)
from pipeline.evaluation.gaussian_toy import make_toy
from pipeline.models.networks import Parameters, count_parameters
from tests.conftest import numbered


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    # Not the seeds that chains take: a start that repeats the first momentum would bias them.
    return torch.randn(shape, generator=generator(1000 + seed), dtype=torch.float64)


def noise(images: int, chains: int, seed: int = 0) -> ChainNoise:
    return ChainNoise(seed, "test", torch.arange(images), chains)


def toy_log_likelihood(u: Tensor) -> Tensor:
    """log p(x | z = mu + u) of Rainforth's model."""
    return -(TOY.x - TOY.mu - u).square().sum(-1) / 2 - TOY.x.shape[1] / 2 * math.log(2 * math.pi)


TOY = make_toy(3, dimensions=10, points=6)


def decoder(latent: tuple[int, ...], seed: int = 0) -> Parameters:
    """A random decoder, smooth enough for a grid over its latent variables."""
    p = Parameters(latent, 0.1 * normal((1, count_parameters(latent)), seed))
    p.weight["p1.logits"] *= 0.3
    return p


def test_betas_rise_from_prior_to_joint() -> None:
    path = betas(50)
    assert path[0] == 0
    assert path[-1] == 1
    assert (path.diff() > 0).all()
    assert path.diff()[0] < path.diff()[25] / 3


def test_log_p_of_the_linear_gaussian_model_is_found_from_both_sides() -> None:
    path = tune(toy_log_likelihood, normal((8, 6, 10)), 150, noise(6, 8))
    forward, rate = anneal(toy_log_likelihood, normal((32, 6, 10), 1), path, noise(6, 32, 1))
    posterior = (TOY.x - TOY.mu) / 2 + math.sqrt(0.5) * normal((6, 10), 2)
    backward, _ = anneal(toy_log_likelihood, posterior.expand(32, -1, -1), path, noise(6, 32, 2), reverse=True)
    assert 0.4 < rate < 0.9
    assert (lower_bound(forward) - TOY.log_px).abs().max() < 0.5
    assert (lower_bound(forward) - TOY.log_px).mean().abs() < 0.15
    assert (upper_bound(backward) - TOY.log_px).mean().abs() < 0.25
    assert forward.std(0).mean() < 1.2


def test_weights_are_unbiased_however_short_the_path() -> None:
    """E[w] = p(x) and E[1 / w] = 1 / p(x) over many chains of four transitions, also with a wrong step size."""
    x = torch.tensor([[0.4], [-0.8]], dtype=torch.float64)

    def log_likelihood(u: Tensor) -> Tensor:
        return -(x - u).square().sum(-1) / 2  # x | u ~ N(u, 1), unnormalized

    log_px = -x.squeeze(1).square() / 4 - 0.5 * math.log(2)
    path = Path(betas(4), torch.tensor([0.3, 0.9, 0.6, 0.4, 1.1], dtype=torch.float64))
    forward, _ = anneal(log_likelihood, normal((40_000, 2, 1)), path, noise(2, 40_000))
    posterior = x / 2 + math.sqrt(0.5) * normal((40_000, 2, 1), 1)
    backward, _ = anneal(log_likelihood, posterior, path, noise(2, 40_000, 1), reverse=True)
    for ratio in ((forward - log_px).exp(), (log_px - backward).exp()):
        error = ratio.std(0) / math.sqrt(40_000)
        assert (error < 0.02).all()
        assert ((ratio.mean(0) - 1).abs() < 4 * error).all()


@pytest.mark.parametrize("latent", [(2,), (1, 1)])
def test_log_p_of_a_decoder_with_a_tiny_latent_space_against_quadrature(latent: tuple[int, ...]) -> None:
    p = decoder(latent)
    images, _ = simulate_images(p, 3, seed=4)
    log_likelihood = decoder_log_likelihood(p, images.bits)
    line = torch.linspace(-6, 6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    log_joint = log_likelihood(grid.unsqueeze(1).expand(-1, 3, -1)) - grid.square().sum(1, keepdim=True) / 2
    log_px = torch.logsumexp(log_joint, 0) + 2 * math.log(0.2) - math.log(2 * math.pi)
    path = tune(log_likelihood, normal((8, 3, 2)), 100, noise(3, 8))
    forward, _ = anneal(log_likelihood, normal((16, 3, 2), 1), path, noise(3, 16, 1))
    torch.testing.assert_close(lower_bound(forward), log_px, atol=0.2, rtol=0)


def test_decoder_log_likelihood_is_that_of_the_network() -> None:
    """Two layers: h1 = mean(u2) + std(u2) u1, then the Bernoulli of the textbook."""
    p = decoder((4, 3))
    weights = p.named_tensors(0)
    x = (torch.rand((2, PIXELS), generator=generator()) < 0.5).double()
    u = normal((5, 2, 7))

    def mlp(block: str, h: Tensor) -> Tensor:
        for layer in ("hidden1", "hidden2"):
            h = torch.tanh(h @ weights[f"{block}.{layer}.weight"] + weights[f"{block}.{layer}.bias"])
        return h

    above = mlp("p2", u[..., 4:])
    mean = above @ weights["p2.mean.weight"] + weights["p2.mean.bias"]
    std = (above @ weights["p2.log_std.weight"] + weights["p2.log_std.bias"]).exp()
    logits = mlp("p1", mean + std * u[..., :4]) @ weights["p1.logits.weight"] + weights["p1.logits.bias"]
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(decoder_log_likelihood(p, x)(u), expected)


def test_simulated_images_follow_the_decoder() -> None:
    p = Parameters((2,), torch.zeros((1, count_parameters((2,))), dtype=torch.float64))
    p.bias["p1.logits"][:] = math.log(0.2 / 0.8)
    images, u = simulate_images(p, 200, seed=0)
    assert u.shape == (200, 2)
    assert images.bits.mean().item() == pytest.approx(0.2, abs=0.005)


def test_chains_of_an_image_move_alike_whichever_others_are_there() -> None:
    some, every = ChainNoise(0, "test", torch.tensor([4, 1]), 3), noise(6, 3)
    for transition in (0, 7):
        assert torch.equal(some.momentum(transition, 5), every.momentum(transition, 5)[:, [4, 1]])
        assert torch.equal(some.accept(transition), every.accept(transition)[:, [4, 1]])
        assert some.jitter(transition) == every.jitter(transition)
    assert torch.equal(some.start(5), every.start(5)[:, [4, 1]])
    assert not torch.isclose(every.momentum(0, 5), every.momentum(1, 5)).any()
    assert every.jitter(0) != every.jitter(1)


def test_second_opinion_reports_bounds_that_agree() -> None:
    """A decoder that ignores u has p(x) = p(x | u): every bound is exact, and so is AIS."""
    latent = (3,)
    flat = torch.zeros(count_parameters(latent))
    p = Parameters(latent, flat.unsqueeze(0))
    p.bias["p1.logits"][:] = 0.5
    p.bias["q1.mean"][:] = 1.0  # a wrong posterior, which the estimate pays for
    test = numbered((torch.rand((25, PIXELS), generator=generator()) < 0.5).float())
    spec = AisSpec(images=25, transitions=4, chains=3, num_samples=50, seed=0)
    advanced = []
    summary, arrays = second_opinion(flat, latent, test, spec, advanced.append)
    assert sum(advanced) == spec.work == 3 * 4 * 2
    log_px = torch.distributions.Bernoulli(logits=torch.tensor(0.5)).log_prob(test.bits).sum(1).numpy()
    np.testing.assert_allclose(arrays["test/lower"], log_px, rtol=1e-5)
    np.testing.assert_allclose(arrays["simulated/upper"], arrays["simulated/lower"], rtol=1e-9)
    assert summary["test/lower_minus_estimate"] == pytest.approx(
        float((arrays["test/lower"] - arrays["test/estimate"]).mean())
    )
    assert summary["test/lower_minus_estimate"] > 0
    assert {key: values.shape for key, values in arrays.items()} == dict.fromkeys(
        ("test/lower", "test/estimate", "simulated/lower", "simulated/upper", "simulated/estimate"), (25,)
    )
