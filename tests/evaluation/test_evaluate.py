from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.classifier import DigitReader
from pipeline.evaluation.evaluate import (
    Labels,
    evaluate_run,
    evaluate_weights,
    evaluation_digest,
)
from pipeline.evaluation.images import Images, binarization_of_test_set, binarize_once
from pipeline.evaluation.samples import draw_samples
from pipeline.experiments.spec import EvaluationSpec
from pipeline.models.networks import Parameters, count_parameters, initial_weights
from pipeline.records.metrics import METRIC_TABLE
from tests.conftest import make_run, material_of

CPU = torch.device("cpu")
SPEC = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=30, train_images=10, pruned_images=10)


@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_metrics_are_complete_and_consistent(latent: tuple[int, ...], grey_images: NDArray[np.uint8]) -> None:
    run = make_run(latent=latent, train_images=500)
    flat = initial_weights(latent, run.protocol, 0, grey_images.mean(0) / 255)
    metrics, arrays = evaluate_weights(flat, run, SPEC, material_of(grey_images))
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
    assert {"nll_pruned", "pruned_minus_full_se", "train_nll"} <= set(metrics) <= set(METRIC_TABLE)
    assert 0 <= metrics["pruned_minus_full_se"] < metrics["nll_se"]
    assert arrays["samples"].shape == (100, 784)
    assert arrays["samples"].min() >= 0
    assert arrays["samples"].max() <= 1


def make_labels(test: NDArray[np.uint8]) -> Labels:
    """A reader that sees a 3 in images with more ink than the mean and a 1 in others."""
    ink = -float(test.sum(1).mean())
    weights = {"hidden": torch.ones(784, 1), "hidden_bias": torch.tensor([ink]), "out": torch.zeros(1, 10)}
    weights["out"][0, 3] = 1.0
    reader = DigitReader({**weights, "out_bias": 0.01 * torch.eye(10)[1]}, 0.75)
    return Labels(np.where(np.arange(len(test)) // 4 % 2, 3, 1).astype(np.uint8), reader)


@pytest.mark.parametrize("latent", [(2,), (100, 50)])
def test_diagnostics_come_with_their_images(latent: tuple[int, ...], grey_images: NDArray[np.uint8]) -> None:
    run = make_run(latent=latent, train_images=500)
    flat = initial_weights(latent, run.protocol, 0, grey_images.mean(0) / 255)
    bits = (grey_images[500:] > 127).astype(np.uint8)
    spec = replace(SPEC, diagnostic_images=25, pruned_images=0)
    metrics, arrays = evaluate_weights(flat, run, spec, material_of(grey_images, labels=make_labels(bits)))
    labels = make_labels(bits)
    # The gaps shrink as K grows, from the ELBO's on.
    gaps = arrays["bound_gaps"].astype(float)
    assert gaps.shape == (30, 8)
    np.testing.assert_allclose(gaps[:, 0].mean(), metrics["log_p_hat"] - metrics["elbo"], rtol=1e-3)
    assert (np.diff(gaps.mean(0)) < 0).all()
    assert arrays["relative_variance"].shape == (30,)
    assert arrays["spread/log_q_sd"].shape == arrays["digits/label"].shape == (25,)
    assert arrays["spread/unit_log_q_sd"].shape == (25, latent[0])
    assert metrics["log_q_sd"] == pytest.approx(arrays["spread/log_q_sd"].mean())
    # Every fourth of the hundred test images.
    np.testing.assert_array_equal(arrays["digits/label"], labels.test[::4])
    seen = labels.reader.read(torch.from_numpy(bits[::4]).float()).numpy()
    np.testing.assert_array_equal(arrays["digits/image"], seen)
    right = seen == labels.test[::4]
    assert 0 < right.sum() < 25
    assert metrics["digit_changes"] == pytest.approx((arrays["digits/decoded"] != seen[:, None])[right].mean())
    assert metrics["digit_reader_accuracy"] == 0.75
    # The first image of each of the two labels is pictured.
    np.testing.assert_array_equal(arrays["pictures/x"], 255 * bits[[0, 4]])
    assert arrays["pictures/label"].tolist() == [1, 3]
    assert arrays["pictures/decoded"].shape == (2, 6, 784)
    assert set(np.unique(arrays["pictures/decoded"])) <= set(range(0, 256, 17))
    assert ("latent/mean" in arrays) == ("posterior/log_p" in arrays) == (latent == (2,))
    if latent == (2,):
        assert arrays["latent/mean"].shape == (100, 2)
        # Quadrature and 130 samples see the same likelihood; samples fall short.
        assert arrays["posterior/log_p"][0] == pytest.approx(float(arrays["log_p_hat"][0]), abs=1.0)
    assert all(array.nbytes < 200_000 for array in arrays.values())


def test_without_labels_no_digits_are_read(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    bits = (grey_images[500:] > 127).astype(np.uint8)
    metrics, arrays = evaluate_weights(flat, run, replace(SPEC, diagnostic_images=9), material_of(grey_images))
    assert "decoded_sd" in metrics
    assert "digit_changes" not in metrics
    assert not [name for name in arrays if name.startswith(("digits/", "latent/")) or name == "pictures/label"]
    np.testing.assert_array_equal(arrays["pictures/x"], 255 * bits[::10])


def test_pruning_nothing_changes_nothing(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    material = material_of(grey_images)
    metrics, _ = evaluate_weights(flat, run, SPEC, material)
    assert metrics["active_units_1"] == 50
    assert metrics["nll_pruned"] == pytest.approx(metrics["nll"], abs=1e-4)


def test_binarizing_once_keeps_a_fixed_binarization() -> None:
    fixed = (255 * np.random.default_rng(0).integers(0, 2, (4, 784))).astype(np.uint8)
    assert torch.equal(binarize_once(fixed, np.arange(4), 3, "x", CPU).bits, torch.from_numpy(fixed / 255).float())


def test_an_image_is_binarized_alike_whichever_others_are(grey_images: NDArray[np.uint8]) -> None:
    every = binarize_once(grey_images, np.arange(600), 3, "x", CPU)
    some = binarize_once(grey_images, np.array([599, 4, 250]), 3, "x", CPU)
    assert some.numbers.tolist() == [599, 4, 250]
    assert torch.equal(some.bits, every.bits[some.numbers])
    assert not torch.equal(some.bits, binarize_once(grey_images, np.array([599, 4, 250]), 3, "y", CPU).bits)
    assert abs(float(every.bits.mean()) - grey_images.mean() / 255) < 5 * 0.5 / (600 * 784) ** 0.5


def test_estimates_of_some_images_are_those_among_all(grey_images: NDArray[np.uint8]) -> None:
    """NLL, spread and decoded pictures of an image depend on the image, not on how many are evaluated."""
    run = make_run(latent=(50,), train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    material = material_of(grey_images)
    few = replace(SPEC, test_images=10, train_images=0, pruned_images=0, diagnostic_images=5)
    many = replace(few, test_images=50, diagnostic_images=25)
    of_few, of_many = (evaluate_weights(flat, run, spec, material).arrays for spec in (few, many))
    for name in ("log_p_hat", "iwae_64", "ess_64"):
        np.testing.assert_allclose(of_few[name], of_many[name][::5], rtol=1e-5)
    np.testing.assert_allclose(of_few["spread/decoded_sd"], of_many["spread/decoded_sd"][::5], rtol=1e-4)


def test_rows_of_a_set_keep_their_numbers() -> None:
    images = Images.of(np.eye(784, dtype=np.uint8), np.array([3, 500, 7]), CPU)
    assert images.bits.argmax(1).tolist() == images.numbers.tolist() == [3, 500, 7]
    assert images[np.array([2, 0])].bits.argmax(1).tolist() == [7, 3]
    assert [part.numbers.tolist() for part in images.split(2)] == [[3, 500], [7]]


def test_decoder_draws_follow_the_output_bias() -> None:
    p = Parameters((100, 50), torch.zeros(1, count_parameters((100, 50))))
    p.bias["p1.logits"][:] = 2.0
    np.testing.assert_allclose(draw_samples(p, 3, 0), 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_digest_follows_run_and_settings() -> None:
    reference = evaluation_digest(SPEC, "a", 10)
    assert evaluation_digest(replace(SPEC), "a", 10) == reference
    # How other waypoints are evaluated does not matter to this one.
    assert evaluation_digest(replace(SPEC, earlier=SPEC), "a", 10) == reference
    others = {
        evaluation_digest(SPEC, "b", 10),
        evaluation_digest(SPEC, "a", 20),
        evaluation_digest(replace(SPEC, seed=2), "a", 10),
        evaluation_digest(replace(SPEC, binarizations=5), "a", 10),
    }
    assert len({reference, *others}) == 5


def test_further_binarizations_are_other_draws_of_the_grey_images(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    spec = replace(SPEC, binarizations=3, binarization_images=20, binarization_samples=50)
    metrics, arrays = evaluate_weights(flat, run, spec, material_of(grey_images))
    drawn = arrays["bits/nll"]
    assert drawn.shape == arrays["bits/iwae_64"].shape == (3,)
    # The first is the common one, estimated from as few samples as the others.
    few = replace(SPEC, num_samples=50, bound_samples=50, test_images=20)
    assert drawn[0] == pytest.approx(evaluate_weights(flat, run, few, material_of(grey_images)).metrics["nll"])
    assert len(set(drawn.tolist())) == 3
    assert (metrics["bits_draws"], metrics["bits_images"]) == (3, 20)
    assert metrics["bits_sd_nll"] > 0
    # All else is as without them.
    alone = evaluate_weights(flat, run, SPEC, material_of(grey_images)).metrics
    assert {name: value for name, value in metrics.items() if not name.startswith("bits_")} == alone


def test_a_fixed_binarization_is_not_drawn_again(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(train_images=500)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    spec = replace(SPEC, binarizations=3, binarization_images=20, binarization_samples=50)
    fixed = (255 * (grey_images > 127)).astype(np.uint8)
    assert "bits_draws" not in evaluate_weights(flat, run, spec, material_of(fixed)).metrics


def test_numbered_binarizations_of_a_test_set(grey_images: NDArray[np.uint8]) -> None:
    grey, common = grey_images, (grey_images > 127).astype(np.uint8)
    rows = np.array([7, 590])
    first = binarization_of_test_set(common, grey, rows, 0, 1, CPU)
    assert torch.equal(first.bits, torch.from_numpy(common[rows]).float())
    others = [binarization_of_test_set(common, grey, rows, which, 1, CPU).bits for which in (1, 2)]
    assert torch.equal(others[0], binarize_once(grey, np.arange(600), 1, "test 1", CPU)[rows].bits)
    assert not torch.equal(*others)


def test_missing_weights_name_the_file_and_leave_nothing(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: missing"):
        evaluate_run(tmp_path / "run", make_run(), SPEC, material_of(grey_images), CPU)
    assert list(tmp_path.iterdir()) == []
