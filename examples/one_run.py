"""One run, from images to numbers, in plain PyTorch: the whole method in one file. Read this first.

    python -m examples.one_run                                         # IWAE with 5 samples, on MNIST
    python -m examples.one_run --objective miwae --M 8 --K 8 --layers 2 --stages 1

The file trains one model with any objective of `pipeline/objectives.py`, estimates its NLL (the negative log-likelihood
per image, in nats), counts its active units, and prints them beside what the pipeline finds for the same run.
Everything else in this project does this faster, many times over, and keeps and reports what it finds.

Shapes: B images, M groups of K samples of each image, T = M * K samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.func import functional_call

from examples.options import read_options
from examples.pipeline_run import Outcome, print_beside_the_pipeline
from pipeline.experiments.spec import BATCH_SIZE
from pipeline.objectives import OBJECTIVES, Objective

Batch = tuple[Tensor, list[Tensor]]
"""Binary images [B, 784], and for each stochastic layer standard normal noise [T, B, units]."""


class Hidden(nn.Module):
    """Two layers of tanh units."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def hidden(self, given: Tensor) -> Tensor:
        return torch.tanh(self.hidden2(torch.tanh(self.hidden1(given))))


class GaussianBlock(Hidden):
    """q(h_l | h_(l-1)) or p(h_(l-1) | h_l): a normal distribution whose mean and log standard deviation are learned."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__(inputs, width)
        self.mean, self.log_std = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, given: Tensor) -> Normal:
        hidden = self.hidden(given)
        return Normal(self.mean(hidden), self.log_std(hidden).exp())


class PixelBlock(Hidden):
    """p(x | h_1): every pixel is on or off."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width)
        self.logits = nn.Linear(width, 784)

    def forward(self, given: Tensor) -> Bernoulli:
        return Bernoulli(logits=self.logits(self.hidden(given)))


class Model(nn.Module):
    """The network of Burda et al. (2016), section 5, with one or two stochastic layers of `latent` units each."""

    def __init__(self, latent: tuple[int, ...] = (50,)) -> None:
        super().__init__()
        self.latent, first, top = latent, latent[0], latent[-1]
        self.encoder = nn.ModuleDict({"q1": GaussianBlock(784, 200, first)})  # theta: the decoder's parameters,
        self.decoder = nn.ModuleDict({"p1": PixelBlock(first, 200)})  # phi: the encoder's
        if len(latent) == 2:
            self.encoder["q2"] = GaussianBlock(first, 100, top)
            self.decoder["p2"] = GaussianBlock(top, 100, first)

    def initialize(self, mean_image: Tensor) -> None:
        """Glorot-Bengio weights, zero biases; each output bias begins at the logit of its pixel's mean [784]."""
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.xavier_uniform_(parameter)
        self.get_parameter("decoder.p1.logits.bias").data.copy_(mean_image.clamp(0.001, 0.999).logit())

    def log_weights(self, x: Tensor, eps: list[Tensor], hold_q: bool = False) -> Tensor:
        """log w = log p(x, h) - log q(h | x) of the samples that the noise `eps` makes, [T, B] nats.

        `hold_q` treats the parameters of q as constants inside log q, though not where the samples h are made.
        """
        below, samples, log_q = x, [], torch.zeros(())
        for block, noise in zip(self.encoder.values(), eps, strict=True):
            q = block(below)
            h = q.mean + q.stddev * noise  # [T, B, units], reparameterized: h is a function of q's parameters
            if hold_q:
                q = functional_call(block, {name: value.detach() for name, value in block.named_parameters()}, below)
            log_q = log_q + q.log_prob(h).sum(-1)
            samples.append(h)
            below = h
        log_p = Normal(0.0, 1.0).log_prob(samples[-1]).sum(-1)
        if len(samples) == 2:
            log_p = log_p + self.decoder["p2"](samples[1]).log_prob(samples[0]).sum(-1)
        log_w: Tensor = log_p + self.log_px(x, samples[0]) - log_q
        return log_w

    def log_px(self, x: Tensor, h: Tensor) -> Tensor:
        """log p(x | h_1) of samples `h` [T, B, units], [T, B] nats."""
        log_px: Tensor = self.decoder["p1"](h).log_prob(x).sum(-1)
        return log_px


def set_gradients(model: Model, objective: Objective, M: int, batch: Batch, parameter: float | None = None) -> None:
    """Set every `.grad` to the estimator's gradient, averaged over the images of the batch; it points uphill."""
    x, eps = batch
    log_w = model.log_weights(x, eps).unflatten(0, (M, -1))  # [M, K, B]
    weights = objective.weights(log_w.detach(), *([] if parameter is None else [parameter]))
    decoder_climbs = (weights.theta * log_w).sum() / len(x)
    encoder_climbs = (weights.score * log_w).sum() / len(x)
    if weights.path is not weights.score:
        through_samples = model.log_weights(x, eps, hold_q=True).unflatten(0, (M, -1))
        encoder_climbs = encoder_climbs + ((weights.path - weights.score) * through_samples).sum() / len(x)
    for part, climbs in ((model.decoder, decoder_climbs), (model.encoder, encoder_climbs)):
        parameters = list(part.parameters())
        for value, gradient in zip(parameters, torch.autograd.grad(climbs, parameters, retain_graph=True), strict=True):
            value.grad = gradient


def noise(model: Model, samples: int, images: int) -> list[Tensor]:
    """Standard normal noise [samples, images, units] for each stochastic layer."""
    return [torch.randn(samples, images, units) for units in model.latent]


def batches(model: Model, grey: Tensor, T: int, epochs: int) -> Iterator[Batch]:
    """Batches of 20 in a new order each epoch; images [N, 784] in [0, 1] are binarized anew at every visit."""
    for _ in range(epochs):
        for chosen in torch.randperm(len(grey)).split(BATCH_SIZE):
            yield torch.bernoulli(grey[chosen]), noise(model, T, len(chosen))


def adam(model: Model) -> torch.optim.Adam:
    """Adam with the constants of the paper, going uphill."""
    return torch.optim.Adam(model.parameters(), betas=(0.9, 0.999), eps=1e-4, maximize=True)


def train(
    model: Model,
    optimizer: torch.optim.Adam,
    objective: Objective,
    M: int,
    rate: float,
    data: Iterable[Batch],
    parameter: float | None = None,
) -> None:
    """One update for each batch of `data`."""
    optimizer.param_groups[0]["lr"] = rate
    for batch in data:
        set_gradients(model, objective, M, batch, parameter)
        optimizer.step()


@torch.no_grad()
def log_likelihoods(model: Model, x: Tensor, samples: int = 5000, at_once: int = 50) -> Tensor:
    """log p(x) of binary images [N, 784], estimated by the log of the mean weight of `samples` samples: [N] nats."""
    estimates = []
    for part in x.split(BATCH_SIZE):
        passes = [model.log_weights(part, noise(model, at_once, len(part))) for _ in range(samples // at_once)]
        estimates.append(torch.logsumexp(torch.cat(passes), 0) - math.log(samples // at_once * at_once))
    return torch.cat(estimates)


@torch.no_grad()
def active_units(model: Model, x: Tensor) -> list[int]:
    """Units of each layer whose posterior mean varies over the images [N, 784] by more than 0.01 (their variance)."""
    counts, below = [], x
    for block, eps in zip(model.encoder.values(), noise(model, 1, len(x)), strict=True):
        q = block(below)
        counts.append(int((q.mean.reshape(len(x), -1).var(0, correction=0) > 0.01).sum()))
        below = q.mean + q.stddev * eps[0]
    return counts


def main() -> None:
    """Train one network as the command line asks, and print its NLL (nats) and active units beside the pipeline's."""
    options = read_options("python -m examples.one_run", __doc__.partition("\n")[0])
    objective, M, images = OBJECTIVES[options.objective], options.M, options.images
    torch.manual_seed(0)
    torch.set_num_threads(1)

    model, start = Model(options.latent), time.monotonic()
    model.initialize((images.double().mean(0) / 255).float())
    optimizer = adam(model)
    for stage in options.schedule:
        print(f"{options.objective}: {stage.epochs} epochs at a learning rate of {stage.learning_rate:.2g}", flush=True)
        data = batches(model, images.float() / 255, M * options.K, stage.epochs)
        train(model, optimizer, objective, M, stage.learning_rate, data, options.parameter)
    seconds = time.monotonic() - start
    active = active_units(model, torch.bernoulli(images[:500].float() / 255))
    print_beside_the_pipeline(options, Outcome(log_likelihoods(model, options.test), active, seconds))


if __name__ == "__main__":
    main()
