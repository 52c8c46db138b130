"""The output layer, plain and as a Triton kernel under its interpreter, against autograd in double precision."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import softplus

from pipeline.models import fused
from pipeline.models.output_layer import bernoulli, output_layer
from pipeline.models.products import Arithmetic
from tests.conftest import ROOT


def check(kernel: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    R, T, B, inputs, pixels = 2, 7, 20, 200, 784
    hidden = torch.rand(R, T * B, inputs, generator=generator) * 2 - 1
    # Views into a larger buffer, as parameters are.
    flat = torch.randn(R, inputs * pixels + pixels + 5, generator=generator)
    weight, bias = flat[:, : inputs * pixels].unflatten(1, (inputs, pixels)), flat[:, inputs * pixels : -5].unsqueeze(1)
    x = torch.bernoulli(torch.full((R, B, pixels), 0.3), generator=generator)
    exact_hidden = hidden.double().requires_grad_()
    logits = exact_hidden @ weight.double() + bias.double()
    logits.retain_grad()
    by_sample = logits.view(R, T, B, pixels)
    expected = (x.double().unsqueeze(1) * by_sample).sum(-1) - softplus(by_sample).sum(-1)
    expected.sum().backward()
    for shared in (False, True):
        images = x[:1].expand_as(x) if shared else x
        if shared:
            by_sample = logits.detach().view(R, T, B, pixels)
            expected = (images.double().unsqueeze(1) * by_sample).sum(-1) - softplus(by_sample).sum(-1)
        arithmetic = Arithmetic(fused_output=kernel)
        log_px, residual, d_hidden = output_layer(hidden, weight, bias, images, True, arithmetic)
        torch.testing.assert_close(log_px.double(), expected.detach(), rtol=1e-5, atol=1e-3)
        if not shared:
            assert residual is not None
            assert d_hidden is not None
            assert logits.grad is not None
            assert exact_hidden.grad is not None
            torch.testing.assert_close(residual.double(), logits.grad, rtol=0, atol=2e-5)
            torch.testing.assert_close(d_hidden.double(), exact_hidden.grad, rtol=1e-4, atol=1e-3)


def test_plain() -> None:
    check(kernel=False)


def test_nothing_is_kept_where_no_backward_pass_follows() -> None:
    hidden, weight, bias, x = torch.rand(1, 4, 3), torch.rand(1, 3, 8), torch.rand(1, 1, 8), torch.ones(1, 2, 8)
    _, residual, d_hidden = output_layer(hidden, weight, bias, x, backward_follows=False)
    assert residual is None
    assert d_hidden is None


def test_kernel_under_the_interpreter() -> None:
    """In a process of its own: Triton looks at the variable when it is imported."""
    if not fused.available():
        pytest.skip("Triton is not installed; CUDA builds of torch bring it, elsewhere: pip install --no-deps triton")
    code = "from tests.models.test_output_layer import check; check(kernel=True)"
    command = [sys.executable, "-c", code]
    environment = {"TRITON_INTERPRET": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("place", [3, 783])
def test_a_diverged_network_shows(bad: float, target: float, place: int) -> None:
    logits = torch.zeros(1, 1, 784)
    logits[0, 0, place] = bad
    log_px, _ = bernoulli(logits, torch.full((1, 1, 784), target), residual=True)
    harmless = bad == float("inf") if target == 1.0 else bad == float("-inf")
    assert harmless or not torch.isfinite(log_px).all()
