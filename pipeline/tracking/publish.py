"""Making MLflow's store agree with the results of one scale. It is a view: it may be deleted and rebuilt any time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipeline.files import MALFORMED, remove, sha256_file
from pipeline.records.results import RunResult
from pipeline.tracking.curves import curve_metrics, saved_rows, thin_rows
from pipeline.tracking.labels import (
    CELL,
    COHORT,
    COLOUR,
    COMPLETE,
    DIGEST,
    LOGGED_FILES,
    NOTE,
    content_fingerprint,
    final_metrics,
    run_description,
    run_tags,
    run_title,
    schedule,
    waypoint_metrics,
)
from pipeline.tracking.live import mlflow_status
from pipeline.tracking.pictures import figures, pixel_pictures
from pipeline.tracking.store import experiment_id, locked_store, log_metrics, runs_of_scale, start_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SUMMARY = "result.json"
"""The artifact with every number of a run."""


@dataclass(frozen=True)
class Publication:
    """What `publish` did: runs newly published, left as they were, and published earlier but deleted now."""

    created: int
    kept: int
    removed: int


def publish(
    root: Path,
    results: list[RunResult],
    paper_nll: Callable[[RunResult], float | None],
    known_cells: Collection[str],
    on_run: Callable[[], None] = lambda: None,
) -> Publication:
    """Make the store agree with `results`, all of one scale; a second call with the same results changes nothing.

    A run is known by its cell (`<cohort>/<run>`) and its digest, so that none is there twice. Live runs of `results`
    are replaced by the finished ones. Runs of the scale that are not in `results` go, except those of a cohort that has
    no results yet (it may be training just now) and whose cells are among `known_cells`, the cells of the scale that
    are still in the grid. `on_run()` is called for each result as its turn comes.

    Raises: UserError when the store cannot be used.
    """
    if not results:
        return Publication(0, 0, 0)
    metrics = {result.cell: final_metrics(result, paper_nll(result)) for result in results}
    prints = {result.cell: content_fingerprint(result, metrics[result.cell]) for result in results}
    scale = results[0].scale
    with locked_store(root) as client:
        kept, surplus = _sort_out(runs_of_scale(client, root, scale), results, prints, known_cells)
        for run in surplus:
            client.delete_run(run.info.run_id)
            # MLflow keeps what a deleted run logged, in a folder within the run's own.
            logged = _artifacts(run)
            remove(logged.parent if logged.parent.name == run.info.run_id else logged)
        experiments = {
            dataset: experiment_id(client, root, scale, dataset, schedules)
            for dataset, schedules in schedules_by_dataset(results).items()
        }
        for result in results:
            on_run()
            if result.cell in kept:
                continue
            run_id = _create(client, experiments[result.spec.dataset], result, metrics[result.cell])
            client.set_tag(run_id, LOGGED_FILES, json.dumps(_sums(_artifacts(client.get_run(run_id)))))
            client.set_tag(run_id, COMPLETE, prints[result.cell])
    removed = sum(COMPLETE in run.data.tags for run in surplus)
    return Publication(created=len(results) - len(kept), kept=len(kept), removed=removed)


def schedules_by_dataset(results: list[RunResult]) -> dict[str, list[str]]:
    """Dataset -> the schedules of its runs, that of most runs first."""
    run_counts: dict[str, dict[str, int]] = {}
    for result in results:
        counts = run_counts.setdefault(result.spec.dataset, {})
        counts[schedule(result.spec)] = counts.get(schedule(result.spec), 0) + 1
    return {dataset: sorted(counts, key=lambda name: (-counts[name], name)) for dataset, counts in run_counts.items()}


def _sort_out(
    stored: list[Run], results: list[RunResult], prints: Mapping[str, str], known_cells: Collection[str]
) -> tuple[set[str], list[Run]]:
    """The cells whose stored run shows the result as it is, and the runs to delete; the rest stays."""
    wanted = {result.cell: result for result in results}
    cohorts = {result.cohort for result in results}
    kept: set[str] = set()
    surplus: list[Run] = []
    for run in stored:
        tags = run.data.tags
        if CELL not in tags:
            continue  # Somebody else's.
        result = wanted.get(tags[CELL])
        if result is None:
            if tags.get(COHORT) in cohorts or tags[CELL] not in known_cells:
                surplus.append(run)
        elif (
            result.cell not in kept
            and tags.get(DIGEST) == result.digest
            and tags.get(COMPLETE) == prints[result.cell]
            and _is_whole(run)
        ):
            kept.add(result.cell)
        else:
            surplus.append(run)
    return kept, surplus


def _artifacts(run: Run) -> Path:
    """The folder of what a run logged."""
    return Path(unquote(urlsplit(run.info.artifact_uri).path))


def _sums(folder: Path) -> dict[str, str]:
    """By name, the beginning of the SHA-256 of each file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path)[:16] for path in files}


def _is_whole(run: Run) -> bool:
    """Whether a published run's files are as they were logged; somebody may have added others."""
    try:
        told = dict(json.loads(run.data.tags[LOGGED_FILES]))
    except MALFORMED:
        return False
    return SUMMARY in told and told.items() <= _sums(_artifacts(run)).items()


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def run_times(training: Mapping[str, Any]) -> tuple[int, int]:
    """When a run began, and that plus the time it was trained for, in milliseconds; breaks in between do not count.

    Now, where the results do not say.
    """
    if "started" not in training:
        now = int(1000 * time.time())
        return now, now
    started = _milliseconds(training["started"])
    return started, started + round(1000 * training["wall_s"])


def _create(client: MlflowClient, experiment: str, result: RunResult, metrics: dict[str, float]) -> str:
    """A run with all that is known of the result but the tags FILES and COMPLETE."""
    from mlflow.entities import Metric

    from pipeline.reporting.forms.drawing import colour_of

    spec, training = result.spec, result.training
    started, ended = run_times(training)
    stage = f"{'train' if spec.continues is None else 'continue'}@{result.cohort}"
    tags = run_tags(result.cohort, result.experiment, spec, result.digest, stage, training.get("git_revision"))
    tags |= {
        "status": "under way" if result.is_under_way else result.status,
        COLOUR: colour_of(spec.objective),
        NOTE: run_description(result, metrics),
    }
    run_id = start_run(client, experiment, started, tags, run_title(spec, result.experiment), spec)
    # The first metric is what MLflow's comparison of runs begins with.
    log_metrics(client, run_id, [Metric(name, value, ended, 0) for name, value in metrics.items()])
    rows = thin_rows(saved_rows(result.arrays), spec.total_steps)
    log_metrics(client, run_id, curve_metrics(rows, started))
    points = [(step, name, value) for step, values in waypoint_metrics(result) for name, value in values.items()]
    log_metrics(client, run_id, [Metric(name, value, ended, step) for step, name, value in points])
    _log_dataset(client, run_id, result)
    summary = {
        "cell": result.cell,
        "status": result.status,
        "digest": result.digest,
        "metrics": result.metrics,
        "training": training,
        "evaluation": result.evaluation,
        "spec": spec.to_json(),
    }
    client.log_text(run_id, json.dumps(summary, indent=1, sort_keys=True), SUMMARY)
    for name, image in pixel_pictures(result.arrays).items():
        client.log_image(run_id, image, f"{name}.png")
    for name, figure in figures(result.arrays).items():
        client.log_figure(run_id, figure, f"{name}.png")
    client.set_terminated(run_id, mlflow_status(result.status), ended)
    return run_id


def _log_dataset(client: MlflowClient, run_id: str, result: RunResult) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = result.training.get("data")
    if data is None:
        return
    source = json.dumps(data, sort_keys=True)
    dataset = Dataset(name=result.spec.dataset, digest=data["digest"][:16], source_type="local", source=source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
