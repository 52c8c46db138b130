"""log w of the compiled forward pass against the plain one in float64, with the same noise."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.draws.philox import normal, stream_key
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.models import compiled_step
from pipeline.models.compiled_step import CompiledLogWeights
from pipeline.models.log_weights import forward
from pipeline.models.networks import Parameters, initial_weights, network

pytestmark = pytest.mark.skipif(
    not isinstance(compiled_step.library(), ctypes.CDLL), reason=f"no compiled step: {compiled_step.library()}"
)
CODE = next(iter(PROTOCOLS.values()))


def weights(latent: tuple[int, ...]) -> Tensor:
    """Half the initial ones: standard deviations are about one."""
    return 0.5 * initial_weights(latent, CODE, 0, np.full(784, 0.3))


def bits(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 2, (count, 784))).float()


def keys(latent: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    return np.array([stream_key(5, f"likelihood{l + 1}") for l in range(len(latent))], np.uint32)


def expected(
    latent: tuple[int, ...],
    x: Tensor,
    numbers: Sequence[int],
    samples: slice,
    active: list[Tensor],
    flat: Tensor | None = None,
) -> Tensor:
    """[samples, B] float64; `flat`: other weights."""
    eps = []
    for units, words in zip(latent, keys(latent).tolist(), strict=True):
        drawn = normal(samples.stop * units, torch.tensor([words]).expand(len(x), 2), torch.tensor(numbers))
        eps.append(drawn.view(len(x), samples.stop, units)[:, samples].transpose(0, 1).unsqueeze(0).double())
    p = Parameters(latent, (weights(latent) if flat is None else flat).double().unsqueeze(0))
    return forward(p, x.double().unsqueeze(0), eps, [mask.double() for mask in active]).log_w[0]


@pytest.mark.parametrize("latent", [(50,), (100, 50), (2,), (3,), (100, 2)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [20, 7])
def test_log_weights(latent: tuple[int, ...], masked: bool, count: int) -> None:
    """Samples from the seventh on, which begins nowhere in particular; images by numbers of their own."""
    active = [torch.ones(units) for units in latent]
    if masked:
        active = [(torch.arange(units) % 3 != 1).float() for units in latent]
    x, numbers = bits(count), [11 * b + 3 for b in range(count)]
    compiled = CompiledLogWeights(latent, weights(latent), torch.cat(active))
    compiled.encode(bits(20).flip(0))
    compiled.encode(x)
    log_w = compiled.of(np.array(numbers), 7, 13, keys(latent))
    assert log_w.shape == (13, count)
    torch.testing.assert_close(log_w.double(), expected(latent, x, numbers, slice(7, 20), active), rtol=1e-6, atol=1e-4)


def test_log_weights_with_avx2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx2" not in cpu.read_text():
        pytest.skip("this processor has no AVX2")
    built = compiled_step.build(tmp_path / "step.so", ["cc"], ("-march=haswell",))
    monkeypatch.setattr(compiled_step, "library", lambda: built)
    latent = 100, 50
    x, ones = bits(20), [torch.ones(units) for units in latent]
    compiled = CompiledLogWeights(latent, weights(latent), torch.cat(ones))
    compiled.encode(x)
    log_w = compiled.of(np.arange(20), 0, 13, keys(latent))
    exact = expected(latent, x, range(20), slice(0, 13), ones)
    torch.testing.assert_close(log_w.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("layer", [layer.name for layer in network((50,))])
def test_a_diverged_network_shows(layer: str) -> None:
    """A NaN, wherever it arises, comes through tanh and the likelihood."""
    latent = (50,)
    model = Parameters(latent, weights(latent).unsqueeze(0))
    model.bias[layer][0, 0, 3] = torch.nan
    compiled = CompiledLogWeights(latent, model.flat[0], torch.ones(50))
    compiled.encode(bits(20))
    assert compiled.of(np.arange(20), 0, 5, keys(latent)).isnan().all()


def test_an_image_and_a_sample_have_their_weight_whatever_is_beside_them() -> None:
    compiled = CompiledLogWeights((50,), weights((50,)), torch.ones(50))
    x = bits(20)
    compiled.encode(x)
    whole = compiled.of(np.arange(20), 0, 11, keys((50,)))
    compiled.encode(x[5:8])
    assert torch.equal(compiled.of(np.arange(5, 8), 3, 6, keys((50,))), whole[3:9, 5:8])


@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_far_out_logits_and_activations(latent: tuple[int, ...]) -> None:
    """Hidden units at and beyond where tanh is 1, and logits of 30 and 100 of either sign in some pixels."""
    flat = weights(latent)
    model = Parameters(latent, flat.unsqueeze(0))
    for layer in ("q1.hidden1", "p1.hidden1"):
        model.weight[layer].mul_(30)
    model.bias["p1.logits"][0, 0, [0, 5, 400, 783]] = torch.tensor([30.0, 100.0, -30.0, -100.0])
    x, ones = bits(20), [torch.ones(units) for units in latent]
    compiled = CompiledLogWeights(latent, flat, torch.cat(ones))
    compiled.encode(x)
    log_w = compiled.of(np.arange(20), 0, 9, keys(latent))
    exact = expected(latent, x, range(20), slice(0, 9), ones, flat)
    torch.testing.assert_close(log_w.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("place", [3, 783])
def test_an_infinite_logit_shows(bad: float, target: float, place: int) -> None:
    """Where the pixel is what it says, log p is 0 or, of inf - inf, no number."""
    latent = (50,)
    flat = weights(latent)
    Parameters(latent, flat.unsqueeze(0)).bias["p1.logits"][0, 0, place] = bad
    compiled = CompiledLogWeights(latent, flat, torch.ones(50))
    compiled.encode(torch.full((20, 784), target))
    log_w = compiled.of(np.arange(20), 0, 5, keys(latent))
    harmless = bad == float("inf") if target == 1.0 else bad == float("-inf")
    assert harmless or not torch.isfinite(log_w).any()
