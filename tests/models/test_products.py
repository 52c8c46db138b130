"""Products in single precision against double precision."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.products import Arithmetic, affine, layer_gradient, product

SHAPES = [(1, 3, 16), (7, 5, 17), (20, 784, 50), (33, 50, 200), (8, 16, 48), (13, 20, 49), (5, 4, 2), (400, 70, 60)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(ours: torch.Tensor, exact: torch.Tensor, terms: int) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-6 * terms**0.5)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("n", "inputs", "outputs"), SHAPES)
def test_affine(runs: int, n: int, inputs: int, outputs: int) -> None:
    rows = random(runs, n, inputs)
    # As in a parameter buffer: each run's weights are contiguous, the stack is not.
    buffer = random(runs, inputs * outputs + outputs + 5)
    weight = buffer[:, : inputs * outputs].unflatten(1, (inputs, outputs))
    bias = buffer[:, inputs * outputs : -5].unsqueeze(1)
    exact = rows.double() @ weight.double() + bias.double()
    close(affine(rows, weight, bias), exact, inputs)
    close(affine(rows, weight, bias, tanh=True), exact.tanh(), inputs)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("n", "inputs", "outputs"), SHAPES)
def test_layer_gradient(runs: int, n: int, inputs: int, outputs: int, weighted: bool) -> None:
    rows, outgoing = random(runs, n, inputs), random(runs, n, outputs, seed=1)
    importance = random(runs, n, 1, seed=2).abs() if weighted else None
    exact_rows = rows.double() * (importance.double() if importance is not None else 1)
    ones = importance.double() if importance is not None else torch.ones(runs, n, 1, dtype=torch.float64)
    weight, bias = layer_gradient(rows, outgoing, importance)
    close(weight, exact_rows.mT @ outgoing.double(), n)
    close(bias, ones.mT @ outgoing.double(), n)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("n", "inputs", "outputs"), SHAPES)
def test_product_of_any_strides(runs: int, n: int, inputs: int, outputs: int) -> None:
    a, b, c = random(runs, n, inputs), random(runs, n, outputs), random(runs, inputs, outputs)
    close(product(a.mT, b), a.double().mT @ b.double(), n)
    close(product(b, c.mT), b.double() @ c.double().mT, outputs)


def test_tanh_far_out_and_near_zero() -> None:
    x = torch.cat([torch.linspace(-100, 100, 63), torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1e30])]).view(1, 1, -1)
    zero = torch.zeros(1, 1, x.shape[2])
    ours = affine(zero[..., :1], zero, x, tanh=True)
    torch.testing.assert_close(ours.double(), x.double().tanh(), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_layer_shows(bad: float) -> None:
    rows = torch.ones(1, 3, 4)
    rows[0, 1, 2] = bad
    weight = torch.ones(1, 4, 20)
    assert not torch.isfinite(affine(rows, weight, torch.zeros(1, 1, 20))[0, 1]).any()
    gradient, _ = layer_gradient(rows, torch.ones(1, 3, 20), None)
    assert not torch.isfinite(gradient[0, 2]).any()


def test_double_precision_stays_double() -> None:
    rows, weight = torch.randn(1, 4, 3, dtype=torch.float64), torch.randn(1, 3, 20, dtype=torch.float64)
    ours = affine(rows, weight, torch.zeros(1, 1, 20, dtype=torch.float64))
    torch.testing.assert_close(ours, rows @ weight, rtol=0, atol=1e-15)


def test_bfloat16_rounds_large_products_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(2, *shape, generator=generator) for shape in ((700, 200), (200, 100)))
    bias, small = torch.randn(2, 1, 100, generator=generator), torch.randn(2, 3, 200, generator=generator)
    exact = rows.double() @ weight.double() + bias
    outgoing = torch.randn(2, 700, 100, generator=generator)
    rounding = Arithmetic.of("bfloat16")
    rounded = affine(rows, weight, bias, arithmetic=rounding)
    gradient, _ = layer_gradient(rows, outgoing, None, rounding)
    few = affine(small, weight, bias, arithmetic=rounding)
    for result, expected in ((rounded, exact), (gradient, rows.double().mT @ outgoing.double())):
        assert result.dtype == torch.float32
        error = (result - expected).abs().max() / expected.abs().max()
        # Operands and results carry 8 bits: not exact, not worse.
        assert 1e-4 < float(error) < 2**-7
    torch.testing.assert_close(few.double(), small.double() @ weight.double() + bias, rtol=1e-4, atol=1e-4)
