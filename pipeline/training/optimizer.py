"""Adam for a stack of runs, in the paper's form and in that of Burda's code; each run has its own constants."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.experiments.protocol import Protocol
from pipeline.experiments.schedule import stage_bounds
from pipeline.experiments.spec import RunSpec


def second_moment_start(protocols: list[Protocol], like: Tensor) -> Tensor:
    """Adam's second moment before the first step, [R, count]."""
    start = torch.tensor([p.second_moment_start for p in protocols], dtype=like.dtype, device=like.device)
    return start.unsqueeze(1).expand_as(like).clone()


class LearningRates:
    """The learning rates of R runs as a function of the update's number, on the device."""

    def __init__(self, runs: list[RunSpec], device: torch.device) -> None:
        longest = max(len(run.schedule) for run in runs)
        ends, rates = [], []
        for run in runs:
            # The last stage has no end: a run stops before it.
            bounds = stage_bounds(run)[:-1]
            ends.append(bounds + [torch.iinfo(torch.int64).max] * (longest - 1 - len(bounds)))
            of_stages = [stage.learning_rate for stage in run.schedule]
            rates.append(of_stages + of_stages[-1:] * (longest - len(of_stages)))
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device).view(len(runs), longest - 1, 1)
        self._rates = torch.tensor(rates, dtype=torch.float64, device=device)

    def at(self, steps: Tensor) -> Tensor:
        """The rates at updates number `steps` [n], counted from 0: [R, n] float64."""
        return self._rates.gather(1, (self._ends <= steps).sum(1))


class AdamConstants(NamedTuple):
    """Those of `adam_ascent`, a column over runs each, [R, 1]; `lagged` is 0 or 1."""

    sizes: Tensor
    eps: Tensor
    beta1: Tensor
    beta2: Tensor
    lagged: Tensor


def adam_ascent(theta: Tensor, m: Tensor, v: Tensor, pieces: list[Tensor], constants: AdamConstants) -> None:
    """theta += size * m / (sqrt(v) + eps) in place on [R, count] buffers; no constant is on the host.

    The moments are updated too; the step takes those from before this gradient (`lagged`) or after it.
    `pieces`: the gradient in parts that follow each other in `theta`, [R, ...] each.
    """
    c = AdamConstants(*(column.to(theta.dtype) for column in constants))
    gradient = torch.cat([piece.flatten(1) for piece in pieces], dim=1)
    late = m / (v.sqrt() + c.eps)
    m.lerp_(gradient, 1 - c.beta1)
    v.lerp_(gradient.square(), 1 - c.beta2)
    theta.add_(c.sizes * torch.lerp(m / (v.sqrt() + c.eps), late, c.lagged))


class AdamSchedule:
    """Adam's constants of R runs as functions of the update's number, on the device.

    At a run's update number t, from 1 and with those of the run that it continues, c = sqrt(1 - beta2^t) /
    (1 - beta1^t) and theta moves uphill by rate * c * m / (sqrt(v) + eps'), where eps' is eps (`adam_eps_uncorrected`)
    or eps * sqrt(1 - beta2^t) (PyTorch's form, the same as eps beside the corrected root; Kingma & Ba 2015, end of
    section 2). `adam_lagged` runs step with the moments from before this gradient.
    """

    def __init__(self, runs: list[RunSpec], earlier: list[int], device: torch.device) -> None:
        """`earlier`: by run, the updates made before number 0 by the run that it continues."""

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)

        protocols = [run.protocol for run in runs]
        self._rates = LearningRates(runs, device)
        self._earlier = column([float(count) for count in earlier])
        self._eps = column([p.adam_eps for p in protocols])
        self._eps_uncorrected = column([p.adam_eps_uncorrected for p in protocols])
        self._beta1 = column([p.adam_beta1 for p in protocols])
        self._beta2 = column([p.adam_beta2 for p in protocols])
        self._lagged = column([p.adam_lagged for p in protocols])

    def at(self, steps: Tensor) -> AdamConstants:
        """Those of updates number `steps` [n], counted from 0: [R, n] float64 each; betas and `lagged` [R, 1]."""
        t = self._earlier + steps + 1
        root = torch.sqrt(1 - self._beta2**t)
        return AdamConstants(
            sizes=self._rates.at(steps) * root / (1 - self._beta1**t),
            eps=self._eps * torch.where(self._eps_uncorrected > 0, torch.ones_like(root), root),
            beta1=self._beta1,
            beta2=self._beta2,
            lagged=self._lagged,
        )
