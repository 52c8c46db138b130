"""All that is computed of one trained run, kept in the store under the run's and the evaluation's digests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.active_units import BURDA_IMAGES, THRESHOLD, active_masks, posterior_means, unit_variances
from pipeline.evaluation.likelihood import Likelihoods, likelihoods, model_log_weights
from pipeline.evaluation.samples import draw_samples
from pipeline.files import atomic_path, write_json
from pipeline.models.networks import Parameters
from pipeline.randomness import Randomness
from pipeline.spec import EvaluationSpec, RunSpec
from pipeline.training.state import WEIGHTS, read_weights

SAMPLE_COUNT = 100


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
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """The metrics and arrays of `pipeline.results.RunResult` for one row of weights, [count], on its device.

    `train_images`: grey, [N, 784] uint8. `test_bits`: the test set's one binarization, [N, 784] in {0, 1}.
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
    arrays: dict[str, NDArray[Any]] = {
        "log_p_hat": of_test.log_p_hat,
        "iwae_64": of_test.bound,
        "ess_64": of_test.ess,
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
        metrics["train_nll"] = -_mean(estimate(bits).log_p_hat)
    return metrics, arrays


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
) -> None:
    """Evaluate the weights in `run_folder` and write `<target>.json` and `<target>.npz`; the JSON comes last.

    `facts` (revision, command) is recorded beside what is measured here.

    Raises: UserError naming the weights file when it is missing or unreadable.
    """
    start = time.monotonic()
    flat = read_weights(run_folder / WEIGHTS, run.latent).to(device)
    metrics, arrays = evaluate_weights(flat, run, spec, train_images, test_bits, between_passes)
    measured = {
        "wall_s": round(time.monotonic() - start, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **asdict(spec),
    }
    with atomic_path(target.with_suffix(".npz")) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_json(target.with_suffix(".json"), {"metrics": metrics, "evaluation": {**facts, **measured}})
