"""All that is computed of one trained run, kept in the store under the run's and the evaluation's digests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.active_units import BURDA_IMAGES, THRESHOLD, active_masks, posterior_means, unit_variances
from pipeline.evaluation.classifier import DigitReader
from pipeline.evaluation.likelihood import Likelihoods, likelihoods, model_log_weights
from pipeline.evaluation.posterior import decoded_samples, measure_spread, posterior_grid, reconstructions
from pipeline.evaluation.samples import draw_samples
from pipeline.evaluation.snr import run_snr
from pipeline.files import atomic_path, write_json
from pipeline.models.networks import Parameters
from pipeline.randomness import Randomness
from pipeline.spec import BATCH_SIZE, EvaluationSpec, RunSpec
from pipeline.training.state import WEIGHTS, read_weights

SAMPLE_COUNT = 100
BOUND_IMAGES = 100
"""Test images, evenly spaced, whose bounds at every K are kept."""
SCATTER_IMAGES = 2000
PICTURED_IMAGES, PICTURED_SAMPLES = 10, 6
GREY_LEVELS = 15
"""Pictures are kept in so few levels above white that they compress well."""


@dataclass(frozen=True)
class Labels:
    """What is known of the digits of a test set: the labels [M], and a reader of digits."""

    test: NDArray[np.uint8]
    reader: DigitReader


def evaluation_digest(spec: EvaluationSpec, run_digest: str) -> str:
    """16 hexadecimal digits that name the result of evaluating a run."""
    text = json.dumps([asdict(spec), run_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def evenly_spaced(total: int, count: int | None) -> NDArray[np.int64]:
    """`count` indices spread over range(total), or all of it: LeCun's first 5000 test digits are the easier half."""
    return np.linspace(0, total, min(count or total, total), endpoint=False).astype(np.int64)


def binarize_once(grey: NDArray[np.uint8], seed: int, purpose: str) -> Tensor:
    """One Bernoulli draw of grey images [N, 784], in {0, 1} float32; a fixed binarization (0 and 255) stays."""
    images = torch.from_numpy(np.array(grey)).float() / 255
    uniform = Randomness(torch.device("cpu")).uniform(tuple(images.shape), seed, purpose, 0)
    return (uniform < images).float()


def evaluate_weights(
    flat: Tensor,
    run: RunSpec,
    spec: EvaluationSpec,
    train_images: NDArray[np.uint8],
    test_bits: NDArray[np.uint8],
    between_passes: Callable[[], None] = lambda: None,
    labels: Labels | None = None,
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """The metrics and arrays of `pipeline.results.RunResult` for one row of weights, [count], on its device.

    `train_images`: grey, [N, 784] uint8. `test_bits`: the test set's one binarization, [M, 784] in {0, 1}. `labels`:
    None where the test set has none; then no digits are read.
    """
    p = Parameters(run.latent, flat.unsqueeze(0))
    device = flat.device
    chosen = evenly_spaced(len(test_bits), spec.test_images)
    test = torch.from_numpy(test_bits[chosen]).float().to(device)

    def estimate(images: Tensor, active: list[Tensor] | None = None) -> Likelihoods:
        log_weights = model_log_weights(p, spec.seed, active)
        return likelihoods(log_weights, images, spec.num_samples, spec.bound_samples, between_passes=between_passes)

    burda_images = binarize_once(train_images[:BURDA_IMAGES], spec.seed, "active units").to(device)
    variances = [unit_variances(means) for means in posterior_means(p, burda_images, spec.seed)]
    every_test_image = torch.from_numpy(np.array(test_bits)).float().to(device)
    test_variances = [unit_variances(means) for means in posterior_means(p, every_test_image, spec.seed)]

    of_test = estimate(test)
    metrics = {
        "nll": -_mean(of_test.log_p_hat),
        "nll_se": float(of_test.log_p_hat.std(ddof=1) / np.sqrt(len(test))),
        "log_p_hat": _mean(of_test.log_p_hat),
        "iwae_64": _mean(of_test.bound),
        "elbo": _mean(of_test.elbo),
        "kl_q_p": _mean(of_test.bound) - _mean(of_test.log_p_hat),
        "ess_64": _mean(of_test.ess),
        "num_samples": float(spec.num_samples),
        "test_images": float(len(test)),
    }
    kept = evenly_spaced(len(test), BOUND_IMAGES)
    arrays: dict[str, NDArray[Any]] = {
        "log_p_hat": of_test.log_p_hat,
        "iwae_64": of_test.bound,
        "ess_64": of_test.ess,
        "bound_gaps": (of_test.log_p_hat[:, None] - of_test.bounds)[kept].astype(np.float16),
        "relative_variance": of_test.relative_variance[kept],
        "samples": (draw_samples(p, SAMPLE_COUNT, spec.seed)).astype(np.float16),
    }
    for l, (own, on_test) in enumerate(zip(variances, test_variances, strict=True), start=1):
        metrics[f"active_units_{l}"] = float((own > THRESHOLD).sum())
        metrics[f"active_units_test_{l}"] = float((on_test > THRESHOLD).sum())
        arrays[f"unit_variance_{l}"] = own.astype(np.float32)
    if spec.pruned:
        metrics["nll_pruned"] = -_mean(estimate(test, active_masks(variances, device)).log_p_hat)
    if spec.train_images:
        seen = evenly_spaced(run.train_images, spec.train_images)
        bits = binarize_once(train_images[seen], spec.seed, "train likelihood").to(device)
        of_train = estimate(bits).log_p_hat
        metrics["train_nll"] = -_mean(of_train)
        if len(of_train) > 1:
            metrics["train_nll_se"] = float(of_train.std(ddof=1) / np.sqrt(len(of_train)))
    if spec.diagnostic_images:
        active = active_masks(test_variances[:1], device)[0]
        own_metrics, own_arrays = diagnose(p, spec, every_test_image, active, labels, between_passes)
        metrics |= own_metrics
        arrays |= own_arrays
    return metrics, arrays


def diagnose(
    p: Parameters,
    spec: EvaluationSpec,
    test: Tensor,
    active: Tensor,
    labels: Labels | None,
    between_passes: Callable[[], None],
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Spread of q(h1 | x), decoded samples and the digits in them; with two latent units also the posteriors.

    `test`: every test image, [M, 784] in {0, 1}. `active`: mask of the units of layer 1.
    """
    chosen = evenly_spaced(len(test), spec.diagnostic_images)
    images = test[torch.from_numpy(chosen).to(test.device)]
    reader = None if labels is None else labels.reader.to(test.device)
    spread = measure_spread(p, images, active, reader, spec.seed, between_passes)
    metrics = {"log_q_sd": _mean(spread.log_sd), "decoded_sd": _mean(spread.decoded_sd)}
    arrays: dict[str, NDArray[Any]] = {"spread/log_q_sd": spread.log_sd, "spread/decoded_sd": spread.decoded_sd}
    pictured = pictured_images(len(test), None if labels is None else labels.test)
    x = test[torch.from_numpy(pictured).to(test.device)]
    decoded = decoded_samples(p, x, PICTURED_SAMPLES, spec.seed, "pictures").transpose(0, 1)
    arrays |= {
        "pictures/x": x.cpu().numpy().astype(np.uint8) * 255,
        "pictures/reconstruction": _grey(reconstructions(p, x)),
        "pictures/decoded": _grey(decoded),
    }
    if labels is not None and reader is not None and spread.digits is not None:
        seen = reader.read(images).cpu().numpy().astype(np.uint8)
        right = seen == labels.test[chosen]
        if right.any():
            metrics["digit_changes"] = float((spread.digits != seen[:, None])[right].mean())
        metrics["digit_reader_accuracy"] = labels.reader.accuracy
        arrays |= {
            "digits/label": np.array(labels.test[chosen]),
            "digits/image": seen,
            "digits/decoded": spread.digits,
            "pictures/label": np.array(labels.test[pictured]),
            "pictures/digits": reader.read(decoded).cpu().numpy().astype(np.uint8),
        }
    if p.latent == (2,):
        scattered = evenly_spaced(len(test), SCATTER_IMAGES)
        (means,) = posterior_means(p, test[torch.from_numpy(scattered).to(test.device)], spec.seed)
        arrays["latent/mean"] = means.astype(np.float16)
        if labels is not None:
            arrays["latent/label"] = np.array(labels.test[scattered])
        # Every other picture: enough to see, half to keep.
        grid = posterior_grid(p, x[::2])
        arrays |= {f"posterior/{name}": value for name, value in asdict(grid).items()}
        arrays["posterior/log_density"] = grid.log_density.astype(np.float16)
    return metrics, arrays


def pictured_images(count: int, labels: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    """Test images that are shown: the first of each digit, or so many evenly spaced where there are no labels."""
    if labels is None:
        return evenly_spaced(count, PICTURED_IMAGES)
    return np.array([np.flatnonzero(labels == digit)[0] for digit in np.unique(labels)], dtype=np.int64)


def _grey(images: Tensor) -> NDArray[np.uint8]:
    return (torch.round(GREY_LEVELS * images) * (255 // GREY_LEVELS)).to(torch.uint8).cpu().numpy()


def gradient_snr(
    run_folder: Path,
    run: RunSpec,
    spec: EvaluationSpec,
    train_images: NDArray[np.uint8],
    device: torch.device,
    between_passes: Callable[[], None],
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """`run_snr` on one batch of training images, evenly spaced and binarized once, the same for all runs."""
    batch = binarize_once(train_images[evenly_spaced(run.train_images, BATCH_SIZE)], spec.seed, "gradient snr")
    return run_snr(run_folder, run, spec.snr_gradients, batch.to(device), train_images, spec.seed, between_passes)


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


def evaluate_run(
    run_folder: Path,
    run: RunSpec,
    spec: EvaluationSpec,
    train_images: NDArray[np.uint8],
    test_bits: NDArray[np.uint8],
    device: torch.device,
    target: Path,
    facts: dict[str, Any],
    between_passes: Callable[[], None] = lambda: None,
    labels: Labels | None = None,
) -> None:
    """Evaluate the weights in `run_folder` and write `<target>.json` and `<target>.npz`; the JSON comes last.

    `facts` (revision, command) is recorded beside what is measured here.

    Raises: UserError naming the weights file when it is missing or unreadable.
    """
    start = time.monotonic()
    flat = read_weights(run_folder / WEIGHTS, run.latent).to(device)
    metrics, arrays = evaluate_weights(flat, run, spec, train_images, test_bits, between_passes, labels)
    if spec.snr_gradients:
        of_gradients = gradient_snr(run_folder, run, spec, train_images, device, between_passes)
        metrics, arrays = metrics | of_gradients[0], arrays | of_gradients[1]
    measured = {
        "wall_s": round(time.monotonic() - start, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **asdict(spec),
    }
    with atomic_path(target.with_suffix(".npz")) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_json(target.with_suffix(".json"), {"metrics": metrics, "evaluation": {**facts, **measured}})
