"""All that is computed of one trained run, kept in the store under the run's and the evaluation's digests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.active_units import BURDA_IMAGES, active_masks, posterior_means, unit_variances
from pipeline.evaluation.binarizations import bits_spread, is_fixed
from pipeline.evaluation.classifier import DigitReader
from pipeline.evaluation.images import Images, binarization_of_test_set, binarize_once
from pipeline.evaluation.likelihood import Likelihoods, likelihoods, model_log_weights
from pipeline.evaluation.posterior import (
    decoded_samples,
    measure_spread,
    posterior_grid,
    reconstructions,
    sample_weights,
    samples_of_q,
)
from pipeline.evaluation.samples import draw_samples
from pipeline.evaluation.snr import common_batch, run_snr
from pipeline.evaluation.spacing import evenly_spaced
from pipeline.experiments.spec import EvaluationSpec, RunSpec
from pipeline.files import atomic_path, sha256_file
from pipeline.models.networks import Parameters
from pipeline.records.facts import EvaluationFacts, Origin
from pipeline.records.metrics import ACTIVE_VARIANCE
from pipeline.records.results import GREY_LEVELS
from pipeline.records.run_folder import WEIGHTS, read_run, read_weights
from pipeline.records.sealed import Damaged, read_sealed_json, reading, write_sealed_json

SHAPE = {"run": str, "steps": int, "metrics": dict, "evaluation": dict, "arrays_sha256": str}
"""The fields of an evaluation's JSON."""
SAMPLE_COUNT = 100
BOUND_IMAGES = 100
"""Test images, evenly spaced, whose bounds at every K are kept."""
WIDTH_IMAGES = 100
"""Diagnostic images, evenly spaced, whose log standard deviations of q are kept unit by unit."""
SCATTER_IMAGES = 2000
PICTURED_IMAGES, PICTURED_SAMPLES = 10, 6


@dataclass(frozen=True)
class Labels:
    """What is known of the digits of a test set: the labels [M], and a reader of digits."""

    test: NDArray[np.uint8]
    reader: DigitReader


def evaluation_digest(spec: EvaluationSpec, run_digest: str, steps: int) -> str:
    """16 hexadecimal digits that name the result of evaluating a run after so many updates."""
    text = json.dumps([asdict(replace(spec, earlier=None)), run_digest, steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Material:
    """What runs of one dataset are evaluated on."""

    train_images: NDArray[np.uint8]
    """Grey, [N, 784]."""
    test_bits: NDArray[np.uint8]
    """The test set's common binarization, [M, 784] in {0, 1}."""
    test_images: NDArray[np.uint8]
    """The same images in grey, for further binarizations."""
    labels: Labels | None = None
    """None where the test set has none; then no digits are read."""


class Measurements(NamedTuple):
    """Metrics by name and arrays by name, as `pipeline.records.results.RunResult` lists them."""

    metrics: dict[str, float]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run at a waypoint."""

    run: str
    """The run's digest."""
    steps: int
    measured: Measurements
    how: EvaluationFacts


def evaluate_weights(
    flat: Tensor,
    run: RunSpec,
    spec: EvaluationSpec,
    material: Material,
    between_passes: Callable[[], None] = lambda: None,
) -> Measurements:
    """The metrics and arrays of one row of weights, [count], on its device; gradients' signal-to-noise apart."""
    p = Parameters(run.latent, flat.unsqueeze(0))
    grey = material.train_images
    test = Images.of(material.test_bits, np.arange(len(material.test_bits)), flat.device)
    chosen = test[evenly_spaced(len(test), spec.test_images)]

    def estimate(images: Images, active: list[Tensor] | None = None, samples: int = spec.num_samples) -> Likelihoods:
        log_weights = model_log_weights(p, spec.seed, active)
        bound_samples = min(spec.bound_samples, samples)
        return likelihoods(log_weights, images, samples, bound_samples, between_passes=between_passes)

    first = np.arange(min(BURDA_IMAGES, len(grey)))
    seen = binarize_once(grey, first, spec.seed, "active units", flat.device)
    variances, test_variances = (
        [unit_variances(means) for means in posterior_means(p, images, spec.seed)] for images in (seen, test)
    )
    of_test = estimate(chosen)
    parts = [
        density(of_test, spec.num_samples),
        active_units(variances, test_variances),
        Measurements({}, {"samples": draw_samples(p, SAMPLE_COUNT, spec.seed).astype(np.float16)}),
    ]
    if spec.pruned_images:
        some = evenly_spaced(len(chosen), spec.pruned_images)
        of_pruned = estimate(chosen[some], active_masks(variances, flat.device))
        parts.append(Measurements(pruned(of_test.log_p_hat, of_pruned.log_p_hat, some), {}))
    if spec.binarizations > 1 and not is_fixed(material.test_images):
        rows = evenly_spaced(len(test), spec.binarization_images)
        draws = [
            binarization_of_test_set(material.test_bits, material.test_images, rows, which, spec.seed, flat.device)
            for which in range(spec.binarizations)
        ]
        estimates = [estimate(images, samples=spec.binarization_samples) for images in draws]
        parts.append(Measurements(*bits_spread(estimates, len(chosen))))
    if spec.train_images:
        rows = evenly_spaced(run.train_images, spec.train_images)
        of_train = estimate(binarize_once(grey, rows, spec.seed, "train likelihood", flat.device))
        parts.append(Measurements(nll_and_error("train_nll", of_train.log_p_hat), {}))
    if spec.diagnostic_images:
        active = active_masks(test_variances[:1], flat.device)[0]
        parts.append(diagnose(p, spec, test, active, material.labels, between_passes))
    return _joined(parts)


def _joined(parts: list[Measurements]) -> Measurements:
    return Measurements(
        {name: value for part in parts for name, value in part.metrics.items()},
        {name: array for part in parts for name, array in part.arrays.items()},
    )


def density(of_test: Likelihoods, num_samples: int) -> Measurements:
    """What the likelihood estimates of the test images say."""
    count = len(of_test.log_p_hat)
    kept = evenly_spaced(count, BOUND_IMAGES)
    metrics = {
        **nll_and_error("nll", of_test.log_p_hat),
        "log_p_hat": _mean(of_test.log_p_hat),
        "iwae_64": _mean(of_test.bound),
        "elbo": _mean(of_test.elbo),
        "kl_q_p": _mean(of_test.bound) - _mean(of_test.log_p_hat),
        "ess_64": _mean(of_test.ess),
        "num_samples": float(num_samples),
        "test_images": float(count),
    }
    arrays: dict[str, NDArray[Any]] = {
        "log_p_hat": of_test.log_p_hat,
        "iwae_64": of_test.bound,
        "ess_64": of_test.ess,
        "bound_gaps": (of_test.log_p_hat[:, None] - of_test.bounds)[kept].astype(np.float16),
        "relative_variance": of_test.relative_variance[kept],
    }
    return Measurements(metrics, arrays)


def nll_and_error(name: str, log_p_hat: NDArray[np.float32]) -> dict[str, float]:
    """Minus the mean over images, nats, and with two images or more its standard error over them."""
    nll = {name: -_mean(log_p_hat)}
    if len(log_p_hat) > 1:
        nll[f"{name}_se"] = _standard_error(log_p_hat)
    return nll


def pruned(whole: NDArray[np.float32], without: NDArray[np.float32], some: NDArray[np.int64]) -> dict[str, float]:
    """The NLL of a model without its inactive units, nats.

    `whole`: log p_hat of the model as it is, [images]; `without`: without these units, of `some` of the images. The
    change on these is added to the NLL of all: both estimates see the same images and noise.
    """
    nll = -_mean(whole) + _mean(whole[some] - without)
    error = {"pruned_minus_full_se": _standard_error(whole[some] - without)} if len(some) > 1 else {}
    return {"nll_pruned": nll, "pruned_images": float(len(some)), **error}


def active_units(variances: list[NDArray[np.float64]], test_variances: list[NDArray[np.float64]]) -> Measurements:
    """Active units from A_u [units] of each layer: by Burda's recipe, and over the whole test set."""
    measured = Measurements({}, {})
    for l, (by_recipe, on_test) in enumerate(zip(variances, test_variances, strict=True), start=1):
        measured.metrics[f"active_units_{l}"] = float((by_recipe > ACTIVE_VARIANCE).sum())
        measured.metrics[f"active_units_test_{l}"] = float((on_test > ACTIVE_VARIANCE).sum())
        measured.arrays[f"unit_variance_{l}"] = by_recipe.astype(np.float32)
    return measured


def diagnose(
    p: Parameters,
    spec: EvaluationSpec,
    test: Images,
    active: Tensor,
    labels: Labels | None,
    between_passes: Callable[[], None],
) -> Measurements:
    """Spread of q(h1 | x), decoded samples and the digits in them; with two latent units also the posteriors.

    `test`: every test image. `active`: mask of the units of layer 1.
    """
    chosen = evenly_spaced(len(test), spec.diagnostic_images)
    pictured = pictured_images(len(test), None if labels is None else labels.test)
    reader = None if labels is None else labels.reader.to(p.flat.device)
    spread = measure_spread(p, test[chosen], active, reader, spec.seed, between_passes)
    decoded = decoded_samples(p, test[pictured], PICTURED_SAMPLES, spec.seed, "pictures").transpose(0, 1)
    x = test[pictured].bits
    kept = evenly_spaced(len(chosen), WIDTH_IMAGES)
    parts = [
        Measurements(
            {"log_q_sd": _mean(spread.log_sd), "decoded_sd": _mean(spread.decoded_sd)},
            {
                "spread/log_q_sd": spread.log_sd,
                "spread/decoded_sd": spread.decoded_sd,
                "spread/unit_log_q_sd": spread.unit_log_sd[kept].astype(np.float16),
                "pictures/x": x.cpu().numpy().astype(np.uint8) * 255,
                "pictures/reconstruction": _grey(reconstructions(p, x)),
                "pictures/decoded": _grey(decoded),
            },
        )
    ]
    if labels is not None and reader is not None and spread.digits is not None:
        seen = _digits(reader, test[chosen].bits)
        parts.append(_digit_changes(seen, spread.digits, labels.test[chosen], labels.reader.accuracy))
        of_pictures = {"pictures/label": np.array(labels.test[pictured]), "pictures/digits": _digits(reader, decoded)}
        parts.append(Measurements({}, of_pictures))
    if p.latent == (2,):
        parts.append(_latent_plane(p, spec, test, labels))
        h = samples_of_q(p, test[pictured], PICTURED_SAMPLES, spec.seed, "pictures")
        weighed = {"pictures/h": h.transpose(0, 1), "pictures/log_w": sample_weights(p, x, h).T}
        parts.append(
            Measurements({}, {name: value.cpu().numpy().astype(np.float32) for name, value in weighed.items()})
        )
        # Every other picture: enough to see, half to keep.
        grid = posterior_grid(p, x[::2])
        arrays = {f"posterior/{name}": value for name, value in asdict(grid).items()}
        parts.append(Measurements({}, arrays | {"posterior/log_density": grid.log_density.astype(np.float16)}))
    return _joined(parts)


def _digits(reader: DigitReader, images: Tensor) -> NDArray[np.uint8]:
    return reader.read(images).cpu().numpy().astype(np.uint8)


def _digit_changes(
    seen: NDArray[np.uint8], decoded: NDArray[np.uint8], labels: NDArray[np.uint8], accuracy: float
) -> Measurements:
    """How often a decoded sample shows another digit than its image, where the image is read rightly.

    `seen`: the digit read in each image, [images]; `decoded`: in its decoded samples, [images, samples].
    """
    right = seen == labels
    metrics = {"digit_changes": float((decoded != seen[:, None])[right].mean())} if right.any() else {}
    arrays = {"digits/label": np.array(labels), "digits/image": seen, "digits/decoded": decoded}
    return Measurements(metrics | {"digit_reader_accuracy": accuracy}, arrays)


def _latent_plane(p: Parameters, spec: EvaluationSpec, test: Images, labels: Labels | None) -> Measurements:
    """Where the encoder puts test images, for a model of two latent units."""
    scattered = evenly_spaced(len(test), SCATTER_IMAGES)
    (means,) = posterior_means(p, test[scattered], spec.seed)
    arrays: dict[str, NDArray[Any]] = {"latent/mean": means.astype(np.float16)}
    if labels is not None:
        arrays["latent/label"] = np.array(labels.test[scattered])
    return Measurements({}, arrays)


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
) -> Measurements:
    """`run_snr` on the batch that all runs of a dataset have in common."""
    batch = common_batch(train_images, run.train_images, spec.seed, device)
    return Measurements(*run_snr(run_folder, run, spec.snr_gradients, batch, train_images, spec.seed, between_passes))


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64))


def _standard_error(values: NDArray[np.float32]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def evaluate_run(
    run_folder: Path,
    run: RunSpec,
    spec: EvaluationSpec,
    material: Material,
    device: torch.device,
    between_passes: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate the weights in `run_folder`. `run`: taken to where these weights are.

    Raises: Damaged or UserError naming a file of weights that is not what was written, or missing.
    """
    start = time.monotonic()
    content = read_run(run_folder)
    flat = read_weights(run_folder / WEIGHTS, run.latent, content["digest"]).to(device)
    measured = evaluate_weights(flat, run, spec, material, between_passes)
    if spec.snr_gradients:
        of_gradients = gradient_snr(run_folder, run, spec, material.train_images, device, between_passes)
        measured = _joined([measured, of_gradients])
    how = {
        "wall_s": round(time.monotonic() - start, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **asdict(replace(spec, earlier=None)),
    }
    return Evaluation(content["digest"], content["steps"], measured, cast(EvaluationFacts, how))


def save_evaluation(target: Path, evaluation: Evaluation, facts: Origin) -> None:
    """Write `<target>.npz` and `<target>.json`; the JSON comes last. `facts`: revision and command, for the record."""
    path = target.with_suffix(".npz")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **evaluation.measured.arrays)  # type: ignore[arg-type]
    content = {
        "run": evaluation.run,
        "steps": evaluation.steps,
        "metrics": evaluation.measured.metrics,
        "evaluation": {**facts, **evaluation.how},
        "arrays_sha256": sha256_file(path),
    }
    write_sealed_json(target.with_suffix(".json"), content)


def read_evaluation(target: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_evaluation` wrote: the content of its JSON, and the arrays, both verified.

    Raises: Damaged naming the file that is not what was written; UserError when one is missing or cannot be read.
    """
    content = read_sealed_json(target.with_suffix(".json"), SHAPE)
    path = target.with_suffix(".npz")
    with reading(path, listed=True):
        if sha256_file(path) != content["arrays_sha256"]:
            raise Damaged(path, "damaged: its SHA-256 is not the one in the JSON beside it")
        with np.load(path) as archive:
            return content, {name: archive[name] for name in archive.files}
