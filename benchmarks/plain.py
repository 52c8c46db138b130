"""The same training and likelihood in PyTorch the obvious way: modules, autograd, fused Adam.

The network is that of `examples.one_run`. Its log-weights are written out here, without `torch.distributions`, and the
gradients of bounds come from one backward pass: eager PyTorch is faster so. tests/test_benchmarks.py holds both to the
pipeline's, so that all do the same work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.cases import Case, binarized, training_images
from benchmarks.measure import Tick, Work
from examples.one_run import Batch, Model
from pipeline.evaluation.likelihood import PASS_SIZES
from pipeline.experiments.spec import BATCH_SIZE, NLL_SAMPLES


class PlainModel(Model):
    """The network with its log-weights in closed form. What log p and log q have both, log(2 pi) / 2, is left out."""

    def log_weights(self, x: Tensor, eps: list[Tensor], hold_q: bool = False) -> Tensor:
        """log w of the noise `eps`, [T, B, units] for each layer, on images `x` [B, 784]: [T, B]."""
        assert not hold_q, "the estimators that are measured are gradients of bounds"
        below, samples, log_w = x, [], torch.zeros((), dtype=x.dtype, device=x.device)
        encoder: Iterable[Any] = self.encoder.values()
        upper: Iterable[Any] = list(self.decoder.values())[1:]
        for block, draw in zip(encoder, eps, strict=True):
            hidden = block.hidden(below)
            log_std = block.log_std(hidden)
            below = block.mean(hidden) + log_std.exp() * draw
            log_w = log_w + 0.5 * draw.square().sum(-1) + log_std.sum(-1)
            samples.append(below)
        log_w = log_w - 0.5 * below.square().sum(-1)
        for lower, higher, block in zip(samples, samples[1:], upper, strict=False):
            hidden = block.hidden(higher)
            log_std = block.log_std(hidden)
            log_w = log_w - 0.5 * ((lower - block.mean(hidden)) * (-log_std).exp()).square().sum(-1) - log_std.sum(-1)
        return log_w + self.log_px(x, samples[0])

    def log_px(self, x: Tensor, h: Tensor) -> Tensor:
        p1: Any = self.decoder["p1"]
        logits = p1.logits(p1.hidden(h))
        return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def elbo_loss(log_w: Tensor) -> Tensor:
    """Minus the mean of log w [M, K, B]."""
    return -log_w.mean()


def miwae_loss(log_w: Tensor) -> Tensor:
    """Minus the mean of log mean_k w."""
    return -(torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])).mean()


def iwae_loss_over_all(log_w: Tensor) -> Tensor:
    """Minus the mean of the log of the mean of all M * K weights."""
    return -(torch.logsumexp(log_w, (0, 1)) - math.log(log_w.shape[0] * log_w.shape[1])).mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"vae": elbo_loss, "iwae": miwae_loss, "miwae": miwae_loss}


def set_gradients(model: Model, case: Case, batch: Batch) -> None:
    """Gradients of minus the batch's mean bound."""
    log_w = model.log_weights(*batch).unflatten(0, (case.M, case.K))
    if case.objective != "piwae":
        LOSSES[case.objective](log_w).backward()
        return
    encoder, decoder = list(model.encoder.parameters()), list(model.decoder.parameters())
    gradients = torch.autograd.grad(miwae_loss(log_w), encoder, retain_graph=True)
    gradients += torch.autograd.grad(iwae_loss_over_all(log_w), decoder)
    for parameter, gradient in zip(encoder + decoder, gradients, strict=True):
        parameter.grad = gradient


def _noise(model: Model, samples: int, x: Tensor) -> list[Tensor]:
    return [torch.randn(samples, len(x), units, device=x.device) for units in model.latent]


def train(case: Case, images: Tensor) -> Work:
    """Units: updates. `images`: [N, 784] uint8 on the device to train on; reshuffled every epoch."""
    torch.manual_seed(0)
    model = PlainModel(case.latent).to(images.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
    grey = images.float() / 255

    def run(tick: Tick) -> None:
        while True:
            for chosen in torch.randperm(len(grey), device=grey.device).split(BATCH_SIZE):
                x = torch.bernoulli(grey[chosen])
                optimizer.zero_grad()
                set_gradients(model, case, (x, _noise(model, case.T, x)))
                optimizer.step()
                tick(1)

    return run


def nll(case: Case, images: Tensor) -> Work:
    """Units: images. The decoder runs on as many samples at a time as in the pipeline."""
    torch.manual_seed(0)
    model = PlainModel(case.latent).to(images.device)
    bits = binarized(images.cpu()).to(images.device)
    block = PASS_SIZES[images.device.type]

    @torch.no_grad()
    def run(tick: Tick) -> None:
        for x in bits.split(block.images):
            passes = []
            for _ in range(NLL_SAMPLES // block.samples):
                passes.append(model.log_weights(x, _noise(model, block.samples, x)))
                tick(len(x) * block.samples / NLL_SAMPLES)
            torch.logsumexp(torch.cat(passes), 0)

    return run


def missing() -> None:
    """It runs wherever ours does."""


def work(value: dict[str, Any]) -> Work:
    """Units: updates or images, on the CPU."""
    case, images = Case.of(value), training_images()
    return nll(case, images) if case.is_nll else train(case, images)
