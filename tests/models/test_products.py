"""The oneDNN products against float64 ones."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.products import affine, product


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("n", "inputs", "outputs"), [(40, 30, 20), (400, 70, 60)], ids=["small", "large"])
def test_products_of_any_strides(runs: int, n: int, inputs: int, outputs: int) -> None:
    """Small products stay with MKL, large ones go to oneDNN."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (
        torch.randn(runs, n, inputs, generator=generator),
        torch.randn(runs, inputs, outputs, generator=generator),
    )
    bias, other = torch.randn(runs, 1, outputs, generator=generator), torch.randn(runs, n, outputs, generator=generator)
    expected = rows.double() @ weight.double() + bias.double()
    torch.testing.assert_close(affine(rows, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(affine(rows, weight, bias, tanh=True).double(), expected.tanh(), rtol=1e-5, atol=1e-4)
    # As the backward pass calls it: both operands transposed views.
    torch.testing.assert_close(
        product(rows.mT, other).double(), rows.double().mT @ other.double(), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        product(other, weight.mT).double(), other.double() @ weight.double().mT, rtol=1e-5, atol=1e-4
    )


def test_double_precision_stays_double() -> None:
    rows, weight = torch.randn(1, 4, 3, dtype=torch.float64), torch.randn(1, 3, 2, dtype=torch.float64)
    assert affine(rows, weight, torch.zeros(1, 1, 2, dtype=torch.float64)).dtype == torch.float64
    torch.testing.assert_close(product(rows, weight), rows @ weight, rtol=0, atol=0)
