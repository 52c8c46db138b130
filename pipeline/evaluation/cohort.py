"""Evaluating a cohort's finished runs, one run a process on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import load_dataset
from pipeline.device import Machine
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate_run, evaluation_digest
from pipeline.files import read_json
from pipeline.interruption import stop_requested
from pipeline.results import RunResult
from pipeline.spec import CohortSpec, EvaluationSpec, RunSpec
from pipeline.training.state import HISTORY, HISTORY_COLUMNS, read_run
from pipeline.training.train import Interrupted
from pipeline.workers import run_parallel


@dataclass(frozen=True)
class Finished:
    """A finished run directory and where its evaluation is kept."""

    folder: Path
    content: dict[str, Any]
    evaluation_digest: str
    target: Path
    """`<target>.json` and `<target>.npz`"""

    @property
    def spec(self) -> RunSpec:
        return RunSpec.from_json(self.content["spec"])

    @property
    def diverged(self) -> bool:
        return bool(self.content["status"] != "finished")

    @property
    def waits(self) -> bool:
        """Whether it is still to be evaluated; a diverged run never is."""
        return not self.diverged and not self.target.with_suffix(".json").exists()


def finished_runs(cohort: CohortSpec, training: Path, store: Path, spec: EvaluationSpec) -> list[Finished]:
    """The cohort's run directories under `training`, in its order."""
    found = []
    for run in cohort.runs:
        content = read_run(training / run.name)
        own = evaluation_digest(spec, content["digest"])
        target = store / content["digest"] / f"evaluation-{own}"
        found.append(Finished(training / run.name, content, own, target))
    return found


def _evaluate(
    run: Finished, send: Callable[[str], None], *, data: Path, machine: Machine, spec: EvaluationSpec
) -> None:
    def check() -> None:
        if stop_requested():
            raise Interrupted

    dataset = load_dataset(data)
    evaluate_run(run.folder, run.spec, spec, dataset.train_images, dataset.test_bits, machine.device, run.target, check)
    send(run.spec.name)


def evaluate_cohort(
    runs: list[Finished], data: Path, machine: Machine, spec: EvaluationSpec, on_run: Callable[[str], None]
) -> None:
    """Evaluate the runs that are not in the store yet. `on_run(name)` is called as each one ends.

    Raises: UserError with what went wrong; Stopped after SIGINT or SIGTERM.
    """
    waiting = [run for run in runs if run.waits]
    task = partial(_evaluate, data=data, machine=machine, spec=spec)
    run_parallel(task, waiting, machine.workers, lambda _, name: on_run(name), name=lambda run: run.spec.name)


def read_history(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a history.csv as `history/<column>`.

    Raises: UserError naming the file when it is missing or not a history.
    """
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        return {f"history/{name}": table[:, i] for i, name in enumerate(HISTORY_COLUMNS)}
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a training history ({error}); train the run again") from error


def result_of(cohort: CohortSpec, run: Finished) -> RunResult:
    """A run's summary for reports and tracking, from its run directory and its evaluation in the store."""
    metrics: dict[str, float] = {}
    evaluation: dict[str, Any] = {}
    arrays = read_history(run.folder / HISTORY)
    if not run.diverged:
        stored = read_json(run.target.with_suffix(".json"))
        metrics, evaluation = stored["metrics"], stored["evaluation"]
        with np.load(run.target.with_suffix(".npz")) as archive:
            arrays |= {name: archive[name] for name in archive.files}
    return RunResult(
        cohort=cohort.key,
        experiment=cohort.experiment,
        spec=run.spec,
        digest=run.content["digest"],
        status=run.content["status"],
        training=run.content["training"],
        evaluation={**evaluation, "digest": run.evaluation_digest},
        metrics=metrics,
        arrays=arrays,
    )
