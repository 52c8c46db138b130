"""Evaluating a cohort's finished runs: on a CPU each in a process of its own, on a GPU one after the other."""

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
from pipeline.evaluation.classifier import load_reader, reader_path, save_reader
from pipeline.evaluation.evaluate import Labels, evaluate_run, evaluation_digest
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
    spec: RunSpec
    """As the cohort has it: cohorts share runs, and the run directory bears the name that the first one gave it."""
    content: dict[str, Any]
    evaluation_digest: str
    target: Path
    """`<target>.json` and `<target>.npz`"""

    @property
    def diverged(self) -> bool:
        return bool(self.content["status"] != "finished")

    @property
    def is_evaluated(self) -> bool:
        """Nothing is left to compute: its numbers are in the store, or it diverged and has none."""
        return self.diverged or self.target.with_suffix(".json").exists()


def finished_run(folder: Path, run: RunSpec, store: Path, spec: EvaluationSpec) -> Finished:
    """The directory of a cohort's run at `folder`, with its evaluation's place in the store."""
    content = read_run(folder)
    own = evaluation_digest(spec, content["digest"])
    return Finished(folder, run, content, own, store / content["digest"] / f"evaluation-{own}")


def finished_runs(cohort: CohortSpec, training: Path, store: Path, spec: EvaluationSpec) -> list[Finished]:
    """The cohort's run directories under `training`, in its order."""
    return [finished_run(training / run.name, run, store, spec) for run in cohort.runs]


def _evaluate(
    runs: list[Finished],
    send: Callable[[str], None],
    *,
    data: Path,
    store: Path,
    machine: Machine,
    spec: EvaluationSpec,
    facts: dict[str, Any],
) -> None:
    def check() -> None:
        if stop_requested():
            raise Interrupted

    dataset = load_dataset(data)
    labels = None
    if dataset.test_labels is not None and spec.diagnostic_images:
        labels = Labels(dataset.test_labels, load_reader(reader_path(store, dataset.digest)))
    images = dataset.train_images, dataset.test_bits
    for run in runs:
        evaluate_run(run.folder, run.spec, spec, *images, machine.device, run.target, facts, check, labels)
        send(run.spec.name)


def _train_reader(path: Path, _: Callable[[None], None], *, data: Path, machine: Machine) -> None:
    save_reader(path, load_dataset(data), machine.device)


def evaluate_cohort(
    runs: list[Finished],
    data: Path,
    store: Path,
    machine: Machine,
    spec: EvaluationSpec,
    facts: dict[str, Any],
    on_run: Callable[[str], None],
) -> None:
    """Evaluate the runs that are not in the store yet. `on_run(name)` is called as each one ends.

    `facts` goes into every evaluation's record beside what is measured.

    Raises: UserError with what went wrong; Stopped after SIGINT or SIGTERM.
    """
    waiting = [run for run in runs if not run.is_evaluated]
    dataset = load_dataset(data)
    reader = reader_path(store, dataset.digest)
    if waiting and spec.diagnostic_images and dataset.test_labels is not None and not reader.exists():
        # In a process of its own, as all work with torch: a process that has used it cannot be forked safely.
        train = partial(_train_reader, data=data, machine=machine)
        run_parallel(train, [reader], 1, lambda *_: None, name=lambda path: path.name)
    # A GPU is set up once for all runs: that takes longer than an evaluation.
    items = [waiting] if machine.device.type == "cuda" and waiting else [[run] for run in waiting]
    task = partial(_evaluate, data=data, store=store, machine=machine, spec=spec, facts=facts)

    def name(runs: list[Finished]) -> str:
        return ", ".join(run.spec.name for run in runs)

    run_parallel(task, items, machine.workers, lambda _, done: on_run(done), name=name)


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
