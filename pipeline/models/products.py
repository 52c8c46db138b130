"""The matrix products of stacked layers. All operands are [R, rows, columns]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_WORTH_IT = 1_000_000
"""Multiply-adds per run from which rounding the operands pays."""


@dataclass(frozen=True)
class Arithmetic:
    """How a model's products of float32 operands are made; its likelihood and its weights stay float32 throughout.

    Operands in float64 are multiplied in float64 whatever is said here.
    """

    bfloat16: bool = False
    """Operands and results of large products are rounded to 8 bits."""
    tf32: bool = False
    """Operands are rounded to 11 bits, on a GPU; torch's own products follow `torch_in_tf32`."""
    fused_output: bool = False
    """The output layer is made by the Triton kernel of `pipeline.models.fused` where a backward pass follows."""

    @staticmethod
    def of(precision: str, fused_output: bool = False) -> Arithmetic:
        """`precision`: as of `pipeline.experiments.spec.RunSpec`."""
        return Arithmetic(precision == "bfloat16", precision == "tf32", fused_output)

    def rounds(self, rows: Tensor, columns: Tensor) -> bool:
        """Whether this product is made in bfloat16: asked for, and large enough to pay for rounding its operands."""
        if not self.bfloat16 or rows.dtype != torch.float32:
            return False
        return rows.shape[1] * rows.shape[2] * columns.shape[2] >= _WORTH_IT


IN_FLOAT32 = Arithmetic()


@contextmanager
def torch_in_tf32(on: bool) -> Iterator[None]:
    """Whether torch's products inside round float32 operands on a GPU: torch has one switch for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def product(a: Tensor, b: Tensor, arithmetic: Arithmetic = IN_FLOAT32) -> Tensor:
    """a @ b."""
    return torch.bmm(a.bfloat16(), b.bfloat16()).float() if arithmetic.rounds(a, b) else torch.bmm(a, b)


def affine(
    rows: Tensor, weight: Tensor, bias: Tensor, tanh: bool = False, arithmetic: Arithmetic = IN_FLOAT32
) -> Tensor:
    """rows @ weight + bias, [R, rows, outputs], through tanh if asked. `bias`: [R, 1, outputs]."""
    rounds = arithmetic.rounds(rows, weight)
    result = product(rows, weight, arithmetic).add_(bias) if rounds else torch.baddbmm(bias, rows, weight)
    return result.tanh_() if tanh else result


def layer_gradient(
    rows: Tensor, outgoing: Tensor, importance: Tensor | None, arithmetic: Arithmetic = IN_FLOAT32
) -> tuple[Tensor, Tensor]:
    """d/d weight [R, inputs, outputs] and d/d bias [R, 1, outputs] of what leaves a layer.

    The sum over rows of importance[r] * outer(rows[r], outgoing[r]). `importance`: [R, rows, 1], None for all ones.
    """
    if importance is None:
        return product(rows.mT, outgoing, arithmetic), outgoing.sum(1, keepdim=True)
    return product((rows * importance).mT, outgoing, arithmetic), torch.bmm(importance.mT, outgoing)
