"""What is known of finished runs: the small summaries in `reports/<scale>/results/`, which reports and MLflow read.

Per cohort a folder with
    runs.json     per run: spec, digest, status, and how it was trained and evaluated (device, versions, wall time)
    metrics.json  per run: numbers only
    arrays.npz    `<run>/<array>`: per-image values, curves, unit variances, samples
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json, write_json
from pipeline.spec import RunSpec

RUNS, METRICS, ARRAYS = "runs.json", "metrics.json", "arrays.npz"
SAMPLES = "samples"
TOY = "gaussian-toy"
"""Folder of the Gaussian toy's numbers, beside those of the cohorts."""


@dataclass(frozen=True)
class RunResult:
    """A run that was trained and evaluated.

    `metrics` (nats unless said otherwise): `nll` and its standard error over images `nll_se`; `nll_pruned` (inactive
    units removed); `iwae_64`; `elbo`; `log_p_hat` (= -nll); `kl_q_p` (-KL(Q||P) = iwae_64 - log_p_hat); `ess_64`
    (effective sample size of 64 samples divided by 64); `active_units_1` and, with two layers, `active_units_2` by
    Burda's recipe; `active_units_test_1`, `_2` over the whole test set; `train_nll` (the same estimator on training
    images) and `train_nll_se`; `log_q_sd` (log standard deviation of q(h1|x), mean over active units and images);
    `decoded_sd` (spread of decoded pixel means over q's samples); `digit_changes` (share of decoded samples in which
    the reader sees another digit than in their image, where it reads that rightly) and `digit_reader_accuracy`;
    `num_samples`; `test_images`; where asked for, the gradients' `snr_encoder`, `snr_decoder`, `dsnr_encoder`,
    `dsnr_decoder`, each with its `_se`, at the end of training and their number `snr_gradients`. A diverged run has no
    metrics.

    `arrays`: `log_p_hat`, `iwae_64`, `ess_64` [test images]; of up to 100 test images `bound_gaps` (log_p_hat
    minus the bound with K = 1, 2, 4, ... samples) [images, K] and `relative_variance` of the weights [images];
    `unit_variance_1`, `_2` [units]; `samples` [100, 784] in [0, 1]; `history/step`, `history/epoch`,
    `history/learning_rate`, `history/seconds`, `history/bound`, `history/elbo`, `history/iwae`,
    `history/reconstruction` [points]; `snr/step` and `snr/<metric>` [checkpoints]. For the diagnostic images
    `spread/log_q_sd`, `spread/decoded_sd`, `digits/label`, `digits/image` [images], `digits/decoded` [images, samples];
    ten pictures in grey levels 0 to 255: `pictures/x`, `pictures/reconstruction` [10, 784], `pictures/decoded` [10,
    samples, 784], `pictures/label` [10], `pictures/digits` [10, samples]. Where h is 2-D `latent/mean` [images, 2],
    `latent/label` [images], and the fields of `pipeline.evaluation.posterior.PosteriorGrid` as `posterior/<field>`.
    Digits exist where there are labels.
    """

    cohort: str
    """`quick/burda-table1-mnist-1L-T50`"""
    experiment: str
    spec: RunSpec
    digest: str
    status: str
    """`finished`, or `diverged at step N`"""
    training: dict[str, Any]
    """steps, epochs, wall_s, stacked (how many runs trained together, which `wall_s` is the time of), started and
    finished (ISO 8601), device, threads, workers, torch, python, git_revision, command, data (the whole of
    dataset.json: digests and sources)"""
    evaluation: dict[str, Any]
    """wall_s, device, torch, seed, digest, git_revision, command"""
    metrics: dict[str, float]
    arrays: dict[str, NDArray[Any]] = field(repr=False)

    @property
    def scale(self) -> str:
        return self.cohort.partition("/")[0]

    @property
    def cell(self) -> str:
        """`<cohort>/<run>`: the name under which people talk about the result."""
        return f"{self.cohort}/{self.spec.name}"


def save_results(folder: Path, results: list[RunResult]) -> None:
    """Write the summaries of one cohort; `folder` is `reports/<scale>/results/<cohort name>`."""
    runs = {
        result.spec.name: {
            "cohort": result.cohort,
            "experiment": result.experiment,
            "spec": result.spec.to_json(),
            "digest": result.digest,
            "status": result.status,
            "training": result.training,
            "evaluation": result.evaluation,
        }
        for result in results
    }
    arrays = {f"{r.spec.name}/{name}": _packed(name, array) for r in results for name, array in r.arrays.items()}
    with atomic_path(folder / ARRAYS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_json(folder / METRICS, {result.spec.name: result.metrics for result in results})
    write_json(folder / RUNS, runs)


def _packed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Pixel means take a fifth of the room in 256 grey levels."""
    return np.rint(255 * array).astype(np.uint8) if name == SAMPLES else array


def _unpacked(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return (array / 255).astype(np.float32) if name == SAMPLES else array


def load_results(root: Path) -> list[RunResult]:
    """Every result under `reports/<scale>/results`, ordered by cohort and as the cohort lists its runs."""
    return [result for path in sorted(root.glob(f"*/{RUNS}")) for result in _load_cohort(path.parent)]


def load_result(folder: Path, name: str) -> RunResult:
    """One run of the cohort whose summaries are in `folder`.

    Raises: UserError naming what is there when it has no such run.
    """
    if not (folder / RUNS).exists():
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{RUNS}"))) or "none"
        raise UserError(f"{folder}: no results of such a cohort; known beside it: {there}")
    results = {result.spec.name: result for result in _load_cohort(folder)}
    if name not in results:
        raise UserError(f"{folder}: has no run {name!r}; known: {', '.join(results)}")
    return results[name]


def _load_cohort(folder: Path) -> list[RunResult]:
    metrics = read_json(folder / METRICS)
    with np.load(folder / ARRAYS) as archive:
        arrays = {name: archive[name] for name in archive.files}
    results = []
    for name, run in read_json(folder / RUNS).items():
        keys = {key.removeprefix(f"{name}/"): key for key in arrays if key.startswith(f"{name}/")}
        own = {short: _unpacked(short, arrays[key]) for short, key in keys.items()}
        results.append(
            RunResult(
                cohort=run["cohort"],
                experiment=run["experiment"],
                spec=RunSpec.from_json(run["spec"]),
                digest=run["digest"],
                status=run["status"],
                training=run["training"],
                evaluation=run["evaluation"],
                metrics=metrics.get(name, {}),
                arrays=own,
            )
        )
    return results
