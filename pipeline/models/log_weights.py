"""log w = log p(x, h) - log q(h | x) of stacked models, and its weighted gradient, written out by hand.

Axes: R runs, T samples per image, B images; rows are samples by images, [R, T * B, units].

The backward pass carries the gradient of every sample's log w with weight one from the logits down. The estimator's
weights enter only where a sample leaves that chain: `theta` where it meets a decoder parameter, `path` and `score`
where it meets an encoder parameter. (Weighting at the output and dividing later would fail: theta underflows.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.networks import LOGITS, Gradient, Parameters
from pipeline.models.output_layer import output_layer
from pipeline.models.products import affine, layer_gradient, product
from pipeline.objectives import Weights


@dataclass
class Gaussian:
    """A Gaussian block after its forward pass: what the backward pass needs of it."""

    name: str
    inputs: Tensor
    hidden: tuple[Tensor, Tensor]
    mean: Tensor
    log_std: Tensor
    std: Tensor


@dataclass
class Forward:
    """One forward pass. `log_w`, `log_px` (log p(x | h1)): [R, T, B], nats."""

    x: Tensor
    h: list[Tensor]
    eps: list[Tensor]
    q: list[Gaussian]
    p: list[Gaussian]
    p1_hidden: tuple[Tensor, Tensor]
    residual: Tensor | None
    """x - E[x | h1], [R, T * B, 784]: the gradient of log p(x | h1) in the logits."""
    d_p1_hidden: Tensor | None
    """The gradient of log p(x | h1) in the second hidden layer, [R, T * B, 200]."""
    log_px: Tensor
    log_w: Tensor


def _linear(p: Parameters, name: str, rows: Tensor, tanh: bool = False) -> Tensor:
    return affine(rows, p.weight[name], p.bias[name], tanh, p.arithmetic)


def _hidden(p: Parameters, block: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    first = _linear(p, f"{block}.hidden1", rows, tanh=True)
    return first, _linear(p, f"{block}.hidden2", first, tanh=True)


def _gaussian(p: Parameters, block: str, rows: Tensor) -> Gaussian:
    hidden = _hidden(p, block, rows)
    log_std = _linear(p, f"{block}.log_std", hidden[1])
    return Gaussian(block, rows, hidden, _linear(p, f"{block}.mean", hidden[1]), log_std, log_std.exp())


def _sum_units(terms: Tensor, active: Tensor | None) -> Tensor:
    return terms.sum(-1) if active is None else (terms * active).sum(-1)


def encode(p: Parameters, x: Tensor) -> Gaussian:
    """q(h1 | x), which is the same for every sample of an image. `x`: [R, B, 784] in {0, 1}."""
    return _gaussian(p, "q1", x)


def forward(
    p: Parameters,
    x: Tensor,
    eps: list[Tensor],
    active: list[Tensor] | None = None,
    encoded: Gaussian | None = None,
    backward_follows: bool = False,
) -> Forward:
    """Sample h from q and weigh it.

    `x`: [R, B, 784] in {0, 1}. `eps`: per stochastic layer standard normal noise [R, T, B, units].
    `active`: per layer a 0/1 mask [units]; masked units are taken out of the model (their input to every network is
    zero, their terms leave log w). `encoded`: q(h1 | x), where it is known already. `backward_follows`: keep what only
    `backward` needs.
    """
    R, B = x.shape[:2]
    T = eps[0].shape[1]
    masks = active if active is not None else [None] * len(eps)
    q: list[Gaussian] = []
    h: list[Tensor] = []
    log_w = x.new_zeros(())
    rows = x
    # No log(2 pi): every unit has it once in log q and once in log p.
    for l, (noise, mask) in enumerate(zip(eps, masks, strict=True)):
        block = encoded if l == 0 and encoded is not None else _gaussian(p, f"q{l + 1}", rows)
        shape = (R, 1, B, -1) if l == 0 else (R, T, B, -1)
        h_l = torch.addcmul(block.mean.view(shape), block.std.view(shape), noise)
        log_w = log_w + 0.5 * _sum_units(noise.square(), mask) + _sum_units(block.log_std.view(shape), mask)
        if mask is not None:
            h_l = h_l * mask
        q.append(block)
        h.append(h_l)
        rows = h_l.reshape(R, T * B, -1)
    log_w = log_w - 0.5 * _sum_units(h[-1].square(), masks[-1])
    decoder: list[Gaussian] = []
    for l in range(len(h) - 1, 0, -1):
        block = _gaussian(p, f"p{l + 1}", h[l].reshape(R, T * B, -1))
        u = (h[l - 1].reshape(R, T * B, -1) - block.mean) / block.std
        log_p = -0.5 * _sum_units(u.square(), masks[l - 1]) - _sum_units(block.log_std, masks[l - 1])
        log_w = log_w + log_p.view(R, T, B)
        decoder.append(block)
    p1_hidden = _hidden(p, "p1", h[0].reshape(R, T * B, -1))
    weight, bias = p.weight[LOGITS], p.bias[LOGITS]
    log_px, residual, d_p1_hidden = output_layer(p1_hidden[1], weight, bias, x, backward_follows, p.arithmetic)
    return Forward(x, h, eps, q, decoder, p1_hidden, residual, d_p1_hidden, log_px, log_w + log_px)


def decoder_logits(p: Parameters, h1: Tensor) -> Tensor:
    """Logits of p(x | h1), [R, rows, 784], at given h1 [R, rows, units]."""
    return _linear(p, LOGITS, _hidden(p, "p1", h1)[1])


def decode(p: Parameters, noise: list[Tensor]) -> Tensor:
    """Ancestral samples: logits of p(x | h1), [R, rows, 784], from standard normal noise per layer [R, rows, units]."""
    h = noise[-1]
    for l in range(len(noise) - 1, 0, -1):
        block = _gaussian(p, f"p{l + 1}", h)
        h = block.mean + block.std * noise[l - 1]
    return decoder_logits(p, h)


def _layer_gradient(
    p: Parameters, g: Gradient, name: str, inputs: Tensor, outgoing: Tensor, weight: Tensor | None
) -> None:
    """Add d/d weight and d/d bias of sum_rows weight[row] * (row's log w), given d log w / d output of each row."""
    g.add(name, *layer_gradient(inputs, outgoing, weight, p.arithmetic))


def _through(p: Parameters, name: str, outgoing: Tensor) -> Tensor:
    """From d/d output of a layer, [R, rows, outputs], to d/d its input, [R, rows, inputs]."""
    return product(outgoing, p.weight[name].mT, p.arithmetic)


def _hidden_backward(
    p: Parameters,
    g: Gradient,
    block: str,
    inputs: Tensor,
    hidden: tuple[Tensor, Tensor],
    outgoing: Tensor,
    weight: Tensor | None,
) -> Tensor:
    """Through the two tanh layers of a block, from d/d (second hidden) to d/d (first pre-activation)."""
    first, second = hidden
    delta2 = outgoing * (1 - second.square())
    _layer_gradient(p, g, f"{block}.hidden2", first, delta2, weight)
    delta1 = _through(p, f"{block}.hidden2", delta2) * (1 - first.square())
    _layer_gradient(p, g, f"{block}.hidden1", inputs, delta1, weight)
    return delta1


def _gaussian_backward(
    p: Parameters, g: Gradient, block: Gaussian, d_mean: Tensor, d_log_std: Tensor, weight: Tensor | None
) -> Tensor:
    """Like `_hidden_backward`, from d/d mean and d/d log_std."""
    mean, log_std = f"{block.name}.mean", f"{block.name}.log_std"
    _layer_gradient(p, g, mean, block.hidden[1], d_mean, weight)
    _layer_gradient(p, g, log_std, block.hidden[1], d_log_std, weight)
    outgoing = _through(p, mean, d_mean) + _through(p, log_std, d_log_std)
    return _hidden_backward(p, g, block.name, block.inputs, block.hidden, outgoing, weight)


def backward(p: Parameters, f: Forward, weights: Weights) -> Gradient:
    """The gradient estimate that `weights` ([R, T, B] each) make of the samples of `f`, summed over images."""
    g = Gradient()
    R, T, B = f.log_w.shape
    theta, path, score = (w.reshape(R, T * B, 1) for w in weights)
    same = weights.path is weights.score

    # Decoder p(x | h1): from the logits of each sample down to h1.
    assert f.residual is not None, "forward(..., backward_follows=True) comes first"
    assert f.d_p1_hidden is not None
    _layer_gradient(p, g, LOGITS, f.p1_hidden[1], f.residual, theta)
    h = [sample.reshape(R, T * B, -1) for sample in f.h]
    first = _hidden_backward(p, g, "p1", h[0], f.p1_hidden, f.d_p1_hidden, theta)
    d_h = [_through(p, "p1.hidden1", first)] + [torch.zeros_like(sample) for sample in h[1:]]

    # Decoder p(h_l | h_(l+1)): the value h_l and the parameters that h_(l+1) gives.
    for block in f.p:
        l = int(block.name[1:]) - 1
        u = (h[l - 1] - block.mean) / block.std
        d_h[l - 1] -= u / block.std
        first = _gaussian_backward(p, g, block, u / block.std, u.square() - 1, theta)
        d_h[l] += _through(p, f"{block.name}.hidden1", first)
    d_h[-1] -= h[-1]

    # Encoders from the top. With h = mean + std * eps, log q's path and score parts cancel but for d/d log_std = 1;
    # where an estimator weighs them differently the rest is (path - score) times the path part of -log q.
    for l in range(len(h) - 1, -1, -1):
        block = f.q[l]
        eps = f.eps[l].expand(R, T, B, -1)
        shape = (R, 1, B, -1) if l == 0 else (R, T, B, -1)
        std = block.std.view(shape)
        through_std = d_h[l].view(R, T, B, -1) * std * eps
        if l > 0:
            d_log_std = (through_std + 1).view(R, T * B, -1)
            first = _gaussian_backward(p, g, block, d_h[l], d_log_std, path)
            d_h[l - 1] += _through(p, f"{block.name}.hidden1", first)
            if not same:
                rest = (path - score).view(R, T, B, 1)
                d_mean, d_log_std = rest * eps / std, rest * (eps.square() - 1)
                _gaussian_backward(p, g, block, d_mean.reshape(R, T * B, -1), d_log_std.reshape(R, T * B, -1), None)
        else:
            w = weights.path.unsqueeze(-1)
            d_mean = (w * d_h[0].view(R, T, B, -1)).sum(1)
            d_log_std = (w * through_std).sum(1) + w.sum(1)
            if not same:
                rest = (weights.path - weights.score).unsqueeze(-1)
                d_mean += (rest * eps / std).sum(1)
                d_log_std += (rest * (eps.square() - 1)).sum(1)
            _gaussian_backward(p, g, block, d_mean, d_log_std, None)
    return g
