"""What is known of finished runs: the small summaries in `reports/<scale>/results/`, which reports and MLflow read.

Per cohort a folder with
    runs.json        per run: spec, digest, status, updates and epochs, how it is evaluated
    metrics.json     per run: numbers only
    waypoints.json   per run: the same of its earlier waypoints
    arrays.npz       `<run>/<array>`, `<run>/waypoints/<updates>/<array>`: per-image values, curves, variances, samples
    sums.json        the SHA-256 of the others but the last, verified when they are read
    provenance.json  per run: how it was trained and evaluated (device, versions, wall time); sealed by itself
All but the last are the same, byte for byte, whenever they are made again. The last tells of the first time that the
numbers came out as they are: where they come out so again, it stays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.array_files import read_arrays, write_arrays
from pipeline.errors import UserError
from pipeline.experiments.names import CellName, CohortKey
from pipeline.experiments.spec import CohortSpec, RunSpec, as_computed
from pipeline.files import WRITE_AGAIN, content_of, read_object, write_json
from pipeline.paths import HERE
from pipeline.records.facts import EvaluationFacts, TrainingFacts
from pipeline.records.status import Status
from pipeline.records.sums import check_sums, read_sealed, sealed, write_sums

RUNS, METRICS, WAYPOINTS, ARRAYS = "runs.json", "metrics.json", "waypoints.json", "arrays.npz"
PROVENANCE = "provenance.json"
RESULT_FILES = (RUNS, METRICS, WAYPOINTS, ARRAYS)
LIKELIHOODS = ("nll", "log_p_hat", "elbo", "iwae_64")
"""A run of which one of these is not finite has diverged."""
NUMBERS = "numbers"
"""What a run's provenance is of: a digest of all that is kept of the run besides."""
SAMPLES = "samples"
NAMED_CELLS = 5
"""Results that are not in the grid and are named in a message; of more, the number is told."""
HISTORY, STEPS, SECONDS = "history/", "history/step", "history/seconds"
GREY_LEVELS = 15
"""Above white: samples and pictures are kept in so few that they compress well."""
LOG_P, BOUND = "log_p_hat", "iwae_64"
NATS_STEP = 2.0**-10
"""What these arrays, in nats per image, are rounded to: far less than the Monte Carlo error of an image."""
COARSE = ("ess_64", "bound_gaps", "spread/log_q_sd", "spread/decoded_sd", "spread/unit_log_q_sd")
"""Arrays of which eight significant bits are enough, in half precision: 0.4 % of a value, which images differ by much
more than."""
COARSE_STEP = 8
"""Half precision has eleven significant bits; the last three of them are rounded away."""
VARYING = ("wall_s", "device", "torch", "git_revision", "command")
"""Facts of an evaluation that differ from time to time."""
WAYPOINT_ARRAYS = ("log_p_hat", "unit_variance_1", "unit_variance_2")
"""What is kept of an earlier waypoint, for the series against epochs."""
TOY = "gaussian-toy"
"""Folder of the Gaussian toy's numbers, beside those of the cohorts."""


@dataclass(frozen=True)
class Waypoint:
    """A run's state on the way, evaluated."""

    steps: int
    epochs: float
    status: str
    evaluation: EvaluationFacts
    metrics: dict[str, float]
    """As `metrics` of `RunResult`, as far as its evaluation goes."""
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    """`WAYPOINT_ARRAYS`"""

    @property
    def is_finished(self) -> bool:
        """It did not diverge."""
        return Status.of(self.status).is_finished


@dataclass(frozen=True)
class RunResult:
    """A run that was trained and evaluated.

    `metrics`: by the names of `pipeline.records.metrics.METRIC_TABLE`, those that its evaluation was asked for; a
    diverged run has none.

    `arrays`: `log_p_hat`, `iwae_64`, `ess_64` [test images]; of up to 100 test images `bound_gaps` (log_p_hat minus the
    bound with K = 1, 2, 4, ... samples) [images, K] and `relative_variance` of the weights [images]; `unit_variance_1`,
    `_2` [units]; `bits/nll`, `bits/iwae_64` [binarizations]; `samples` [100, 784] in [0, 1]; `history/step`,
    `history/epoch`, `history/learning_rate`, `history/seconds`, `history/bound`, `history/elbo`, `history/iwae`,
    `history/reconstruction` [points]; `snr/step` and `snr/<metric>` [checkpoints]. For the diagnostic images
    `spread/log_q_sd`, `spread/decoded_sd`, of up to 100 of them `spread/unit_log_q_sd` [images, units], `digits/label`,
    `digits/image` [images], `digits/decoded` [images, samples]; ten pictures in grey levels 0 to 255: `pictures/x`,
    `pictures/reconstruction` [10, 784], `pictures/decoded` [10, samples, 784], `pictures/label` [10], `pictures/digits`
    [10, samples]. Where h is 2-D `pictures/h` [10, samples, 2] and `pictures/log_w` [10, samples] of the decoded
    samples, `latent/mean` [images, 2], `latent/label` [images], and the fields of
    `pipeline.evaluation.posterior.PosteriorGrid` as `posterior/<field>`. Digits exist where there are labels.
    """

    cohort: str
    """`quick/burda-table1-mnist-1L-T50`"""
    experiment: str
    spec: RunSpec
    """Taken to where it was evaluated."""
    digest: str
    status: str
    """A `pipeline.records.status.Status` as text."""
    training: TrainingFacts
    evaluation: EvaluationFacts
    metrics: dict[str, float]
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    waypoints: tuple[Waypoint, ...] = ()
    """Its evaluated waypoints before this one."""
    planned_steps: int = 0
    """Updates that its scale takes it to; 0 for as many as it made."""

    @property
    def epochs(self) -> float:
        return self.spec.epochs

    @property
    def is_under_way(self) -> bool:
        """Its scale takes it further: these are the numbers of the deepest waypoint that was evaluated so far."""
        return self.planned_steps > self.spec.total_steps

    @property
    def scale(self) -> str:
        return self.name.cohort.scale

    @property
    def name(self) -> CellName:
        """The name under which people talk about the result."""
        return CellName(CohortKey.of(self.cohort), self.spec.name)

    @property
    def cell(self) -> str:
        """`name` as text."""
        return str(self.name)

    @property
    def is_finished(self) -> bool:
        """It did not diverge."""
        return Status.of(self.status).is_finished


def save_results(folder: Path, results: list[RunResult]) -> None:
    """Write the summaries of one cohort; `folder` is `reports/<scale>/results/<cohort name>`."""
    results = [_sound(result) for result in results]
    runs = {
        result.spec.name: {
            "cohort": result.cohort,
            "experiment": result.experiment,
            "spec": result.spec.to_json(),
            "digest": result.digest,
            "status": result.status,
            "steps": result.spec.total_steps,
            "epochs": result.epochs,
            "planned_steps": result.planned_steps or result.spec.total_steps,
            "evaluation": _lasting(result.evaluation),
        }
        for result in results
    }
    waypoints = {
        result.spec.name: [
            {
                "steps": waypoint.steps,
                "epochs": waypoint.epochs,
                "status": waypoint.status,
                "evaluation": _lasting(waypoint.evaluation),
                "metrics": waypoint.metrics,
            }
            for waypoint in result.waypoints
        ]
        for result in results
    }
    told = _known_provenance(folder)
    arrays: dict[str, NDArray[Any]] = {}
    provenance = {}
    for result in results:
        name, run_arrays = result.spec.name, _arrays_of(result)
        arrays |= {f"{name}/{short}": array for short, array in run_arrays.items()}
        numbers = _digest_of([runs[name], result.metrics, waypoints[name]], run_arrays)
        before = told.get(name, {})
        provenance[name] = before if before.get(NUMBERS) == numbers else _provenance_of(result, numbers)
    write_arrays(folder / ARRAYS, arrays)
    write_json(folder / METRICS, {result.spec.name: result.metrics for result in results})
    write_json(folder / WAYPOINTS, waypoints)
    if provenance != told:
        write_json(folder / PROVENANCE, sealed(provenance))
    write_json(folder / RUNS, runs)
    write_sums(folder, RESULT_FILES)


def _sound(result: RunResult) -> RunResult:
    """The result without numbers that are none.

    A run whose likelihood is not finite has diverged, whenever it did: its weights may be finite and mean nothing. Of
    others a metric or an array that is not finite is left out, as if it had not been measured.
    """
    waypoints = tuple(
        replace(waypoint, status=status, metrics=metrics, arrays=arrays)
        for waypoint in result.waypoints
        for status, metrics, arrays in [_finite(waypoint.status, waypoint.steps, waypoint.metrics, waypoint.arrays)]
    )
    steps = result.spec.total_steps
    status, metrics, arrays = _finite(result.status, steps, result.metrics, result.arrays)
    return replace(result, status=status, metrics=metrics, arrays=arrays, waypoints=waypoints)


def _finite(
    status: str, steps: int, metrics: dict[str, float], arrays: dict[str, NDArray[Any]]
) -> tuple[str, dict[str, float], dict[str, NDArray[Any]]]:
    blown = any(not math.isfinite(metrics[name]) for name in LIKELIHOODS if name in metrics)
    if blown:
        status, metrics = (str(Status(steps)) if Status.of(status).is_finished else status), {}
    kept = {name: array for name, array in arrays.items() if name.startswith(HISTORY) or not blown}
    # A curve ends where it stops being one.
    columns = [array for name, array in kept.items() if name.startswith(HISTORY) and name != SECONDS]
    rows = min((len(column) for column in columns), default=0)
    sound = np.logical_and.reduce([np.isfinite(column[:rows]) for column in columns]) if columns else np.ones(0, bool)
    length = None if sound.all() else int(np.argmin(sound))
    arrays = {
        name: array[:length] if name.startswith(HISTORY) else array
        for name, array in kept.items()
        if name.startswith(HISTORY) or array.dtype.kind != "f" or bool(np.isfinite(array).all())
    }
    return status, {name: value for name, value in metrics.items() if math.isfinite(value)}, arrays


def _known_provenance(folder: Path) -> dict[str, Any]:
    """What is told of runs that came out before; nothing where that is missing or damaged."""
    with suppress(UserError):
        told = read_sealed(folder / PROVENANCE, WRITE_AGAIN)
        if all(isinstance(facts, dict) for facts in told.values()):
            return told
    return {}


def _arrays_of(result: RunResult) -> dict[str, NDArray[Any]]:
    """A run's arrays as they are kept, those of its waypoints too."""
    arrays = _packed({name: array for name, array in result.arrays.items() if name != SECONDS})
    for waypoint in result.waypoints:
        arrays |= {f"waypoints/{waypoint.steps}/{name}": array for name, array in _packed(waypoint.arrays).items()}
    return arrays


def _digest_of(numbers: Any, arrays: dict[str, NDArray[Any]]) -> str:
    """Names a run's numbers: all that is kept of it but its provenance."""
    sha256 = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha256.update(f"{name} {array.dtype} {array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()[:16]


def _provenance_of(result: RunResult, numbers: str) -> dict[str, Any]:
    return {
        NUMBERS: numbers,
        "training": result.training,
        "evaluation": _varying(result.evaluation),
        "waypoints": {str(waypoint.steps): _varying(waypoint.evaluation) for waypoint in result.waypoints},
        SECONDS: [round(float(value), 1) for value in result.arrays.get(SECONDS, [])],
    }


def _lasting(evaluation: EvaluationFacts) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key not in VARYING}


def _varying(evaluation: EvaluationFacts) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key in VARYING}


def _packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays in the room that they are worth: the paper scale's results of a run take 150 kB at most."""
    packed = {name: _coarse(array) if name in COARSE else array for name, array in arrays.items()}
    for name in packed:
        if name.startswith(HISTORY) and name != STEPS:
            packed[name] = packed[name].astype(np.float32)
    if SAMPLES in arrays:
        grey = np.rint(GREY_LEVELS * arrays[SAMPLES]).astype(np.uint8)
        packed[SAMPLES] = grey * np.uint8(255 // GREY_LEVELS)
    if LOG_P in arrays and _fits(arrays[LOG_P]) and _fits(arrays.get(BOUND, np.zeros(1))):
        planes = packed[LOG_P] = _planes(arrays[LOG_P])
        if BOUND in arrays:
            # Their difference is known to fewer digits.
            packed[BOUND] = _planes(_values(planes) - arrays[BOUND])
    return packed


def _coarse(values: NDArray[Any]) -> NDArray[np.float16]:
    """Values in half precision, rounded to eight significant bits; what is not finite stays as it is."""
    half = values.astype(np.float16)
    bits = half.view(np.uint16)
    rounded = ((bits + COARSE_STEP // 2) // COARSE_STEP * COARSE_STEP).astype(np.uint16).view(np.float16)
    return np.where(np.isfinite(rounded), rounded, half)


def _fits(nats: NDArray[Any]) -> bool:
    """Whether these are numbers that steps can count; else they are kept as they are."""
    return bool(np.isfinite(nats).all() and (np.abs(nats) < 2**20).all())


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    unpacked = dict(arrays)
    if SAMPLES in unpacked:
        unpacked[SAMPLES] = (unpacked[SAMPLES] / 255).astype(np.float32)
    if LOG_P in unpacked and unpacked[LOG_P].dtype == np.uint8:
        unpacked[LOG_P] = _values(unpacked[LOG_P])
        if BOUND in unpacked:
            unpacked[BOUND] = unpacked[LOG_P] - _values(unpacked[BOUND])
    return unpacked


def _planes(nats: NDArray[Any]) -> NDArray[np.uint8]:
    """Nats [n] in steps of `NATS_STEP`, as the four bytes of an integer, [4, n]: byte by byte they compress best."""
    steps = np.rint(np.asarray(nats, dtype=np.float64) / NATS_STEP).astype("<i4")
    return np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 4).T)


def _values(planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `_planes`, to a step."""
    steps = np.ascontiguousarray(planes.T).view("<i4").reshape(-1)
    return (steps * NATS_STEP).astype(np.float32)


def load_results(root: Path) -> list[RunResult]:
    """Every result under `reports/<scale>/results` of a run that its scale takes no further, ordered by cohort and as
    the cohort lists its runs."""
    return [result for result in _load_all(root) if not result.is_under_way]


def load_under_way(root: Path) -> list[RunResult]:
    """The runs that are not as deep as their scale takes them, as they were where they were last evaluated."""
    return [result for result in _load_all(root) if result.is_under_way]


def _load_all(root: Path) -> list[RunResult]:
    return [result for path in sorted(root.glob(f"*/{RUNS}")) for result in cohort_results(path.parent)]


def in_grid(results: Iterable[RunResult], cohorts: Iterable[CohortSpec]) -> tuple[list[RunResult], list[str]]:
    """The results that the grid asks for, and the cells of the others.

    The grid is the truth: what was trained under a name or with settings that it does not have now is nobody's result.
    """
    asked = {f"{cohort.key}/{run.name}": run for cohort in cohorts for run in cohort.runs}
    known, others = [], []
    for result in results:
        run = asked.get(result.cell)
        if run is not None and _is_of(result, run):
            known.append(result)
        else:
            others.append(result.cell)
    return known, others


def _is_of(result: RunResult, run: RunSpec) -> bool:
    """Whether it is the run's, at its depth or on the way there, on whatever device it was computed."""
    at_depth = replace(result.spec, max_steps=run.max_steps)
    planned = result.planned_steps or result.spec.total_steps
    same = at_depth in (run, as_computed(run, "cpu")) and planned == run.total_steps
    return same and result.spec.total_steps <= run.total_steps


def told_apart(folder: Path, others: Sequence[str]) -> str:
    """A sentence on the results in `folder` that the grid does not ask for."""
    few = ", ".join(others[:NAMED_CELLS]) + (f" and {len(others) - NAMED_CELLS} more" if others[NAMED_CELLS:] else "")
    return (
        f"{folder}: not in the grid of {HERE.cohorts}/, so left out: {few};"
        " evaluate them again, or remove them: python -m stages.prune"
    )


def load_result(folder: Path, name: str) -> RunResult:
    """One run of the cohort whose summaries are in `folder`.

    Raises: UserError naming what is there when it has no such run.
    """
    if not (folder / RUNS).exists():
        there = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{RUNS}"))) or "none"
        raise UserError(f"{folder}: no results of such a cohort; known beside it: {there}")
    results = {result.spec.name: result for result in cohort_results(folder)}
    if name not in results:
        raise UserError(f"{folder}: has no run {name!r}; known: {', '.join(results)}")
    return results[name]


def cohort_results(folder: Path) -> list[RunResult]:
    """Raises: UserError naming the file that is missing or not what was written."""
    key = f"{folder.parents[1].name}/{folder.name}"
    remedy = f"run `python -m stages.evaluate {key}`, or `git checkout {folder}` where the results are committed"
    check_sums(folder, RESULT_FILES, remedy)
    with content_of(folder / RUNS, "the results of a cohort", remedy):
        return [_sound(result) for result in _results(folder, remedy)]


def _results(folder: Path, remedy: str) -> list[RunResult]:
    runs, metrics = read_object(folder / RUNS, remedy), read_object(folder / METRICS, remedy)
    # Results of before there were waypoints have all in one file.
    all_in_one = all("training" in run for run in runs.values())
    provenance = runs if all_in_one else read_sealed(folder / PROVENANCE, remedy)
    if provenance.keys() != runs.keys():
        raise UserError(f"{folder / PROVENANCE}: is not of the runs of {RUNS}; {remedy}")
    waypoints = read_object(folder / WAYPOINTS, remedy) if (folder / WAYPOINTS).exists() else {}
    arrays = read_arrays(folder / ARRAYS, remedy)
    results = []
    for name, run in runs.items():
        keys = {key.removeprefix(f"{name}/"): key for key in arrays if key.startswith(f"{name}/")}
        run_arrays = {short: arrays[key] for short, key in keys.items()}
        # Each part is taken apart under its own file's name, which a message then gives.
        with content_of(folder / WAYPOINTS, "the waypoints of a cohort", remedy):
            lasting = {str(at["steps"]): _of_waypoint(at) for at in waypoints.get(name, [])}
        with content_of(folder / (RUNS if all_in_one else PROVENANCE), "the provenance of a cohort", remedy):
            told = provenance[name]
            training: Any = {**told["training"]}
            varying: Any = {**told["evaluation"]}
            varying_at: Any = {steps: {**told["waypoints"][steps]} for steps in lasting}
            if told.get(SECONDS):
                run_arrays[SECONDS] = np.array(told[SECONDS], dtype=np.float64)
        with content_of(folder / METRICS, "the metrics of a cohort", remedy):
            values = _numbers(metrics.get(name, {}))
        series = []
        for steps, waypoint in lasting.items():
            start = f"waypoints/{steps}/"
            arrays_at = {k.removeprefix(start): a for k, a in run_arrays.items() if k.startswith(start)}
            facts: Any = {**waypoint.evaluation, **varying_at[steps]}
            series.append(replace(waypoint, evaluation=facts, arrays=_unpacked(arrays_at)))
        results.append(
            RunResult(
                cohort=run["cohort"],
                experiment=run["experiment"],
                spec=RunSpec.from_json(run["spec"]),
                digest=run["digest"],
                status=run["status"],
                training=training,
                evaluation=run["evaluation"] | varying,
                metrics=values,
                arrays=_unpacked({k: a for k, a in run_arrays.items() if not k.startswith("waypoints/")}),
                waypoints=tuple(series),
                planned_steps=run.get("planned_steps", 0),
            )
        )
    return results


def _of_waypoint(at: dict[str, Any]) -> Waypoint:
    """A waypoint as its entry tells, without its arrays and what varies."""
    Status.of(at["status"])
    facts: Any = {**at["evaluation"]}
    return Waypoint(at["steps"], at["epochs"], at["status"], facts, _numbers(at["metrics"]), {})


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics. Raises: TypeError or AttributeError where these are not numbers by name."""
    for value in metrics.values():
        math.isfinite(value)
    return metrics
