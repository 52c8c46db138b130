"""Results to publish, and what a reader of the store then sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import CohortSpec, RunSpec, Stage
from pipeline.records.results import RunResult
from pipeline.tracking.curves import LOGGED_CURVES, saved_rows
from pipeline.tracking.live import LiveTracker
from pipeline.tracking.publish import Publication, publish
from pipeline.tracking.store import locked_store

ONE, TWO = "quick/burda-table1-mnist-1L-T50", "quick/burda-table1-mnist-1L-T5"
POINTS = 7


def make_spec(name: str, objective: str, M: int, K: int, **changes: Any) -> RunSpec:
    spec = RunSpec(
        name=name,
        objective=objective,
        M=M,
        K=K,
        parameter=None,
        seed=0,
        dataset="mnist",
        latent=(50,),
        train_images=1000,
        protocol_name="published-code",
        protocol=PROTOCOLS["published-code"],
        schedule=(Stage(1, 1e-3), Stage(3, 7.2e-4)),
        max_steps=None,
        precision="float32",
        continues=None,
        algorithm_version=1,
    )
    return replace(spec, **changes)


def make_result(
    cohort: str, spec: RunSpec, digest: str = "d0", evaluation: str = "e0", points: int = POINTS
) -> RunResult:
    rng = np.random.default_rng(len(spec.name))
    steps = np.linspace(0, spec.total_steps, points).astype(int)
    history = {name: -100 + rng.standard_normal(points) for name in LOGGED_CURVES}
    return RunResult(
        cohort=cohort,
        experiment="burda-table1",
        spec=spec,
        digest=digest,
        status="finished",
        training={
            "started": "2030-01-02T03:00:00+00:00",
            "finished": "2030-01-02T03:30:00+00:00",
            "wall_s": 600.25,
            "git_revision": "abc123",
            "data": {"digest": "f00d"},
        },
        evaluation={"digest": evaluation},
        metrics={"nll": 86.5, "nll_se": 0.1, "iwae_64": -87.0, "active_units_1": 19, "ess_64": 0.2},
        arrays={
            "unit_variance_1": rng.gamma(0.3, 1.0, 50),
            "samples": rng.random((100, 784)),
            "history/step": steps,
            "history/epoch": steps / spec.steps_per_epoch,
            "history/learning_rate": np.full(points, 1e-3),
            "history/seconds": steps / 10,
            **{f"history/{name}": values for name, values in history.items()},
        },
    )


def two_cohorts() -> list[RunResult]:
    return [
        make_result(ONE, make_spec("vae-M50-K1-s0", "vae", 50, 1)),
        make_result(ONE, make_spec("iwae-M1-K50-s0", "iwae", 1, 50)),
        make_result(TWO, make_spec("iwae-M1-K5-s0", "iwae", 1, 5)),
    ]


def paper(result: RunResult) -> float | None:
    return 84.78 if result.spec.K == 50 else None


def publish_all(
    root: Path, results: list[RunResult], lookup: Callable[[RunResult], float | None] = paper
) -> Publication:
    return publish(root, results, lookup, {result.cell for result in results})


def stored_runs(root: Path) -> list[Any]:
    with locked_store(root) as client:
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(ids))


def content(root: Path) -> dict[str, Any]:
    """All that a reader of the store can see, without the ids."""
    seen = {}
    for run in stored_runs(root):
        with locked_store(root) as client:
            history = {
                key: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key))
                for key in run.data.metrics
            }
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        artifacts = {file.name: file.read_bytes() for file in folder.glob("*")}
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.loggedImages"}
        times = (run.info.status, run.info.start_time, run.info.end_time)
        inputs = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        seen[run.data.tags["cell"]] = (run.info.run_name, run.data.params, tags, times, history, artifacts, inputs)
    return seen


def cohort_of(results: list[RunResult], key: str) -> CohortSpec:
    runs = tuple(result.spec for result in results if result.cohort == key)
    return CohortSpec("quick", "burda-table1", key.partition("/")[2], runs)


def train_live(root: Path, results: list[RunResult], key: str, finish: bool) -> LiveTracker:
    """Log the runs of a cohort as their training would, in two pieces, or the first piece only."""
    runs = [result for result in results if result.cohort == key]
    tracker = LiveTracker(root, cohort_of(results, key), {r.spec.name: r.digest for r in runs}, "train@x", "abc123")
    for result in runs:
        rows = saved_rows(result.arrays)
        tracker.log(result.spec.name, rows[:3])
        if finish:
            tracker.log(result.spec.name, rows[3:])
            tracker.finish(result.spec.name, result.status)
    return tracker
