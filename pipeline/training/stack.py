"""A stack: R runs that advance in lockstep, their states as one set of [R, ...] buffers.

On a CPU, as here; `device_stack` is the same with nothing left on the host between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from pipeline.models.log_weights import Forward, backward, forward
from pipeline.models.networks import Gradient, Parameters
from pipeline.models.products import product_precision
from pipeline.objectives import OBJECTIVES, Objective, Weights, elbo, iwae_bound_over_all
from pipeline.schedule import learning_rate
from pipeline.spec import BATCH_SIZE, RunSpec
from pipeline.training.batches import Batches
from pipeline.training.optimizer import adam_ascent
from pipeline.training.state import RunState


@dataclass(frozen=True)
class Estimator:
    """Neighbours in a stack that share one objective with the same M, K and parameter."""

    objective: Objective
    args: tuple[float, ...]
    M: int
    K: int
    members: slice

    def grouped(self, log_w: Tensor) -> Tensor:
        """Their part of [R, T, B] as [M, K, members * B]."""
        own = log_w[self.members].unflatten(1, (self.M, self.K))
        grouped: Tensor = own.permute(1, 2, 0, 3).flatten(2)
        return grouped

    def ungrouped(self, grouped: Tensor) -> Tensor:
        """The inverse: [members, T, B]."""
        count = self.members.stop - self.members.start
        by_member: Tensor = grouped.unflatten(2, (count, -1)).permute(2, 0, 1, 3)
        return by_member.flatten(1, 2)


def estimator_key(run: RunSpec) -> tuple[str, int, int, float]:
    """Runs with equal keys are weighed together; a stack is sorted by it."""
    return run.objective, run.M, run.K, run.parameter or 0.0


def estimators(runs: list[RunSpec]) -> list[Estimator]:
    """The stretches of equal estimators in a sorted stack."""
    found = []
    for _, stretch in groupby(enumerate(runs), lambda item: estimator_key(item[1])):
        members = list(stretch)
        first, run = members[0]
        args = () if run.parameter is None else (run.parameter,)
        found.append(Estimator(OBJECTIVES[run.objective], args, run.M, run.K, slice(first, first + len(members))))
    return found


def weigh(groups: list[Estimator], log_w: Tensor, scale: Tensor) -> tuple[Weights, Tensor]:
    """The weights of each sample of a stack, [R, T, B], times `scale` [R, 1, 1]; and each image's bound, [R, B]."""
    weights, bounds = [], []
    for group in groups:
        own = group.grouped(log_w)
        weights.append(group.objective.weights(own, *group.args))
        bounds.append(group.objective.bound(own, *group.args).unflatten(0, (-1, log_w.shape[2])))

    def joined(parts: list[Tensor]) -> Tensor:
        rows = [group.ungrouped(part) for group, part in zip(groups, parts, strict=True)]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)) * scale

    path = joined([w.path for w in weights])
    # One tensor for equal parts: the backward pass skips work when it is given one for path and score.
    theta = path if all(w.theta is w.path for w in weights) else joined([w.theta for w in weights])
    score = path if all(w.score is w.path for w in weights) else joined([w.score for w in weights])
    return Weights(theta, path, score), bounds[0] if len(bounds) == 1 else torch.cat(bounds)


class Stack:
    """R runs in lockstep: their states as one set of [R, ...] buffers on the device."""

    engine = "host"
    """How its updates are run, for run.json."""
    steps_between_checks = 10
    """The most that `advance` is to be asked for at once: the trainer looks up in between."""

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor) -> None:
        self.runs = runs
        self.dtype = torch.float64 if runs[0].precision == "float64" else torch.float32
        device = images.device

        def stacked(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).to(device, self.dtype)

        self.parameters = Parameters(runs[0].latent, stacked([s.flat for s in states]))
        self.m, self.v = stacked([s.m for s in states]), stacked([s.v for s in states])
        self.sums = torch.stack([s.sums for s in states]).to(device)
        self.summed = [s.summed for s in states]
        self.earlier = [s.earlier_steps for s in states]
        self.step = states[0].step
        self.protocols = [run.protocol for run in runs]
        self.batches = Batches(runs, images, self.dtype)
        self.groups = estimators(runs)
        per_image = [1 / BATCH_SIZE if p.gradient == "mean" else 1.0 for p in self.protocols]
        self.scale = torch.tensor(per_image, dtype=self.dtype, device=device).view(-1, 1, 1)

    def advance(self, steps: int) -> None:
        """Make so many updates of every run."""
        with product_precision(self.runs[0].precision):
            for _ in range(steps):
                self.update()

    def update(self) -> None:
        positions = [earlier + self.step for earlier in self.earlier]
        x, eps = self.batches.images(positions), self.batches.noise(positions)
        gradient, terms = gradient_estimate(self.parameters, x, eps, self.groups, self.scale)
        rates = [learning_rate(run, self.step) for run in self.runs]
        counts = [position + 1 for position in positions]
        pieces = gradient.pieces(self.parameters.latent)
        adam_ascent(self.parameters.flat, self.m, self.v, pieces, self.protocols, rates, counts)
        self.sums += terms
        self.summed = [count + 1 for count in self.summed]
        self.step += 1

    def write_back(self, states: list[RunState]) -> None:
        """Copy each run's part of the buffers into its state."""
        for r, state in enumerate(states):
            state.step, state.summed = self.step, self.summed[r]
            # Cloned: safetensors refuses tensors that share memory, and the stack goes on changing its own.
            state.flat, state.m, state.v = (t[r].clone() for t in (self.parameters.flat, self.m, self.v))
            state.sums = self.sums[r].cpu().clone()

    def take_history_point(self, r: int, state: RunState, seconds: float) -> list[float]:
        """Close the running averages of run `r` into a row of its history."""
        run = self.runs[r]
        averages = (self.sums[r] / max(self.summed[r], 1)).tolist()
        rate = learning_rate(run, self.step - 1)
        row = [float(self.step), self.step / run.steps_per_epoch, rate, seconds, *averages]
        state.history.append(row)
        self.sums[r] = 0
        self.summed[r] = 0
        if state.diverged_at is None and not np.isfinite(averages).all():
            state.diverged_at = self.step
        return row


def gradient_estimate(
    p: Parameters, x: Tensor, eps: list[Tensor], groups: list[Estimator], scale: Tensor
) -> tuple[Gradient, Tensor]:
    """Every run's gradient estimate and `curve_terms` on one batch; arguments as of `forward` and `weigh`."""
    f = forward(p, x, eps, backward_follows=True)
    weights, bound = weigh(groups, f.log_w, scale)
    return backward(p, f, weights), curve_terms(f, bound)


def curve_terms(f: Forward, bound: Tensor) -> Tensor:
    """The averaged history columns of one step, [R, 4] float64: bound, ELBO, IWAE over all T, log p(x | h1)."""
    by_sample = f.log_w.transpose(0, 1).unsqueeze(1)
    columns = (bound, elbo(by_sample), iwae_bound_over_all(by_sample), f.log_px.mean(1))
    return torch.stack([column.mean(1) for column in columns], dim=1).double()
