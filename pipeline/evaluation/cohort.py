"""Evaluating a cohort's finished runs: on a CPU each in a process of its own, on a GPU one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.datasets import load_dataset, verified_dataset
from pipeline.errors import UserError
from pipeline.evaluation.classifier import has_reader, load_reader, reader_path, save_reader
from pipeline.evaluation.evaluate import (
    Labels,
    Material,
    evaluate_run,
    evaluation_digest,
    read_evaluation,
    save_evaluation,
)
from pipeline.experiments.schedule import stage_ends
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, RunSpec
from pipeline.files import set_aside
from pipeline.records.facts import EvaluationFacts, Origin
from pipeline.records.results import WAYPOINT_ARRAYS, RunResult, Waypoint
from pipeline.records.run_folder import (
    HISTORY,
    HISTORY_COLUMNS,
    RUN_JSON,
    WEIGHTS,
    Job,
    is_thinned,
    is_whole,
    read_history_rows,
    read_run,
    waypoint_beside,
    waypoint_name,
)
from pipeline.records.sealed import Damaged
from pipeline.records.status import FINISHED
from pipeline.work.interruption import Interrupted, stop_requested
from pipeline.work.locks import locked
from pipeline.work.machine import Machine
from pipeline.work.workers import run_parallel

READER_SECONDS = 600.0
"""How long to wait for another process that trains the reader of digits: a minute or so."""


@dataclass(frozen=True)
class Finished:
    """A waypoint that can be evaluated, and where its evaluation is kept."""

    folder: Path
    spec: RunSpec
    """As the cohort has it, taken to this waypoint: cohorts share runs, and a waypoint bears the name that the first
    one gave it."""
    content: dict[str, Any]
    evaluation: EvaluationSpec
    evaluation_digest: str
    target: Path
    """`<target>.json` and `<target>.npz`"""

    @property
    def diverged(self) -> bool:
        return bool(self.content["status"] != FINISHED)

    @property
    def is_evaluated(self) -> bool:
        """Nothing is left to compute: its numbers are in the store, or it diverged and has none."""
        return self.diverged or all(self.target.with_suffix(suffix).exists() for suffix in (".json", ".npz"))


def finished_run(folder: Path, run: RunSpec, store: Path, spec: EvaluationSpec, digest: str | None = None) -> Finished:
    """The waypoint at `folder` of a cohort's run, with its evaluation's place in the store. `digest`: whose it must be.

    Raises: Damaged when it is not what was written there, or another run's; UserError when it is missing.
    """
    content = read_run(folder)
    if digest is not None and content["digest"] != digest:
        raise Damaged(folder / RUN_JSON, f"belongs to run {content['digest']}, not to {digest}")
    key = evaluation_digest(spec, content["digest"], content["steps"])
    reached = replace(run, max_steps=content["steps"], precision=content["spec"]["precision"])
    return Finished(folder, reached, content, spec, key, store / content["digest"] / f"evaluation-{key}")


def earlier_waypoints(last: Finished, store: Path) -> list[Finished]:
    """The waypoints at the ends of a run's stages before its last one, as far as they are evaluated at all."""
    if last.evaluation.earlier is None:
        return []
    waypoints = []
    for steps in stage_ends(last.spec):
        folder = waypoint_beside(last.folder, steps)
        if steps < last.spec.total_steps:
            digest = last.content["digest"]
            waypoints.append(_known(folder, last.spec, store, last.evaluation.earlier, digest, (RUN_JSON, WEIGHTS)))
    return [waypoint for waypoint in waypoints if waypoint is not None]


def _known(
    folder: Path, run: RunSpec, store: Path, spec: EvaluationSpec, digest: str, names: Sequence[str] = ()
) -> Finished | None:
    """The waypoint at `folder`; None where it can neither be evaluated nor was. `names`: files that it must have."""
    if is_whole(folder, digest, names):
        return finished_run(folder, run, store, spec, digest)
    if is_thinned(folder, digest) and (waypoint := finished_run(folder, run, store, spec, digest)).is_evaluated:
        return waypoint
    return None


def waypoint_run(job: Job, run: RunSpec, steps: int, store: Path, spec: EvaluationSpec | None) -> Finished | None:
    """A run's waypoint in the store; None where it is not there or not to be evaluated. `run`: as its cohort has it."""
    return None if spec is None else _known(job.waypoint(steps), run, store, spec, job.digest)


def evaluation_at(spec: EvaluationSpec, run: RunSpec, steps: int) -> EvaluationSpec | None:
    """How a cohort's run is evaluated after so many updates: at its depth, at the end of a stage before, or not."""
    if steps == run.total_steps:
        return spec
    return spec.earlier if steps in stage_ends(run) else None


def due_waypoints(job: Job, run: RunSpec, store: Path, spec: EvaluationSpec) -> list[Finished]:
    """The waypoints in the store that are to be evaluated, the deepest last. `run`, `spec`: as the cohort has them."""
    steps = sorted({*stage_ends(run), run.total_steps})
    waypoints = [waypoint_run(job, run, step, store, evaluation_at(spec, run, step)) for step in steps]
    return [waypoint for waypoint in waypoints if waypoint is not None]


def finished_runs(
    cohort: CohortSpec, training: Path, store: Path, spec: EvaluationSpec, digests: Mapping[str, Collection[str]]
) -> list[Finished]:
    """The cohort's run directories under `training`, in its order. `digests`: by run, those that it may have.

    Raises: UserError naming the run that is another one, as after an edit of params.yaml.
    """
    finished = []
    for run in cohort.runs:
        folder = training / run.name
        remedy = f"train it first: python -m stages.train {cohort.key}, or dvc repro"
        try:
            waypoint = finished_run(folder, run, store, spec)
            if waypoint.content["digest"] not in digests[run.name]:
                told = f"belongs to run {waypoint.content['digest']}, not to {' or '.join(digests[run.name])}"
                raise Damaged(folder / RUN_JSON, told)
        except Damaged as damaged:
            raise UserError(f"{damaged}; {remedy}") from damaged
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from error
        if waypoint.spec.total_steps != run.total_steps:
            told = f"holds {run.name} after {waypoint.spec.total_steps:,} updates, not after {run.total_steps:,}"
            raise UserError(f"{folder}: {told}; {remedy}")
        finished.append(waypoint)
    return finished


def heal_evaluations(runs: Iterable[Finished]) -> None:
    """Set aside evaluations in the store that are not what was written, so that they are made again."""
    for run in runs:
        if run.diverged or not run.is_evaluated:
            continue
        try:
            content, _ = read_evaluation(run.target)
            if (content["run"], content["steps"]) != (run.content["digest"], run.content["steps"]):
                raise Damaged(run.target.with_suffix(".json"), f"is of run {content['run']} at {content['steps']}")
        except Damaged as damaged:
            if damaged.path.exists():
                set_aside(damaged.path, str(damaged))


def _evaluate(
    runs: list[Finished],
    send: Callable[[str], None],
    *,
    data: Path,
    store: Path,
    machine: Machine,
    facts: Origin,
) -> None:
    def check() -> None:
        if stop_requested():
            raise Interrupted

    dataset = load_dataset(data)
    for run in runs:
        labels = None
        if dataset.test_labels is not None and run.evaluation.diagnostic_images:
            labels = Labels(dataset.test_labels, load_reader(reader_path(store, dataset.digest)))
        material = Material(dataset.train_images, dataset.test_bits, dataset.test_images, labels)
        evaluation = evaluate_run(run.folder, run.spec, run.evaluation, material, machine.device, check)
        save_evaluation(run.target, evaluation, facts)
        send(run.spec.name)


def evaluate_here(
    runs: list[Finished],
    data: Path,
    store: Path,
    machine: Machine,
    facts: Origin,
    on_run: Callable[[str], None] = lambda name: None,
) -> None:
    """As `evaluate_cohort`, in this process.

    Raises: UserError with what went wrong; Interrupted when asked to stop.
    """
    dataset = verified_dataset(data)
    reader = reader_path(store, dataset.digest)
    if dataset.test_labels is not None and any(run.evaluation.diagnostic_images for run in runs):
        with locked(store / "locks" / f"{reader.stem}.lock", reader.name, READER_SECONDS):
            if not has_reader(reader):
                save_reader(reader, dataset, machine.device)
    _evaluate(runs, on_run, data=data, store=store, machine=machine, facts=facts)


def _train_reader(path: Path, _: Callable[[None], None], *, data: Path, machine: Machine) -> None:
    save_reader(path, load_dataset(data), machine.device)


def evaluate_cohort(
    runs: Sequence[Finished],
    data: Path,
    store: Path,
    machine: Machine,
    facts: Origin,
    on_run: Callable[[str], None],
) -> None:
    """Evaluate the waypoints that are not in the store yet. `on_run(name of the run)` is called as each one ends.

    `facts` goes into every evaluation's record beside what is measured.

    Raises: UserError with what went wrong; Stopped when asked to stop.
    """
    waiting = list({run.target: run for run in runs if not run.is_evaluated}.values())
    dataset = verified_dataset(data)
    reader = reader_path(store, dataset.digest)
    diagnosed = any(run.evaluation.diagnostic_images for run in waiting)
    if diagnosed and dataset.test_labels is not None and not has_reader(reader):
        # In a process of its own, as all work with torch: a process that has used it cannot be forked safely.
        train = partial(_train_reader, data=data, machine=machine)
        run_parallel(train, [reader], 1, lambda *_: None, name=lambda _: "reader of digits")
    # A GPU is set up once for all runs: that takes longer than an evaluation.
    items = [waiting] if machine.device.type == "cuda" and waiting else [[run] for run in waiting]
    task = partial(_evaluate, data=data, store=store, machine=machine, facts=facts)

    def name(runs: list[Finished]) -> str:
        return ", ".join(run.spec.name for run in runs)

    run_parallel(task, items, machine.workers, lambda _, done: on_run(done), name=name)


def read_history(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a history.csv as `history/<column>`.

    Raises: Damaged naming the file when it is not a history; UserError when it is missing.
    """
    table = np.array(read_history_rows(path)).reshape(-1, len(HISTORY_COLUMNS))
    return {f"history/{name}": table[:, i] for i, name in enumerate(HISTORY_COLUMNS)}


def _evaluation_facts(run: Finished, content: Mapping[str, Any]) -> EvaluationFacts:
    """`content`: of the evaluation's JSON; empty for a run that diverged."""
    return cast(EvaluationFacts, {**content.get("evaluation", {}), "digest": run.evaluation_digest})


def waypoint_of(run: Finished) -> Waypoint:
    """The summary of an evaluated waypoint."""
    content, arrays = ({}, {}) if run.diverged else read_evaluation(run.target)
    return Waypoint(
        steps=run.spec.total_steps,
        epochs=run.spec.epochs,
        status=run.content["status"],
        evaluation=_evaluation_facts(run, content),
        metrics=content.get("metrics", {}),
        arrays={name: arrays[name] for name in WAYPOINT_ARRAYS if name in arrays},
    )


def provenance_folder(run: Finished) -> Path:
    """The waypoint in the store, which says how it was trained; else DVC's copy, which does not."""
    stored = run.target.parent / waypoint_name(run.content["steps"])
    return stored if is_whole(stored, run.content["digest"], (HISTORY,)) else run.folder


def result_of(cohort: CohortSpec, run: Finished, earlier: Sequence[Finished] = ()) -> RunResult:
    """A run's summary for reports and tracking, from its waypoints and their evaluations in the store.

    `earlier`: its evaluated waypoints before this one.
    """
    content, arrays = ({}, {}) if run.diverged else read_evaluation(run.target)
    made = provenance_folder(run)
    return RunResult(
        cohort=cohort.key,
        experiment=cohort.experiment,
        spec=run.spec,
        digest=run.content["digest"],
        status=run.content["status"],
        training=read_run(made)["training"],
        evaluation=_evaluation_facts(run, content),
        metrics=content.get("metrics", {}),
        arrays=read_history(made / HISTORY) | arrays,
        waypoints=tuple(waypoint_of(waypoint) for waypoint in earlier),
        planned_steps=next(planned.total_steps for planned in cohort.runs if planned.name == run.spec.name),
    )
