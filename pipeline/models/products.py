"""The matrix products of stacked layers, on a CPU through oneDNN where torch has it.

PyTorch sends float32 `addmm` and `bmm` to MKL, which on AMD processors reaches half of what oneDNN does
(docs/performance.md). All operands are [R, rows, columns].
"""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_WORTH_IT = 1_000_000
"""Multiply-adds per run from which oneDNN's set-up pays."""


def _use_onednn(rows: Tensor, columns: Tensor) -> bool:
    if not (_ONEDNN and rows.device.type == "cpu" and rows.dtype == torch.float32):
        return False
    return rows.shape[1] * rows.shape[2] * columns.shape[2] >= _WORTH_IT


def _onednn(x: Tensor, w: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x @ w.T + bias) for two-dimensional x and w of any strides."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, bias, activation, [], "")
    return result


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def affine(rows: Tensor, weight: Tensor, bias: Tensor, tanh: bool = False) -> Tensor:
    """rows @ weight + bias, [R, rows, outputs], through tanh if asked. `bias`: [R, 1, outputs]."""
    if _use_onednn(rows, weight):
        kind = "tanh" if tanh else "none"
        return _stacked([_onednn(x, w.T, b[0], kind) for x, w, b in zip(rows, weight, bias, strict=True)])
    result = torch.baddbmm(bias, rows, weight)
    return result.tanh_() if tanh else result


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b."""
    if _use_onednn(a, b):
        return _stacked([_onednn(x, y.T, None, "none") for x, y in zip(a, b, strict=True)])
    return torch.bmm(a, b)
