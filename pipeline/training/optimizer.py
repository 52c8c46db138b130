"""Adam for a stack of runs, in the paper's form and in that of Burda's code; each run has its own constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.models import kernels
from pipeline.protocol import Protocol


def second_moment_start(protocols: list[Protocol], like: Tensor) -> Tensor:
    """Adam's second moment before the first step, [R, count]."""
    start = torch.tensor([p.second_moment_start for p in protocols], dtype=like.dtype, device=like.device)
    return start.unsqueeze(1).expand_as(like).clone()


def adam_ascent(
    flat: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: list[Tensor],
    protocols: list[Protocol],
    rates: list[float],
    t: list[int],
) -> None:
    """One step uphill, in place, on [R, count] buffers. `t`: the number of each run's step, from 1.

    `gradient`: in pieces that follow each other in the buffer, [R, ...] each.

    With c = sqrt(1 - beta2^t) / (1 - beta1^t) the step is rate * c * m / (sqrt(v) + eps'), where eps' is eps
    (`adam_eps_uncorrected`) or eps * sqrt(1 - beta2^t) (PyTorch's form, the same as eps beside the corrected root).
    `adam_lagged` runs step with the moments from before this gradient.
    """

    roots = [math.sqrt(1 - p.adam_beta2**count) for p, count in zip(protocols, t, strict=True)]
    kernels.adam_ascent(
        flat,
        m,
        v,
        gradient,
        sizes=[r * root / (1 - p.adam_beta1**n) for r, root, p, n in zip(rates, roots, protocols, t, strict=True)],
        eps=[p.adam_eps * (1 if p.adam_eps_uncorrected else root) for p, root in zip(protocols, roots, strict=True)],
        beta1=[p.adam_beta1 for p in protocols],
        beta2=[p.adam_beta2 for p in protocols],
        lagged=[p.adam_lagged for p in protocols],
    )
