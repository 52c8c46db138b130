"""What the machine can do at best: its rates of float32 matrix products and of copying memory."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Tick
from pipeline.models.products import affine

OUTPUT_LAYER = (1000, 200, 784)
"""Rows, inputs, outputs of the decoder's last layer at k = 50: most of a step's work."""
CUDA_SQUARE = (4096, 4096, 4096)
"""On a GPU a product of the papers' size measures launching, not multiplying."""
COPIED_BYTES = 64 << 20
"""Past every cache of one core."""


def _operands(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows, inputs, outputs = shape
    return (
        torch.rand(1, rows, inputs, device=device),
        torch.rand(1, inputs, outputs, device=device),
        torch.rand(1, 1, outputs, device=device),
    )


def multiply(rank: int, tick: Tick, *, shape: tuple[int, int, int], device: torch.device, tf32: bool = False) -> None:
    """Units: floating-point operations of `rows @ weight + bias`, through the product that training uses."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    rows, weight, bias = _operands(shape, device)
    flops = 2 * shape[0] * shape[1] * shape[2]
    while True:
        affine(rows, weight, bias)
        tick(flops)


def copy(rank: int, tick: Tick, *, device: torch.device) -> None:
    """Units: bytes read and bytes written."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    while True:
        target.copy_(source)
        tick(2 * COPIED_BYTES)
