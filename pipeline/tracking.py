"""MLflow as a view of the results: a store under `.mlflow/` that can be deleted and rebuilt at any time.

`LiveTracker` shows runs while they train, `publish` makes the store agree with the results of one scale. Both know a
run by its cell (`<cohort>/<run>`) and its digest, so that no run is ever there twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.results import RunResult
from pipeline.spec import CohortSpec, RunSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from PIL.Image import Image

STORE = ".mlflow"
VIEW, VIEW_NAME = "comparison", "Objectives against the test NLL"
NOTE = "mlflow.note.content"
CURVES = ("bound", "elbo", "iwae", "reconstruction")
CURVE_POINTS = 200
ACTIVE_THRESHOLD = 0.01
METRICS_PER_CALL = 1000
LOCK_SECONDS = 120

# Tags by which `publish` and `LiveTracker` recognise what they find in the store.
CELL, COHORT, SCALE, DIGEST = "cell", "cohort", "scale", "digest"
CURVE = "curve"
"""`complete` once a live run's whole training curve is in the store."""
COMPLETE = "complete"
"""Fingerprint of the published content; set last, so that an interrupted publication is never taken for a whole one."""

FINAL_METRICS = ("nll", "nll_se", "nll_pruned", "iwae_64", "kl_q_p", "ess_64", "active_units_1", "active_units_2")


@dataclass(frozen=True)
class Counts:
    """What `publish` did: runs newly published, left as they were, and deleted."""

    created: int
    kept: int
    removed: int


# What a run looks like in MLflow


def experiment_name(scale: str, dataset: str) -> str:
    return f"{scale}/{dataset}"


def run_name(spec: RunSpec) -> str:
    """`iwae-M1-K50-1L-s0`; a continued run also says what it continues: `... after vae-M1-K1`."""
    suffix = f"-s{spec.seed}"
    name = f"{spec.name.removesuffix(suffix)}-{spec.layers}L{suffix}"
    if spec.continues is None:
        return name
    return f"{name} after {spec.continues.rpartition('/')[2].removesuffix(suffix)}"


def vae_weight(spec: RunSpec) -> float | None:
    """CIWAE's beta, of which VAE and IWAE are the ends, so that all can stand on one axis; None for Renyi's bounds."""
    if spec.objective.startswith("vr"):
        return None
    return spec.parameter if spec.objective == "ciwae" else float(spec.objective == "vae")


def run_params(spec: RunSpec) -> dict[str, str]:
    """Numbers as numbers; `beta` is the weight of the VAE's bound in the objective, which all but VR have."""
    # torch takes seconds to import, which opening the store alone should not pay.
    from pipeline.objectives import OBJECTIVES

    known = OBJECTIVES.get(spec.objective)
    params = {
        "objective": spec.objective,
        "M": spec.M,
        "K": spec.K,
        "T": spec.T,
        "beta": vae_weight(spec),
        (known and known.parameter) or "parameter": spec.parameter,
        "layers": spec.layers,
        "seed": spec.seed,
        "protocol": spec.protocol_name,
        "max_steps": spec.max_steps,
        "total_steps": spec.total_steps,
        "precision": spec.precision,
    }
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in params.items()
        if value is not None
    }


def run_tags(
    cohort: str, experiment: str, spec: RunSpec, digest: str, dvc_stage: str | None, git_revision: str | None
) -> dict[str, str]:
    tags = {
        SCALE: cohort.partition("/")[0],
        "experiment": experiment,
        COHORT: cohort,
        CELL: f"{cohort}/{spec.name}",
        "objective": spec.objective,
        "dataset": spec.dataset,
        "layers": str(spec.layers),
        DIGEST: digest,
        "dvc.stage": dvc_stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "stages/train.py",
        "mlflow.source.git.commit": git_revision,
    }
    return {name: value for name, value in tags.items() if value is not None}


def final_metrics(result: RunResult, paper: float | None) -> dict[str, float]:
    """The numbers of the evaluation under `test/`, and the published one, where there is one, under `paper/`."""
    ours = result.metrics
    values = {f"test/{name}": ours[name] for name in FINAL_METRICS if name in ours}
    units = [ours[name] for name in ("active_units_1", "active_units_2") if name in ours]
    if units:
        values["test/active_units"] = sum(units)
    if paper is not None:
        values["paper/nll"] = paper
        if "nll" in ours:
            values["paper/delta"] = ours["nll"] - paper
    return {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}


def thin_rows(
    rows: Iterable[Mapping[str, float]], total_steps: int, after_step: float = -1
) -> list[Mapping[str, float]]:
    """The first row in each of `CURVE_POINTS` equal stretches of the schedule, and its last step.

    Which rows are taken depends on their steps alone, so that a curve logged piece by piece equals one logged whole;
    `after_step` is the step of the row taken last.
    """
    taken = []
    last = math.floor(after_step * CURVE_POINTS / total_steps)
    for row in rows:
        stretch = math.floor(row["step"] * CURVE_POINTS / total_steps)
        if stretch > last:
            taken.append(row)
            last = stretch
    return taken


def history_rows(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, float]]:
    """The arrays `history/*` as the rows that a `LiveTracker` gets."""
    columns = {name.removeprefix("history/"): array for name, array in arrays.items() if name.startswith("history/")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(a.tolist() for a in columns.values()), strict=True)]


def fingerprint(result: RunResult, metrics: dict[str, float]) -> str:
    """Changes whenever a published number does, be it ours or the paper's."""
    note = run_description(result, metrics)
    content = [run_name(result.spec), run_params(result.spec), metrics, result.evaluation.get("digest"), note]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def sample_grid(samples: NDArray[Any]) -> Image:
    """100 samples of 28 x 28 pixels as a 10 x 10 picture at twice their size."""
    from PIL import Image

    pixels = np.rint(255 * samples.reshape(10, 10, 28, 28).transpose(0, 2, 1, 3).reshape(280, 280)).astype(np.uint8)
    return Image.fromarray(pixels).resize((560, 560), Image.Resampling.NEAREST)


def variance_histogram(variances: Mapping[str, NDArray[Any]]) -> Figure:
    """Histogram of each layer's log10 Var(E[h|x]), one unit one count, with the threshold of an active unit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    logs = {name: np.log10(np.maximum(values, 1e-12)) for name, values in variances.items()}
    low = min(float(values.min()) for values in logs.values())
    high = max(float(values.max()) for values in logs.values())
    edges = np.linspace(low - 0.1, high + 0.1, 41)
    for name, values in logs.items():
        axes.hist(values, bins=edges.tolist(), alpha=0.6, label=name)
    threshold = math.log10(ACTIVE_THRESHOLD)
    axes.axvline(threshold, color="black", linestyle="--", label=f"active above {ACTIVE_THRESHOLD}")
    axes.set(xlabel="log10 variance over images of a unit's posterior mean", ylabel="units")
    axes.legend()
    return figure


def description(scale: str, dataset: str) -> str:
    """What the page of one MLflow experiment says on top, in Markdown; its first line also stands in their list."""
    return (
        f"{dataset} at scale {scale}: runs of Burda et al. (2016) and Rainforth et al. (2018).\n"
        "\n- `test/nll`: negative log-likelihood in nats, lower is better; `test/nll_se`: its standard error\n"
        "- `paper/nll`: the published value, `paper/delta`: ours minus the paper's\n"
        "- `test/active_units`: latent units with variance above 0.01; `test/kl_q_p`: -KL(Q||P)\n"
        "- `train/*`: per-image averages over training, in nats\n"
        "- `beta`: weight of the VAE's bound: 1 for VAE, 0 for IWAE, MIWAE and PIWAE, between for CIWAE\n\n"
        f"Under *Views*, {VIEW_NAME!r} has the charts to begin with. Tick runs and press *Compare*, "
        "or group by the tag `objective` or the param `K`. "
        f"Tables with the papers' numbers: `reports/{scale}/index.html`."
    )


def run_description(result: RunResult, metrics: Mapping[str, float]) -> str:
    """What a run's page says: its cell and how to make it, its NLL beside the paper's, where to read on."""
    lines = [f"Cell `{result.cell}`, made by `dvc repro evaluate@{result.cohort}`: {result.status}."]
    if "test/nll" in metrics:
        paper = "no published value"
        if "paper/nll" in metrics:
            paper = f"the paper {metrics['paper/nll']:.2f}, ours minus the paper's {metrics['paper/delta']:+.2f}"
        error = f" ± {metrics['test/nll_se']:.2f}" if "test/nll_se" in metrics else ""
        lines.append(f"Test NLL {metrics['test/nll']:.2f}{error} nats; {paper}.")
    lines.append(
        f"Beside all other cells: `reports/{result.scale}/index.html`; every number: the artifact `result.json`."
    )
    return "\n\n".join(lines)


def comparison_view() -> str:
    """A view of an experiment's runs as MLflow's page itself saves one: columns, and charts in two sections.

    MLflow has no call for this; the page keeps a view as an experiment's tag, and one that it cannot read does no harm.
    """
    sections = {"compare": "Objectives against the test NLL", "train": "Training"}
    shared = {"runsCountToCompare": 10, "deleted": False, "isGenerated": False}
    parallel = {
        **shared,
        "uuid": "parallel",
        "type": "PARALLEL",
        "metricSectionId": "compare",
        "displayName": "test NLL by objective, M, K, beta, layers",
        "selectedParams": ["objective", "M", "K", "beta", "layers"],
        "selectedMetrics": ["test/nll"],
        "showAllRuns": True,
    }
    bars = [
        {**shared, "uuid": metric, "type": "BAR", "metricSectionId": "compare", "metricKey": metric}
        for metric in ("test/nll", "paper/delta", "test/active_units", "test/kl_q_p")
    ]
    curves = [
        {
            **shared,
            "uuid": f"train/{name}",
            "type": "LINE",
            "metricSectionId": "train",
            "metricKey": f"train/{name}",
            "selectedMetricKeys": [f"train/{name}"],
            "lineSmoothness": 0,
            "xAxisScaleType": "log",
            "scaleType": "linear",
            "range": {},
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "ignoreOutliers": False,
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": True,
        }
        for name in CURVES
    ]
    columns = [f"params.`{name}`" for name in ("objective", "M", "K", "beta", "layers", "seed")]
    columns += [f"metrics.`{name}`" for name in ("test/nll", "paper/nll", "paper/delta", "test/active_units")]
    state = {
        "searchFilter": "",
        # The charts start with the first ten runs: ordered by cell these are the ten of Burda's table 1.
        "orderByKey": f"tags.`{CELL}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": [parallel, *bars, *curves],
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
            for uuid, name in sections.items()
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": VIEW_NAME, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


# The store


def store_uri(root: Path) -> str:
    return f"sqlite:///{(root / STORE / 'mlflow.db').resolve()}"


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def locked_store(root: Path) -> Iterator[MlflowClient]:
    """The store under `root`, created on first use, with no other process changing its experiments meanwhile.

    Raises: UserError when the store cannot be made or used.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = (root / STORE).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # MLflow's own creation of a database fails when two processes begin it at once.
        with FileLock(folder / "lock", timeout=LOCK_SECONDS):
            client = MlflowClient(tracking_uri=store_uri(root), registry_uri=store_uri(root))
            # MLflow makes an experiment "Default" in every new store.
            if client.get_experiment("0").lifecycle_stage == "active":
                client.delete_experiment("0")
            yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"{folder}: MLflow cannot use its store ({_one_line(error)}); see that the disk has room, or delete "
            "this folder and run again: it is rebuilt from the results"
        ) from error


def _artifact_location(root: Path, experiment: str) -> str:
    return (root / STORE / "artifacts" / experiment).resolve().as_uri()


def _experiment_id(client: MlflowClient, root: Path, scale: str, dataset: str) -> str:
    """The experiment of a scale and dataset, made or brought up to date."""
    name = experiment_name(scale, dataset)
    found = client.get_experiment_by_name(name)
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        NOTE: description(scale, dataset),
        f"mlflow.sharedViewState.{VIEW}": comparison_view(),
    }
    if found is None:
        return str(client.create_experiment(name, _artifact_location(root, name), tags))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _runs_of_scale(client: MlflowClient, root: Path, scale: str) -> list[Run]:
    experiments = client.search_experiments(filter_string=f"name LIKE '{scale}/%'")
    if any(found.artifact_location != _artifact_location(root, found.name) for found in experiments):
        raise UserError(
            f"{(root / STORE).resolve()}: this MLflow store was made in another place and keeps that place's paths; "
            "delete this folder and run again: it is rebuilt from the results"
        )
    ids = [found.experiment_id for found in experiments]
    return list(client.search_runs(ids, f"tags.{SCALE} = '{scale}'", max_results=50000)) if ids else []


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def _log_params(client: MlflowClient, run_id: str, spec: RunSpec) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, value) for name, value in run_params(spec).items()])


def _curve_metrics(rows: Iterable[Mapping[str, float]], started: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(f"train/{name}", row[name], started + int(1000 * row["seconds"]), int(row["step"]))
        for row in rows
        for name in CURVES
        if math.isfinite(row[name])
    ]


# Publishing results


def publish(
    root: Path,
    results: list[RunResult],
    paper_nll: Callable[[RunResult], float | None],
    known_cells: Collection[str],
    on_run: Callable[[], None] = lambda: None,
) -> Counts:
    """Make the store agree with `results`, all of one scale; a second call with the same results changes nothing.

    Runs of the scale that are not in `results` go, except those of a cohort that has no results yet (it may be
    training just now) and whose cells are among `known_cells`, the cells of the scale that are still in the grid.
    `on_run()` is called for each result as its turn comes.

    Raises: UserError when the store cannot be used.
    """
    if not results:
        return Counts(0, 0, 0)
    metrics = {result.cell: final_metrics(result, paper_nll(result)) for result in results}
    prints = {result.cell: fingerprint(result, metrics[result.cell]) for result in results}
    with locked_store(root) as client:
        stored = _runs_of_scale(client, root, results[0].scale)
        usable, surplus = _sort_out(stored, results, prints, known_cells)
        for run in surplus:
            client.delete_run(run.info.run_id)
        for dataset in {result.spec.dataset for result in results}:
            _experiment_id(client, root, results[0].scale, dataset)
        pending = {r.cell for r in results if r.cell not in usable or COMPLETE not in usable[r.cell].data.tags}
        for result in results:
            on_run()
            if result.cell not in pending:
                continue
            run_id = usable[result.cell].info.run_id if result.cell in usable else _recreate(client, root, result)
            _complete(client, run_id, result, metrics[result.cell])
            client.set_tag(run_id, COMPLETE, prints[result.cell])
    return Counts(created=len(pending), kept=len(results) - len(pending), removed=len(surplus))


def _sort_out(
    stored: list[Run], results: list[RunResult], prints: Mapping[str, str], known_cells: Collection[str]
) -> tuple[dict[str, Run], list[Run]]:
    """Split what is stored into the run to keep or complete for each cell, and those to delete; the rest stays."""
    wanted = {result.cell: result for result in results}
    cohorts = {result.cohort for result in results}
    usable: dict[str, Run] = {}
    surplus: list[Run] = []
    for run in sorted(stored, key=lambda run: COMPLETE not in run.data.tags):
        cell = run.data.tags[CELL]
        result = wanted.get(cell)
        if result is None:
            if run.data.tags[COHORT] in cohorts or cell not in known_cells:
                surplus.append(run)
        elif cell not in usable and _matches(run, result, prints[cell]):
            usable[cell] = run
        else:
            surplus.append(run)
    return usable, surplus


def _matches(run: Run, result: RunResult, wanted: str) -> bool:
    """Whether the run shows this very result, or is its live run with a whole curve."""
    tags = run.data.tags
    if tags[DIGEST] != result.digest:
        return False
    if COMPLETE in tags:
        return bool(tags[COMPLETE] == wanted)
    # A live run that began after training had finished only repeats an old curve and would get a negative duration.
    return tags.get(CURVE) == "complete" and run.info.start_time <= _milliseconds(result.training["finished"])


def _recreate(client: MlflowClient, root: Path, result: RunResult) -> str:
    """A new run with all that a live one would have."""
    spec, training = result.spec, result.training
    started = _milliseconds(training["started"])
    stage = f"{'train' if spec.continues is None else 'continue'}@{result.cohort}"
    tags = run_tags(result.cohort, result.experiment, spec, result.digest, stage, training.get("git_revision"))
    experiment = _experiment_id(client, root, result.scale, spec.dataset)
    run_id = str(client.create_run(experiment, started, tags, run_name(spec)).info.run_id)
    _log_params(client, run_id, spec)
    rows = thin_rows(history_rows(result.arrays), spec.total_steps)
    _log_metrics(client, run_id, _curve_metrics(rows, started))
    return run_id


def _complete(client: MlflowClient, run_id: str, result: RunResult, metrics: dict[str, float]) -> None:
    """Add what is known after evaluation. Times are those of the training, so doing it twice adds nothing."""
    from mlflow.entities import Metric

    finished = _milliseconds(result.training["finished"])
    _log_metrics(client, run_id, [Metric(name, value, finished, 0) for name, value in metrics.items()])
    _log_dataset(client, run_id, result)
    summary = {
        "cell": result.cell,
        "status": result.status,
        "digest": result.digest,
        "metrics": result.metrics,
        "training": result.training,
        "evaluation": result.evaluation,
        "spec": result.spec.to_json(),
    }
    client.log_text(run_id, json.dumps(summary, indent=1, sort_keys=True), "result.json")
    if "samples" in result.arrays:
        client.log_image(run_id, sample_grid(result.arrays["samples"]), "samples.png")
    layers = {1: "unit_variance_1", 2: "unit_variance_2"}
    variances = {f"layer {i}": result.arrays[name] for i, name in layers.items() if name in result.arrays}
    if variances:
        client.log_figure(run_id, variance_histogram(variances), "unit_variance.png")
    client.set_tag(run_id, NOTE, run_description(result, metrics))
    client.set_tag(run_id, "status", result.status)
    client.set_terminated(run_id, _mlflow_status(result.status), finished)


def _mlflow_status(status: str) -> str:
    return "FAILED" if status.startswith("diverged") else "FINISHED"


def _log_dataset(client: MlflowClient, run_id: str, result: RunResult) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = result.training["data"]
    source = json.dumps(data, sort_keys=True)
    dataset = Dataset(name=result.spec.dataset, digest=data["digest"][:16], source_type="local", source=source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


# Showing runs while they train


@dataclass
class _LiveRun:
    run_id: str
    total_steps: int
    started: int
    last_step: float = -1


class LiveTracker:
    """Shows the runs of one cohort in MLflow while they train.

    Best effort: when MLflow fails, one line on stderr says so, every later call does nothing, and `publish` puts the
    finished runs into the store. A run whose curve is in the store already is left alone; what an interrupted attempt
    left behind is deleted and started again, so the caller passes the rows of a resumed run from the beginning.
    """

    def __init__(
        self,
        root: Path,
        cohort: CohortSpec,
        digests: Mapping[str, str],
        dvc_stage: str | None,
        git_revision: str | None,
    ) -> None:
        """`digests`: by run name, of the runs that are to be trained; the cohort's other runs are left alone."""
        self._runs: dict[str, _LiveRun] = {}
        with self._best_effort(), locked_store(root) as client:
            self._client = client
            stored = _runs_of_scale(client, root, cohort.scale)
            for spec in (spec for spec in cohort.runs if spec.name in digests):
                earlier = [run for run in stored if run.data.tags[CELL] == f"{cohort.key}/{spec.name}"]
                if any(_has_curve(run) and run.data.tags[DIGEST] == digests[spec.name] for run in earlier):
                    continue
                for run in earlier:
                    if not _has_curve(run):
                        client.delete_run(run.info.run_id)
                tags = run_tags(cohort.key, cohort.experiment, spec, digests[spec.name], dvc_stage, git_revision)
                experiment = _experiment_id(client, root, cohort.scale, spec.dataset)
                now = int(time.time() * 1000)
                run = client.create_run(experiment, now, {**tags, "status": "training"}, run_name(spec))
                _log_params(client, run.info.run_id, spec)
                self._runs[spec.name] = _LiveRun(run.info.run_id, spec.total_steps, now)

    def log(self, run_name: str, rows: list[dict[str, float]]) -> None:
        """Add points to a run's curves; rows have the columns of the training history, in the order of their steps."""
        run = self._runs.get(run_name)
        if run is None:
            return
        with self._best_effort():
            taken = thin_rows(rows, run.total_steps, run.last_step)
            if taken:
                _log_metrics(self._client, run.run_id, _curve_metrics(taken, run.started))
                run.last_step = taken[-1]["step"]

    def finish(self, run_name: str, status: str) -> None:
        """Training of the run is over and all its rows were passed; `status` as in `RunResult`."""
        run = self._runs.pop(run_name, None)
        if run is None:
            return
        with self._best_effort():
            self._client.set_tag(run.run_id, "status", status)
            self._client.set_terminated(run.run_id, _mlflow_status(status))
            self._client.set_tag(run.run_id, CURVE, "complete")

    def close(self) -> None:
        """Mark the runs that are not finished as interrupted."""
        unfinished, self._runs = self._runs, {}
        with self._best_effort():
            for run in unfinished.values():
                self._client.set_tag(run.run_id, "status", "interrupted")
                self._client.set_terminated(run.run_id, "KILLED")

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._runs = {}
            print(
                f"MLflow: no live curves ({_one_line(error)}); training goes on, its results are published afterwards",
                file=sys.stderr,
            )


def _has_curve(run: Run) -> bool:
    return COMPLETE in run.data.tags or run.data.tags.get(CURVE) == "complete"
