"""The gradient estimate of a stack of runs: forward pass, each estimator's weighing of its samples, backward pass.

Axes as in `log_weights`: R runs, T = M * K samples per image, B images. Runs next to each other that share one
estimator are weighed together, as `pipeline.objectives` says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pipeline.experiments.spec import RunSpec
from pipeline.models.log_weights import Forward, backward, forward
from pipeline.models.networks import Gradient, Parameters
from pipeline.objectives import OBJECTIVES, Objective, Weights, elbo, iwae_bound_over_all


@dataclass(frozen=True)
class Group:
    """Neighbours in a stack that share one objective with the same M, K and parameter."""

    objective: Objective
    args: tuple[float, ...]
    M: int
    K: int
    members: slice

    def grouped(self, log_w: Tensor) -> Tensor:
        """Their part of [R, T, B] as [M, K, members * B]."""
        by_group: Tensor = log_w[self.members].unflatten(1, (self.M, self.K)).permute(1, 2, 0, 3).flatten(2)
        return by_group

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """The inverse: [members, T, B]."""
        count = self.members.stop - self.members.start
        by_member: Tensor = grouped.unflatten(2, (count, -1)).permute(2, 0, 1, 3)
        return by_member.flatten(1, 2)


def estimator_key(run: RunSpec) -> tuple[str, int, int, float]:
    """Runs with equal keys are weighed together; a stack is sorted by it."""
    return run.objective, run.M, run.K, run.parameter or 0.0


def estimator_groups(runs: list[RunSpec]) -> list[Group]:
    """The stretches of equal estimators in a sorted stack."""
    groups = []
    for _, stretch in groupby(enumerate(runs), lambda item: estimator_key(item[1])):
        members = list(stretch)
        first, run = members[0]
        args = () if run.parameter is None else (run.parameter,)
        groups.append(Group(OBJECTIVES[run.objective], args, run.M, run.K, slice(first, first + len(members))))
    return groups


def weigh(groups: list[Group], log_w: Tensor, scale: Tensor) -> tuple[Weights, Tensor]:
    """The weights of each sample, [R, T, B], times `scale` [R, 1, 1]; and each image's bound, [R, B] nats."""
    weights, bounds = [], []
    for group in groups:
        by_group = group.grouped(log_w)
        weights.append(group.objective.weights(by_group, *group.args))
        bounds.append(group.objective.bound(by_group, *group.args).unflatten(0, (-1, log_w.shape[2])))

    def joined(parts: list[Tensor]) -> Tensor:
        rows = [group.ungrouped(part) for group, part in zip(groups, parts, strict=True)]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)) * scale

    path = joined([w.path for w in weights])
    # One tensor for equal parts: the backward pass skips work when it is given one for path and score.
    theta = path if all(w.theta is w.path for w in weights) else joined([w.theta for w in weights])
    score = path if all(w.score is w.path for w in weights) else joined([w.score for w in weights])
    return Weights(theta, path, score), bounds[0] if len(bounds) == 1 else torch.cat(bounds)


def gradient_estimate(
    p: Parameters, x: Tensor, eps: list[Tensor], groups: list[Group], scale: Tensor
) -> tuple[Gradient, Tensor]:
    """Every run's gradient estimate and `curve_terms` on one batch; arguments as of `forward` and `weigh`."""
    f = forward(p, x, eps, backward_follows=True)
    weights, bound = weigh(groups, f.log_w, scale)
    return backward(p, f, weights), curve_terms(f, bound)


def curve_terms(f: Forward, bound: Tensor) -> Tensor:
    """The averaged history columns of one update, [R, 5] float64.

    Bound, ELBO, IWAE over all T, log p(x | h1), nats; and the share of samples in the backward pass: here all of them.
    """
    by_sample = f.log_w.transpose(0, 1).unsqueeze(1)
    columns = (bound, elbo(by_sample), iwae_bound_over_all(by_sample), f.log_px.mean(1), torch.ones_like(bound))
    return torch.stack([column.mean(1) for column in columns], dim=1).double()
