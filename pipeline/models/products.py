"""The matrix products of stacked layers. All operands are [R, rows, columns].

On a CPU float32 products go to the compiled kernels where these apply, else to oneDNN or MKL: PyTorch sends `addmm` and
`bmm` to MKL, which on AMD processors reaches half of what oneDNN does, and oneDNN takes long to set up small products
(docs/performance.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.models.kernels import compiled, pointer

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_WORTH_IT = 1_000_000
"""Multiply-adds per run from which oneDNN's set-up pays."""

PRECISIONS = ("float32", "tf32", "bfloat16", "float64")
_in_bfloat16 = False


@contextmanager
def product_precision(name: str) -> Iterator[None]:
    """How precisely float32 operands are multiplied inside: one of `PRECISIONS`.

    `tf32` rounds operands to 11 bits on a GPU and does nothing on a CPU; `bfloat16` rounds operands and results of
    large products to 8 bits. Parameters, moments, likelihoods and weights stay float32 under both. `float64` is a
    matter of the operands' type.
    """
    global _in_bfloat16
    before = torch.backends.cuda.matmul.allow_tf32, _in_bfloat16
    torch.backends.cuda.matmul.allow_tf32, _in_bfloat16 = name == "tf32", name == "bfloat16"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, _in_bfloat16 = before


def _rounded(rows: Tensor, columns: Tensor) -> bool:
    """Whether this product is made in bfloat16: asked for, and large enough to pay for rounding its operands."""
    if not _in_bfloat16 or rows.dtype != torch.float32:
        return False
    return rows.shape[1] * rows.shape[2] * columns.shape[2] >= _WORTH_IT


def _use_onednn(rows: Tensor, columns: Tensor) -> bool:
    if not (_ONEDNN and rows.device.type == "cpu" and rows.dtype == torch.float32):
        return False
    return rows.shape[1] * rows.shape[2] * columns.shape[2] >= _WORTH_IT


def _kernels(rows: Tensor, outputs: int) -> ctypes.CDLL | None:
    lib = compiled(rows)
    return lib if lib is not None and outputs >= lib.smallest_width() else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b."""
    if _rounded(a, b):
        return torch.bmm(a.bfloat16(), b.bfloat16()).float()
    if not _use_onednn(a, b):
        return torch.bmm(a, b)
    parts = [torch.ops.mkldnn._linear_pointwise(x, y.T, None, "none", [], "") for x, y in zip(a, b, strict=True)]
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def affine(rows: Tensor, weight: Tensor, bias: Tensor, tanh: bool = False) -> Tensor:
    """rows @ weight + bias, [R, rows, outputs], through tanh if asked. `bias`: [R, 1, outputs]."""
    R, count, inputs = rows.shape
    outputs = weight.shape[2]
    lib = _kernels(rows, outputs)
    rounded = _rounded(rows, weight)
    if lib is None or rounded or weight.stride()[1:] != (outputs, 1):
        in_two = rounded or _use_onednn(rows, weight)
        result = product(rows, weight).add_(bias) if in_two else torch.baddbmm(bias, rows, weight)
        return result.tanh_() if tanh else result
    out = rows.new_empty(R, count, outputs)
    sizes = (ctypes.c_int64(count), ctypes.c_int64(inputs), ctypes.c_int64(outputs), ctypes.c_int32(tanh))
    for r in range(R):
        lib.affine(pointer(rows[r]), pointer(weight[r]), pointer(bias[r]), pointer(out[r]), *sizes)
    return out


def layer_gradient(rows: Tensor, outgoing: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """d/d weight [R, inputs, outputs] and d/d bias [R, 1, outputs] of what leaves a layer.

    The sum over rows of importance[r] * outer(rows[r], outgoing[r]). `importance`: [R, rows, 1], None for all ones.
    """
    R, count, inputs = rows.shape
    outputs = outgoing.shape[2]
    lib = _kernels(rows, outputs)
    others = [outgoing] if importance is None else [outgoing, importance]
    if lib is None or _rounded(rows.mT, outgoing) or compiled(*others) is None:
        if importance is None:
            return product(rows.mT, outgoing), outgoing.sum(1, keepdim=True)
        return product((rows * importance).mT, outgoing), torch.bmm(importance.mT, outgoing)
    weight, bias = rows.new_empty(R, inputs, outputs), rows.new_empty(R, 1, outputs)
    scratch = None if importance is None else rows.new_empty(count, inputs)
    sizes = (ctypes.c_int64(count), ctypes.c_int64(inputs), ctypes.c_int64(outputs))
    for r in range(R):
        own = pointer(None if importance is None else importance[r])
        targets = pointer(scratch), pointer(weight[r]), pointer(bias[r])
        lib.layer_gradient(pointer(rows[r]), pointer(outgoing[r]), own, *targets, *sizes)
    return weight, bias
