"""The compiled passes against float64 torch, and the torch ones that stand in for them."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.nn.functional import softplus

from pipeline.models import kernels


@pytest.mark.parametrize("pixels", [784, 37, 2100])
@pytest.mark.parametrize("runs", [1, 2])
def test_bernoulli(path: str, pixels: int, runs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    T, B = 3, 5
    logits = 8 * torch.randn(runs, T * B, pixels, generator=generator)
    logits[0, 0, :4] = torch.tensor([0.0, 100.0, -100.0, 30.0])
    x = torch.bernoulli(torch.full((runs, B, pixels), 0.4), generator=generator)
    exact = logits.double().view(runs, T, B, pixels)
    expected = (exact * x.double().unsqueeze(1)).sum(-1) - softplus(exact).sum(-1)
    slope = (x.double().unsqueeze(1) - exact.sigmoid()).view_as(logits)
    without, none = kernels.bernoulli(logits.clone(), x, residual=False)
    log_px, residual = kernels.bernoulli(logits.clone(), x, residual=True)
    assert none is None
    assert residual is not None
    torch.testing.assert_close(log_px.double(), expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(without, log_px, rtol=0, atol=1e-3)
    torch.testing.assert_close(residual.double(), slope, rtol=0, atol=5e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("place", [3, 783])
def test_a_diverged_network_shows(path: str, bad: float, target: float, place: int) -> None:
    logits = torch.zeros(1, 1, 784)
    logits[0, 0, place] = bad
    log_px, _ = kernels.bernoulli(logits, torch.full((1, 1, 784), target), residual=True)
    harmless = bad == float("inf") if target == 1.0 else bad == float("-inf")
    assert harmless or not torch.isfinite(log_px).all()


def test_tanh_backward(path: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, activation = torch.randn(2, 7, 9, generator=generator), torch.rand(2, 7, 9, generator=generator)
    expected = gradient.double() * (1 - activation.double().square())
    torch.testing.assert_close(kernels.tanh_backward(gradient, activation).double(), expected, rtol=1e-6, atol=1e-7)


def test_strided_and_double_tensors_take_the_torch_path() -> None:
    gradient, activation = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    expected = gradient * (1 - activation.square())
    torch.testing.assert_close(kernels.tanh_backward(gradient.clone(), activation), expected, rtol=0, atol=1e-15)
    single, strided = torch.randn(6, 4), torch.rand(4, 6).T
    expected = single * (1 - strided.square())
    torch.testing.assert_close(kernels.tanh_backward(single.clone(), strided), expected)


@pytest.mark.parametrize("lagged", [[True, True], [False, False], [True, False]])
def test_adam_agrees_with_double_precision(path: str, lagged: list[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = [torch.randn(2, 1003, generator=generator), 0.1 * torch.randn(2, 1003, generator=generator)]
    state.append(torch.rand(2, 1003, generator=generator))
    gradient = torch.randn(2, 1003, generator=generator)
    pieces = [gradient[:, :1000].reshape(2, 50, 20), gradient[:, 1000:].reshape(2, 1, 3)]
    constants = ([1e-3, 2e-2], [1e-4, 1e-5], [0.99, 0.9], [0.999, 0.99], lagged)
    exact = [tensor.double() for tensor in state]
    for _ in range(3):
        kernels.adam_ascent(*state, pieces, *constants)
        kernels.adam_ascent(*exact, [gradient.double()], *constants)
    for single, double in zip(state, exact, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


def test_can_be_switched_off_and_survives_a_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    original = kernels.library.__wrapped__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert original() is None
    monkeypatch.delenv("CC")
    built = original()
    assert built is None or isinstance(built, ctypes.CDLL)
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert original() is None
