"""The 1- and 2-layer networks of Burda et al. (2016), section 5, as tables of layers, and their initial weights.

1 layer:  q1 784-200-200-50, p1 50-200-200-784.
2 layers: q1 784-200-200-100, q2 100-100-100-50, p2 50-100-100-100 (a learned Gaussian), p1 100-200-200-784.
Block `ql` is q(h_l | h_(l-1)) with h_0 = x, block `pl` is p(h_(l-1) | h_l). Hidden units are tanh; a Gaussian block
ends in the heads `mean` and `log_std`, the Bernoulli block p1 in `logits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.experiments.protocol import Protocol
from pipeline.models.products import IN_FLOAT32, Arithmetic

HIDDEN_WIDTHS = (200, 100)
"""Width of the two deterministic layers on each side of stochastic layer 1, and of stochastic layer 2."""
LOGITS = "p1.logits"


@dataclass(frozen=True)
class Layer:
    """A linear layer: weight [inputs, outputs] and bias [outputs] of every run."""

    name: str
    inputs: int
    outputs: int


def _block(name: str, inputs: int, width: int, heads: dict[str, int]) -> list[Layer]:
    hidden = [Layer(f"{name}.hidden1", inputs, width), Layer(f"{name}.hidden2", width, width)]
    return hidden + [Layer(f"{name}.{head}", width, outputs) for head, outputs in heads.items()]


@lru_cache
def network(latent: tuple[int, ...]) -> tuple[Layer, ...]:
    """All layers of a model with these stochastic layers (units, bottom first): encoder, then decoder from the top."""
    sizes = (PIXELS, *latent)
    layers: list[Layer] = []
    for l, width in zip(range(1, len(sizes)), HIDDEN_WIDTHS, strict=False):
        layers += _block(f"q{l}", sizes[l - 1], width, {"mean": sizes[l], "log_std": sizes[l]})
    for l in range(len(latent), 1, -1):
        layers += _block(f"p{l}", sizes[l], HIDDEN_WIDTHS[l - 1], {"mean": sizes[l - 1], "log_std": sizes[l - 1]})
    layers += _block("p1", sizes[1], HIDDEN_WIDTHS[0], {"logits": PIXELS})
    return tuple(layers)


class Parameters:
    """The weights of R models of one architecture in a single buffer.

    `flat`: [R, count]. `weight[name]`: [R, inputs, outputs] and `bias[name]`: [R, 1, outputs] are views into it, so an
    optimizer works on `flat` in one pass.
    """

    def __init__(self, latent: tuple[int, ...], flat: Tensor, arithmetic: Arithmetic = IN_FLOAT32) -> None:
        """`arithmetic`: how products with them are made."""
        self.latent = latent
        self.flat = flat
        self.arithmetic = arithmetic
        self.weight: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        start = 0
        for layer in network(latent):
            size = layer.inputs * layer.outputs
            self.weight[layer.name] = flat[:, start : start + size].unflatten(1, (layer.inputs, layer.outputs))
            self.bias[layer.name] = flat[:, start + size : start + size + layer.outputs].unsqueeze(1)
            start += size + layer.outputs
        assert start == flat.shape[1], f"{flat.shape[1]} parameters given, the network has {start}"

    def named_tensors(self, run: int) -> dict[str, Tensor]:
        """The weights of one run by name: `<layer>.weight` [inputs, outputs], `<layer>.bias` [outputs]."""
        tensors = {f"{name}.weight": tensor[run] for name, tensor in self.weight.items()}
        return tensors | {f"{name}.bias": tensor[run, 0] for name, tensor in self.bias.items()}


class Gradient:
    """The gradient of R models, layer by layer as the backward pass makes it: `weight[name]` and `bias[name]` shaped as
    in `Parameters`. Pieces of their own, since gathering them in one buffer would move every byte twice more."""

    def __init__(self) -> None:
        self.weight: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}

    def add(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Add to a layer's gradient, which is nothing before."""
        if name in self.weight:
            weight, bias = self.weight[name] + weight, self.bias[name] + bias
        self.weight[name], self.bias[name] = weight, bias

    def pieces(self, latent: tuple[int, ...]) -> list[Tensor]:
        """Weights and biases in the order of a parameter buffer."""
        return [part[layer.name] for layer in network(latent) for part in (self.weight, self.bias)]


def count_parameters(latent: tuple[int, ...]) -> int:
    """Weights and biases of one run: the length of its row in the buffer."""
    return sum((layer.inputs + 1) * layer.outputs for layer in network(latent))


def flatten(latent: tuple[int, ...], named: dict[str, Tensor]) -> Tensor:
    """The inverse of `Parameters.named_tensors`: one row of the buffer, [count]."""
    parts = [named[f"{layer.name}.{kind}"].reshape(-1) for layer in network(latent) for kind in ("weight", "bias")]
    return torch.cat(parts)


def initial_weights(latent: tuple[int, ...], protocol: Protocol, seed: int, mean_image: NDArray[np.float64]) -> Tensor:
    """Glorot-Bengio uniform weights and zero biases of one run, [count] float32.

    Layers are drawn from independent streams of `seed`, or, under `identical_initial_layers`, each from
    `RandomState(123 + seed)` as in Burda's code. `mean_image`: [784] in [0, 1], sets the output bias.
    """
    rows: dict[str, Tensor] = {}
    for index, layer in enumerate(network(latent)):
        bound = np.sqrt(6 / (layer.inputs + layer.outputs))
        shape = (layer.inputs, layer.outputs)
        if protocol.identical_initial_layers:
            weight = np.random.RandomState(123 + seed).uniform(-bound, bound, shape)
        else:
            weight = np.random.default_rng([seed, index]).uniform(-bound, bound, shape)
        bias = np.zeros(layer.outputs)
        if layer.name == LOGITS and protocol.output_bias:
            clipped = np.clip(mean_image, 0.001, 0.999)
            bias = np.log(clipped / (1 - clipped))
        rows[f"{layer.name}.weight"] = torch.from_numpy(weight.astype(np.float32))
        rows[f"{layer.name}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return flatten(latent, rows)
