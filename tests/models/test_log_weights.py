"""The model in single precision, as it trains, against itself in double precision, where it is held to autograd."""

from __future__ import annotations

import pytest
import torch

from pipeline.experiments.protocol import PROTOCOLS
from pipeline.models.log_weights import backward, decode, encode, forward
from pipeline.models.networks import Parameters, initial_weights
from pipeline.objectives import OBJECTIVES, Weights


def problem(latent: tuple[int, ...], T: int, runs: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(784, generator=generator, dtype=torch.float64).numpy()
    flat = torch.stack([initial_weights(latent, PROTOCOLS["paper-text"], seed, mean) for seed in range(runs)])
    x = torch.bernoulli(torch.full((runs, 20, 784), 0.3), generator=generator)
    return flat, x, [torch.randn(runs, T, 20, units, generator=generator) for units in latent]


@pytest.mark.parametrize("objective", ["iwae", "piwae", "iwae-dreg"])
@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("latent", [(50,), (100, 50), (2,)])
def test_single_precision(latent: tuple[int, ...], runs: int, objective: str) -> None:
    flat, x, eps = problem(latent, T=6, runs=runs)

    def run(dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        p = Parameters(latent, flat.to(dtype))
        f = forward(p, x.to(dtype), [noise.to(dtype) for noise in eps], backward_follows=True)
        # Weights from the double-precision log w for both: only the passes are compared.
        log_w = exact_log_w if dtype == torch.float32 else f.log_w
        grouped = OBJECTIVES[objective].weights(log_w.permute(1, 0, 2).reshape(1, 6, -1))
        theta, path_, score = (w[0].view(6, runs, 20).transpose(0, 1).contiguous().to(dtype) for w in grouped)
        weights = Weights(theta, path_, path_ if grouped.score is grouped.path else score)
        return f.log_w, backward(p, f, weights).pieces(latent)

    exact_log_w = torch.empty(0)
    exact_log_w, exact = run(torch.float64)
    log_w, pieces = run(torch.float32)
    torch.testing.assert_close(log_w.double(), exact_log_w, rtol=1e-5, atol=1e-3)
    for ours, expected in zip(pieces, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-6)


def test_known_encoding_changes_nothing() -> None:
    flat, x, eps = problem((50,), T=3, runs=1)
    p = Parameters((50,), flat)
    assert torch.equal(forward(p, x, eps, encoded=encode(p, x)).log_w, forward(p, x, eps).log_w)


def test_decoding_inverts_nothing_but_follows_the_noise() -> None:
    """Logits of two ancestral draws differ, equal noise gives equal logits, and shapes are those of images."""
    flat, _, _ = problem((100, 50), T=1, runs=1)
    p = Parameters((100, 50), flat)
    noise = [torch.randn(1, 4, units, generator=torch.Generator().manual_seed(1)) for units in (100, 50)]
    logits = decode(p, noise)
    assert logits.shape == (1, 4, 784)
    assert torch.equal(decode(p, noise), logits)
    assert not torch.allclose(logits[0, 0], logits[0, 1])
