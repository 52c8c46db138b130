"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from pipeline.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises: UserError when `cuda` is asked for and cannot be used.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"params.yaml: device: cuda was asked for, but torch {torch.__version__} sees no CUDA GPU here;"
            " allowed: auto, cpu, or cuda on a machine with an NVIDIA GPU and a CUDA build of torch"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_workers(workers: int | str, device: torch.device) -> int:
    """Processes to spread runs over: one for a GPU, else as asked; `auto` is one a usable core."""
    if device.type == "cuda":
        return 1
    return int(workers) if workers != "auto" else len(os.sched_getaffinity(0))
