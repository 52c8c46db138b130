from __future__ import annotations

import numpy as np
import torch

from pipeline.evaluation.active_units import active_masks, posterior_means, unit_variances
from pipeline.models.networks import Parameters, count_parameters
from pipeline.records.metrics import ACTIVE_VARIANCE
from tests.conftest import numbered


def planted_model() -> tuple[Parameters, torch.Tensor]:
    """Two units: the mean of the first follows the image, that of the second never moves though its std does."""
    generator = torch.Generator().manual_seed(0)
    p = Parameters((2,), 0.1 * torch.randn(1, count_parameters((2,)), generator=generator))
    p.weight["q1.mean"][0, :, 1] = 0
    p.bias["q1.mean"][0, 0, 1] = 3.0
    images = torch.bernoulli(torch.full((1200, 784), 0.3), generator=generator)
    return p, images


def test_a_live_and_a_dead_unit() -> None:
    p, images = planted_model()
    (means,) = posterior_means(p, numbered(images), seed=0)
    variances = unit_variances(means)
    assert variances[0] > ACTIVE_VARIANCE
    assert variances[1] < 1e-12
    assert active_masks([variances], torch.device("cpu"))[0].tolist() == [1, 0]


def test_against_numpy_in_one_pass() -> None:
    """More images than one pass takes, population variance (ddof 0)."""
    p, images = planted_model()
    (means,) = posterior_means(p, numbered(images), seed=0)
    w = {name: tensor.double().numpy() for name, tensor in p.named_tensors(0).items()}
    a = np.tanh(images.double().numpy() @ w["q1.hidden1.weight"] + w["q1.hidden1.bias"])
    a = np.tanh(a @ w["q1.hidden2.weight"] + w["q1.hidden2.bias"])
    expected = a @ w["q1.mean.weight"] + w["q1.mean.bias"]
    np.testing.assert_allclose(means, expected, atol=1e-4)
    np.testing.assert_allclose(unit_variances(means), ((expected - expected.mean(0)) ** 2).mean(0), atol=1e-4)


def test_threshold_counts_strictly_above() -> None:
    masks = active_masks([np.array([0.0, 0.0099, 0.01, 0.0101, 2.0])], torch.device("cpu"))
    assert masks[0].tolist() == [0, 0, 0, 1, 1]


def test_second_layer_takes_one_sample_of_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    p = Parameters((100, 50), 0.1 * torch.randn(1, count_parameters((100, 50)), generator=generator))
    images = torch.bernoulli(torch.full((30, 784), 0.3), generator=generator)
    first, again, other = (posterior_means(p, numbered(images), seed) for seed in (0, 0, 1))
    assert first[0].shape == (30, 100)
    assert first[1].shape == (30, 50)
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_allclose(first[0], other[0], atol=1e-6)
    assert np.abs(first[1] - other[1]).max() > 1e-3
