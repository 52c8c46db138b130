from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.experiments.protocol import PROTOCOLS, Protocol
from pipeline.models.networks import Parameters, count_parameters, flatten, initial_weights, network

CODE, PAPER = PROTOCOLS["published-code"], PROTOCOLS["paper-text"]
MEAN = np.linspace(0, 1, 784)


@pytest.mark.parametrize("latent", [(50,), (100, 50)])
@pytest.mark.parametrize("protocol", [CODE, PAPER])
def test_initial_ranges_and_biases(latent: tuple[int, ...], protocol: Protocol) -> None:
    flat = initial_weights(latent, protocol, 0, MEAN)
    named = Parameters(latent, flat.unsqueeze(0)).named_tensors(0)
    for layer in network(latent):
        weight = named[f"{layer.name}.weight"]
        bound = (6 / (layer.inputs + layer.outputs)) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        # A uniform on +-bound has standard deviation bound / sqrt(3).
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        if layer.name != "p1.logits":
            assert not named[f"{layer.name}.bias"].any()


def test_output_bias_is_the_clipped_logit_of_the_mean_image() -> None:
    bias = Parameters((50,), initial_weights((50,), CODE, 0, MEAN).unsqueeze(0)).bias["p1.logits"][0, 0]
    assert bias[0].item() == pytest.approx(np.log(0.001 / 0.999), rel=1e-5)
    assert bias[-1].item() == pytest.approx(np.log(0.999 / 0.001), rel=1e-5)
    assert bias[392].item() == pytest.approx(np.log(MEAN[392] / (1 - MEAN[392])), abs=1e-6)
    without = initial_weights((50,), replace(CODE, output_bias=False), 0, MEAN)
    assert not Parameters((50,), without.unsqueeze(0)).bias["p1.logits"].any()


def test_equal_shaped_layers_start_identical_in_burdas_code_only() -> None:
    for protocol, identical in ((CODE, True), (PAPER, False)):
        named = Parameters((50,), initial_weights((50,), protocol, 0, MEAN).unsqueeze(0)).named_tensors(0)
        assert torch.equal(named["q1.mean.weight"], named["q1.log_std.weight"]) is identical
        assert torch.equal(named["q1.hidden2.weight"], named["p1.hidden2.weight"]) is identical


def test_burdas_generator_and_seed() -> None:
    named = Parameters((50,), initial_weights((50,), CODE, 2, MEAN).unsqueeze(0)).named_tensors(0)
    bound = (6 / 400) ** 0.5
    expected = np.random.RandomState(125).uniform(-bound, bound, (200, 200)).astype(np.float32)
    assert np.array_equal(named["q1.hidden2.weight"].numpy(), expected)


def test_seeds_differ() -> None:
    for protocol in (CODE, PAPER):
        assert not torch.equal(initial_weights((50,), protocol, 0, MEAN), initial_weights((50,), protocol, 1, MEAN))


@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_views_cover_the_buffer_once(latent: tuple[int, ...]) -> None:
    flat = torch.arange(count_parameters(latent), dtype=torch.float64).repeat(2, 1)
    named = Parameters(latent, flat).named_tensors(1)
    assert torch.equal(torch.cat([t.reshape(-1) for t in named.values()]).sort().values, flat[1])
    assert torch.equal(flatten(latent, named), flat[1])


def test_two_layer_shapes() -> None:
    shapes = {layer.name: (layer.inputs, layer.outputs) for layer in network((100, 50))}
    assert shapes["q1.hidden1"] == (784, 200)
    assert shapes["q1.mean"] == (200, 100)
    assert shapes["q2.hidden1"] == (100, 100)
    assert shapes["q2.log_std"] == (100, 50)
    assert shapes["p2.hidden1"] == (50, 100)
    assert shapes["p2.mean"] == (100, 100)
    assert shapes["p1.hidden1"] == (100, 200)
    assert shapes["p1.logits"] == (200, 784)
