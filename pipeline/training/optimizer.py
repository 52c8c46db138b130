"""Adam for a stack of runs, in the paper's form and in that of Burda's code; each run has its own constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.protocol import Protocol


def second_moment_start(protocols: list[Protocol], like: Tensor) -> Tensor:
    """Adam's second moment before the first step, [R, count]."""
    start = torch.tensor([p.second_moment_start for p in protocols], dtype=like.dtype, device=like.device)
    return start.unsqueeze(1).expand_as(like).clone()


def adam_ascent(
    flat: Tensor, m: Tensor, v: Tensor, gradient: Tensor, protocols: list[Protocol], rates: list[float], t: list[int]
) -> None:
    """One step uphill, in place, on [R, count] buffers. `t`: the number of each run's step, from 1.

    With c = sqrt(1 - beta2^t) / (1 - beta1^t) the step is rate * c * m / (sqrt(v) + eps'), where eps' is eps
    (`adam_eps_uncorrected`) or eps * sqrt(1 - beta2^t) (PyTorch's form, the same as eps beside the corrected root).
    `adam_lagged` runs step with the moments from before this gradient.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=flat.dtype, device=flat.device).unsqueeze(1)

    sizes, epsilons = [], []
    for p, rate, count in zip(protocols, rates, t, strict=True):
        root = math.sqrt(1 - p.adam_beta2**count)
        sizes.append(rate * root / (1 - p.adam_beta1**count))
        epsilons.append(p.adam_eps * (1 if p.adam_eps_uncorrected else root))
    eps = column(epsilons)

    def ascend(lagged: bool) -> None:
        if any(p.adam_lagged is lagged for p in protocols):
            own = column([size * (p.adam_lagged is lagged) for p, size in zip(protocols, sizes, strict=True)])
            flat.add_(v.sqrt().add_(eps).reciprocal_().mul_(m).mul_(own))

    ascend(lagged=True)
    m.lerp_(gradient, column([1 - p.adam_beta1 for p in protocols]))
    beta2 = column([p.adam_beta2 for p in protocols])
    v.mul_(beta2).add_(gradient.square().mul_(1 - beta2))
    ascend(lagged=False)
