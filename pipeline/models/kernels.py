"""The compiled kernels, and the elementwise passes of a training step: each over its data once, or in torch.

The compiled ones need a C compiler (`cc`, or what CC names) the first time; without one, or with ELBO_KERNELS=off,
torch does the work, more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

SWITCH = "ELBO_KERNELS"
SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
COMPILE_SECONDS = 60


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "good-elbo"


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, from the user's cache folder or compiled into it; None where that cannot be done."""
    if os.environ.get(SWITCH) == "off":
        return None
    compiler = shlex.split(os.environ.get("CC", "cc"))
    key = "\n".join([SOURCE.read_text(), *compiler, *FLAGS, platform.machine(), _processor()])
    path = _cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as building:
                built = Path(building) / path.name
                command = [*compiler, *FLAGS, "-o", str(built), str(SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
                built.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def compiled(*tensors: Tensor) -> ctypes.CDLL | None:
    """The library, where it can work on these tensors: float32, contiguous, on a CPU."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            return None
    return library()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """The address of a tensor's first number; NULL for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def bernoulli(logits: Tensor, x: Tensor, residual: bool) -> tuple[Tensor, Tensor | None]:
    """log p(x | logits) of every sample, [R, T, B] nats, and if asked x - sigmoid(logits), [R, T * B, pixels].

    `logits`: [R, T * B, pixels], overwritten. `x`: [R, B, pixels] in {0, 1}.
    """
    R, rows, pixels = logits.shape
    B = x.shape[1]
    T = rows // B
    lib = compiled(logits, x[0])
    if lib is not None:
        log_px = logits.new_empty(R, T, B)
        for own_logits, own_x, own_log_px in zip(logits, x, log_px, strict=True):
            target = own_logits if residual else None
            sizes = (ctypes.c_int64(size) for size in (T, B, pixels))
            lib.bernoulli(pointer(own_logits), pointer(own_x), pointer(own_log_px), pointer(target), *sizes)
        return log_px, logits if residual else None
    by_sample, image = logits.view(R, T, B, pixels), x.unsqueeze(1)
    log_px = (by_sample * image).sum(-1) - softplus(by_sample).sum(-1)
    return log_px, (image - by_sample.sigmoid()).view_as(logits) if residual else None


def tanh_backward(gradient: Tensor, activation: Tensor) -> Tensor:
    """gradient * (1 - activation^2); overwrites `gradient`."""
    lib = compiled(gradient, activation)
    if lib is None:
        return gradient * (1 - activation.square())
    lib.tanh_backward(pointer(gradient), pointer(activation), ctypes.c_int64(gradient.numel()))
    return gradient


def adam_ascent(
    theta: Tensor,
    m: Tensor,
    v: Tensor,
    pieces: list[Tensor],
    sizes: list[float],
    eps: list[float],
    beta1: list[float],
    beta2: list[float],
    lagged: list[bool],
) -> None:
    """theta += size * m / (sqrt(v) + eps) in place on [R, count] buffers, the constants a list over runs.

    The moments are updated too; the step takes those from before this gradient (`lagged`) or after it.
    `pieces`: the gradient in parts that follow each other in `theta`, [R, ...] each.
    """
    lib = compiled(theta, m, v, *pieces)
    if lib is not None:
        counts = [piece.numel() // piece.shape[0] for piece in pieces]
        lengths, number = (ctypes.c_int64 * len(counts))(*counts), ctypes.c_int64(len(counts))
        for r in range(theta.shape[0]):
            starts = [piece.data_ptr() + 4 * r * count for piece, count in zip(pieces, counts, strict=True)]
            state = (pointer(tensor[r]) for tensor in (theta, m, v))
            constants = (ctypes.c_float(values[r]) for values in (sizes, eps, beta1, beta2))
            parts = (ctypes.c_void_p * len(starts))(*starts)
            lib.adam_ascent(*state, parts, lengths, number, *constants, ctypes.c_int32(lagged[r]))
        return

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=theta.dtype, device=theta.device).unsqueeze(1)

    columns = AdamConstants(column(sizes), column(eps), column(beta1), column(beta2), column(lagged))
    adam_ascent_in_torch(theta, m, v, pieces, columns)


class AdamConstants(NamedTuple):
    """Those of `adam_ascent`, a column over runs each, [R, 1]; `lagged` is 0 or 1."""

    sizes: Tensor
    eps: Tensor
    beta1: Tensor
    beta2: Tensor
    lagged: Tensor


def adam_ascent_in_torch(theta: Tensor, m: Tensor, v: Tensor, pieces: list[Tensor], c: AdamConstants) -> None:
    """`adam_ascent` on any device, with no constant on the host: as it is, it can be captured and replayed."""
    gradient = torch.cat([piece.flatten(1) for piece in pieces], dim=1)
    late = m / (v.sqrt() + c.eps)
    m.lerp_(gradient, 1 - c.beta1)
    v.lerp_(gradient.square(), 1 - c.beta2)
    theta.add_(c.sizes * torch.lerp(m / (v.sqrt() + c.eps), late, c.lagged))
