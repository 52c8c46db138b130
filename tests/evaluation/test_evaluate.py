from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.evaluate import binarize_once, evaluate_run, evaluate_weights, evaluation_digest, evenly_spaced
from pipeline.evaluation.samples import draw_samples
from pipeline.models.networks import Parameters, count_parameters, initial_weights
from pipeline.spec import EvaluationSpec
from tests.conftest import make_run

SPEC = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=30, train_images=10, pruned=True)


@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_metrics_are_complete_and_consistent(latent: tuple[int, ...], grey_images: NDArray[np.uint8]) -> None:
    run = make_run(latent=latent, train_images=500)
    flat = initial_weights(latent, run.protocol, 0, grey_images.mean(0) / 255)
    bits = (grey_images[500:] > 127).astype(np.uint8)
    metrics, arrays = evaluate_weights(flat, run, SPEC, grey_images, bits)
    assert metrics["nll"] == pytest.approx(-arrays["log_p_hat"].mean(), rel=1e-6)
    assert metrics["nll_se"] == pytest.approx(arrays["log_p_hat"].std(ddof=1) / 30**0.5, rel=1e-6)
    assert metrics["elbo"] < metrics["iwae_64"] < metrics["log_p_hat"]
    assert metrics["kl_q_p"] == pytest.approx(metrics["iwae_64"] - metrics["log_p_hat"])
    assert 1 / 64 <= metrics["ess_64"] <= 1
    assert metrics["test_images"] == 30
    for l, units in enumerate(latent, start=1):
        assert arrays[f"unit_variance_{l}"].shape == (units,)
        assert metrics[f"active_units_{l}"] == (arrays[f"unit_variance_{l}"] > 0.01).sum()
        assert f"active_units_test_{l}" in metrics
    assert {"nll_pruned", "train_nll"} <= set(metrics)
    assert arrays["samples"].shape == (100, 784)
    assert arrays["samples"].min() >= 0
    assert arrays["samples"].max() <= 1


def test_pruning_nothing_changes_nothing(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    metrics, _ = evaluate_weights(flat, run, SPEC, grey_images, (grey_images[500:] > 127).astype(np.uint8))
    assert metrics["active_units_1"] == 50
    assert metrics["nll_pruned"] == pytest.approx(metrics["nll"], abs=1e-4)


def test_subset_is_spread_over_the_test_set() -> None:
    assert evenly_spaced(10_000, 100).tolist() == list(range(0, 10_000, 100))
    assert evenly_spaced(7, None).tolist() == list(range(7))


def test_binarizing_once_keeps_a_fixed_binarization() -> None:
    fixed = (255 * np.random.default_rng(0).integers(0, 2, (4, 784))).astype(np.uint8)
    assert torch.equal(binarize_once(fixed, 3, "x"), torch.from_numpy(fixed / 255).float())


def test_decoder_draws_follow_the_output_bias() -> None:
    p = Parameters((100, 50), torch.zeros(1, count_parameters((100, 50))))
    p.bias["p1.logits"][:] = 2.0
    np.testing.assert_allclose(draw_samples(p, 3, 0), 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_digest_follows_run_and_settings() -> None:
    assert evaluation_digest(SPEC, "a") == evaluation_digest(replace(SPEC), "a")
    assert (
        len({evaluation_digest(SPEC, "a"), evaluation_digest(SPEC, "b"), evaluation_digest(replace(SPEC, seed=2), "a")})
        == 3
    )


def test_missing_weights_name_the_file_and_leave_nothing(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(UserError, match=r"weights\.safetensors: missing"):
        evaluate_run(tmp_path / "run", make_run(), SPEC, grey_images, grey_images, device, tmp_path / "evaluation", {})
    assert list(tmp_path.iterdir()) == []
