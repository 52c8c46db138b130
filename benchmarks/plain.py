"""The same training and likelihood in PyTorch the obvious way: modules, autograd, fused Adam.

Held to the pipeline's gradients by tests/test_benchmarks.py, so that both do the same work.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.cases import LATENT, NLL_SAMPLES, Case
from benchmarks.measure import Tick
from pipeline.evaluation.likelihood import BLOCKS
from pipeline.spec import BATCH_SIZE

LOG_2PI = math.log(2 * math.pi)


class Plain(nn.Module):
    """784-200-200-50 and back, tanh, q's standard deviation = exp(linear)."""

    def __init__(self) -> None:
        super().__init__()
        units = LATENT[0]
        self.encoder = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
        self.mean = nn.Linear(200, units)
        self.log_std = nn.Linear(200, units)
        self.decoder = nn.Sequential(
            nn.Linear(units, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(x)
        return self.mean(hidden), self.log_std(hidden)

    def log_weights(self, x: Tensor, mean: Tensor, log_std: Tensor, eps: Tensor) -> Tensor:
        """log w, [T, B], of noise `eps` [T, B, units] for images `x` [B, 784]."""
        h = mean + log_std.exp() * eps
        logits = self.decoder(h)
        log_px = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_prior = -0.5 * (h.square() + LOG_2PI).sum(-1)
        log_q = -0.5 * (eps.square() + LOG_2PI).sum(-1) - log_std.sum(-1)
        return log_px + log_prior - log_q

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        mean, log_std = self.encode(x)
        return self.log_weights(x, mean, log_std, eps)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.encoder, self.mean, self.log_std) for p in part.parameters()]


def _elbo_loss(log_w: Tensor) -> Tensor:
    return -log_w.mean()


def _miwae_loss(log_w: Tensor) -> Tensor:
    return -(torch.logsumexp(log_w, 1) - math.log(log_w.shape[1])).mean()


def _iwae_loss_over_all(log_w: Tensor) -> Tensor:
    return -(torch.logsumexp(log_w, (0, 1)) - math.log(log_w.shape[0] * log_w.shape[1])).mean()


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"vae": _elbo_loss, "iwae": _miwae_loss, "miwae": _miwae_loss}


def set_gradients(model: Plain, case: Case, x: Tensor, eps: Tensor) -> None:
    """Gradients of minus the batch's mean bound. `eps`: [T, B, units]."""
    log_w = model(x, eps).view(case.M, case.K, -1)
    if case.objective != "piwae":
        LOSSES[case.objective](log_w).backward()
        return
    encoder, decoder = model.encoder_parameters(), list(model.decoder.parameters())
    gradients = torch.autograd.grad(_miwae_loss(log_w), encoder, retain_graph=True)
    gradients += torch.autograd.grad(_iwae_loss_over_all(log_w), decoder)
    for parameter, gradient in zip(encoder + decoder, gradients, strict=True):
        parameter.grad = gradient


def load() -> None:
    """Have torch import what it does at the first optimizer, ahead of the processes that are forked."""
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])


def train(rank: int, tick: Tick, *, case: Case, images: Tensor) -> None:
    """Units: steps. `images`: [N, 784] uint8 on the device to train on; reshuffled every epoch."""
    torch.manual_seed(rank)
    device = images.device
    model = Plain().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
    grey = images.float() / 255
    while True:
        for indices in torch.randperm(len(grey), device=device).split(BATCH_SIZE):
            x = torch.bernoulli(grey[indices])
            optimizer.zero_grad()
            set_gradients(model, case, x, torch.randn(case.T, BATCH_SIZE, LATENT[0], device=device))
            optimizer.step()
            tick(1)


@torch.no_grad()
def estimate_nll(rank: int, tick: Tick, *, images: Tensor, bits: Tensor) -> None:
    """Units: images. The encoder runs once an image, the decoder on as many samples at a time as in the pipeline."""
    torch.manual_seed(rank)
    model = Plain().to(images.device)
    block = BLOCKS[images.device.type]
    for x in bits.to(images.device).split(block.images):
        mean, log_std = model.encode(x)
        passes = []
        for _ in range(NLL_SAMPLES // block.samples):
            eps = torch.randn(block.samples, len(x), LATENT[0], device=x.device)
            passes.append(model.log_weights(x, mean, log_std, eps))
            tick(len(x) * block.samples / NLL_SAMPLES)
        torch.logsumexp(torch.cat(passes), 0)
