"""The output layer as one Triton kernel: the logits of a tile of rows live and die in registers.

Written for GPUs; under Triton's interpreter (TRITON_INTERPRET=1) it runs anywhere, slowly, which is how it is tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

ROWS, PIXELS = 32, 32
"""A program's tile of logits. Three of its products are in flight: 32 x 32 from 256 inputs, and back. Tiles of 64 x 64
spill registers, and in float32 they need more shared memory than a GPU has: `python -m benchmarks.ahead_of_time`."""
LAUNCH = {"num_warps": 8, "num_stages": 2}


def available() -> bool:
    """Whether Triton is installed; a GPU is another matter."""
    return triton is not None


def constants(inputs: int, pixels: int, tf32: bool) -> dict[str, Any]:
    """The kernel's arguments that are known when it is compiled."""
    return {
        **{"inputs": inputs, "pixels": pixels, "INPUTS": triton.next_power_of_2(inputs)},
        **{"ROWS": ROWS, "PIXELS": PIXELS, "PRECISION": "tf32" if tf32 else "ieee"},
    }


if triton is not None:

    @triton.jit
    def _output_layer(  # type: ignore[no-untyped-def]
        hidden, weight, bias, x, log_px, residual, d_hidden,
        rows, images, inputs: tl.constexpr, pixels: tl.constexpr,
        weight_stride, bias_stride, x_stride,
        ROWS: tl.constexpr, INPUTS: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """One program: ROWS rows (sample by image) of one run, over all pixels."""
        run = tl.program_id(1)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        unit = tl.arange(0, INPUTS)
        is_row, is_unit = row < rows, unit < inputs
        at = run.to(tl.int64) * rows + row
        h_mask = is_row[:, None] & is_unit[None, :]
        h = tl.load(hidden + at[:, None] * inputs + unit[None, :], mask=h_mask, other=0.0)
        image = row % images
        total = tl.zeros((ROWS,), dtype=tl.float32)
        d_h = tl.zeros((ROWS, INPUTS), dtype=tl.float32)
        for start in range(0, pixels, PIXELS):
            pixel = start + tl.arange(0, PIXELS)
            is_pixel = pixel < pixels
            w_at = weight + run * weight_stride + unit[:, None] * pixels + pixel[None, :]
            w = tl.load(w_at, mask=is_unit[:, None] & is_pixel[None, :], other=0.0)
            b = tl.load(bias + run * bias_stride + pixel, mask=is_pixel, other=0.0)
            logits = tl.dot(h, w, input_precision=PRECISION) + b[None, :]
            mask = is_row[:, None] & is_pixel[None, :]
            bits = tl.load(x + run * x_stride + image[:, None] * pixels + pixel[None, :], mask=mask, other=0.0)
            # softplus(l) = max(l, 0) + log(1 + e), sigmoid(l) = 1 / (1 + e) or e / (1 + e), with e = exp(-|l|) <= 1.
            e = tl.exp(-tl.abs(logits))
            terms = bits * logits - tl.maximum(logits, 0.0) - tl.log(1.0 + e)
            total += tl.sum(tl.where(mask, terms, 0.0), axis=1)
            r = tl.where(mask, bits - tl.where(logits >= 0, 1.0, e) / (1.0 + e), 0.0)
            tl.store(residual + at[:, None] * pixels + pixel[None, :], r, mask=mask)
            d_h += tl.dot(r, tl.trans(w), input_precision=PRECISION)
        tl.store(log_px + at, total, mask=is_row)
        tl.store(d_hidden + at[:, None] * inputs + unit[None, :], d_h, mask=h_mask)


@torch.library.custom_op("good_elbo::output_layer", mutates_args=())
def _run(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, tf32: bool) -> tuple[Tensor, Tensor, Tensor]:
    R, rows, inputs = hidden.shape
    B, pixels = x.shape[1:]
    hidden = hidden.contiguous()
    log_px, residual, d_hidden = _shapes(hidden, weight, bias, x, tf32)
    assert weight.stride()[1:] == (pixels, 1)
    assert x.stride()[1:] == (pixels, 1)
    _output_layer[(triton.cdiv(rows, ROWS), R)](
        hidden, weight, bias, x, log_px, residual, d_hidden,
        rows=rows, images=B, weight_stride=weight.stride(0), bias_stride=bias.stride(0), x_stride=x.stride(0),
        **constants(inputs, pixels, tf32), **LAUNCH,
    )  # fmt: skip
    return log_px, residual, d_hidden


@_run.register_fake
def _shapes(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, tf32: bool) -> tuple[Tensor, Tensor, Tensor]:
    R, rows, _ = hidden.shape
    B, pixels = x.shape[1:]
    log_px = hidden.new_empty(R, rows // B, B)
    return log_px, hidden.new_empty(R, rows, pixels), torch.empty_like(hidden, memory_format=torch.contiguous_format)
