"""Where to compute."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pipeline.errors import UserError
from pipeline.experiments.choices import AUTO


@dataclass(frozen=True)
class Machine:
    """Where to train: the device, for a CPU the number of processes (one thread each), how often to save, and how
    updates are made (an engine of `pipeline.training.engines`, or `auto`). `name`: what its speeds are kept under,
    where it is another machine than this one."""

    device: torch.device
    workers: int
    checkpoint_seconds: float
    engine: str = AUTO
    name: str | None = None


def resolve_device(name: str, asked: str = "params.yaml: device: cuda") -> torch.device:
    """`auto` takes CUDA where there is one. `asked`: where `cuda` was asked for, for the message.

    Raises: UserError when `cuda` is asked for and cannot be used.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{asked} was asked for, but torch {torch.__version__} sees no CUDA GPU here;"
            " allowed: auto, cpu, or cuda on a machine with an NVIDIA GPU and a CUDA build of torch"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_workers(workers: int | str, device: torch.device) -> int:
    """Processes to spread runs over: one for a GPU, else as asked; `auto` is one a usable core."""
    if device.type == "cuda":
        return 1
    if workers != "auto":
        return int(workers)
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine(
    device: str,
    workers: int | str,
    checkpoint_seconds: float,
    engine: str = AUTO,
    asked: str = "params.yaml: device: cuda",
) -> Machine:
    """What params.yaml or a command asks for, resolved. `asked`: how it asks for CUDA, for the message.

    Raises: UserError when it asks for CUDA and there is none.
    """
    resolved = resolve_device(device, asked)
    return Machine(resolved, resolve_workers(workers, resolved), checkpoint_seconds, engine)
