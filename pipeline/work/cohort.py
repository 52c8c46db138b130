"""Work on one cohort, as the DVC stages and the launcher both do it: train what waits, evaluate what is trained.

Needs torch, numpy and safetensors alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.datasets import load_dataset
from pipeline.evaluation.cohort import (
    Finished,
    due_waypoints,
    earlier_waypoints,
    evaluate_cohort,
    heal_evaluations,
    result_of,
)
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.paths import Paths
from pipeline.records.facts import Given, Origin
from pipeline.records.results import save_results
from pipeline.records.run_folder import HISTORY_COLUMNS, RUN_JSON, Job, read_run
from pipeline.records.status import FINISHED
from pipeline.records.store import training_folder
from pipeline.training.cohort import relative_cost, train_jobs
from pipeline.training.train import Progress
from pipeline.work.console import ProgressMeter, Whole
from pipeline.work.machine import Machine


@dataclass
class Pace:
    """How fast runs advance, from the trainer's reports.

    Each run's way to its first report after the start is left out: starting processes and compiling are no steps.
    """

    steps: int = 0
    _positions: dict[str, int] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)
    _first: float | None = None
    _last: float = 0.0

    def note(self, run: str, step: int, now: float) -> None:
        before = self._positions.get(run)
        self._positions[run] = step
        if before is None or step <= before:
            return
        if self._first is None:
            self._first = now
        self._last = now
        if run in self._counted:
            self.steps += step - before
        self._counted.add(run)

    @property
    def seconds(self) -> float:
        return 0.0 if self._first is None else self._last - self._first

    @property
    def rate(self) -> float | None:
        """Updates a second, those of all runs of the cohort together; None before any were timed."""
        return self.steps / self.seconds if self.steps and self.seconds > 0 else None


def whole_scale(jobs: list[Job], cohort: CohortSpec, cohorts: Iterable[CohortSpec], runs: Path) -> Whole:
    """How the cohort's scale stands as its training begins; runs of other cohorts count where `runs` holds them."""
    others = [other for other in cohorts if other.scale == cohort.scale and other.key != cohort.key]
    done = sum(job.is_finished for job in jobs)
    effort_after = 0.0
    for other in others:
        for run in other.runs:
            if (training_folder(runs, other.key) / run.name / RUN_JSON).exists():
                done += 1
            else:
                effort_after += relative_cost(run)
    return Whole(cohort.scale, len(jobs) + sum(len(other.runs) for other in others), done, effort_after)


@dataclass(frozen=True)
class Watch:
    """What the caller of a training learns of it while it goes on, and has the console say of it."""

    pace: Pace = field(default_factory=Pace)
    """Told of every step."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    started: Callable[[], None] = lambda: None
    """Called once the processes that train are there."""
    whole: Whole | None = None
    """What the cohort is a part of, where the console should say how that stands."""


def train_waiting(
    cohort: CohortSpec,
    jobs: list[Job],
    machine: Machine,
    facts: Origin,
    paths: Paths,
    watch: Watch,
    wait_seconds: float = 0.0,
) -> None:
    """Train the unfinished jobs with progress on the console. `facts` goes into every run.json.

    `wait_seconds`: how long to wait for each run that another process trains.

    Raises: UserError with what went wrong in each stack that failed; Stopped when asked to stop.
    """
    waiting = [job for job in jobs if not job.is_finished]
    updates = sum(job.spec.total_steps for job in waiting)
    effort = {job.spec.name: relative_cost(job.spec) / job.spec.total_steps for job in waiting}
    total_effort = sum(relative_cost(job.spec) for job in waiting)
    meter = ProgressMeter(cohort.key, updates, "update", total_effort, watch.whole)
    seen: dict[str, int] = {}

    def note(progress: Progress) -> None:
        if progress.rows:
            meter.note(f"{progress.run}: bound {progress.rows[-1][HISTORY_COLUMNS.index('bound')]:.2f}")
        if progress.finished:
            meter.finish_run()
        count = progress.step - seen.get(progress.run, 0)
        move = meter.advance if progress.run in seen else meter.skip
        move(count, count * effort[progress.run])
        seen[progress.run] = progress.step
        watch.pace.note(progress.run, progress.step, time.monotonic())
        watch.on_progress(progress)

    data = paths.binarized(cohort.dataset)
    recorded: Given = {**facts, "data": load_dataset(data).info, "workers": machine.workers}
    try:
        train_jobs(jobs, data, machine, recorded, note, watch.started, wait_seconds)
    finally:
        meter.close()


def evaluate_waiting(
    cohort: CohortSpec,
    runs: list[Finished],
    store: Path,
    paths: Paths,
    machine: Machine,
    facts: Origin,
    on_run: Callable[[str], None] = lambda name: None,
) -> int:
    """Evaluate what the store does not hold yet of runs and their earlier waypoints, and write the cohort's results;
    returns how many evaluations were made.

    `on_run(name)` is called as each evaluation ends.

    Raises: UserError with what went wrong; Stopped when asked to stop.
    """
    every = [waypoint for run in runs for waypoint in (*earlier_waypoints(run, store), run)]
    made = evaluate_waypoints(cohort, every, store, paths, machine, facts, on_run)
    write_results(cohort, runs, store, paths)
    return made


def evaluate_waypoints(
    cohort: CohortSpec,
    every: Sequence[Finished],
    store: Path,
    paths: Paths,
    machine: Machine,
    facts: Origin,
    on_run: Callable[[str], None] = lambda name: None,
) -> int:
    """Evaluate what the store does not hold yet of a cohort's waypoints; returns how many evaluations were made.

    Raises: UserError with what went wrong; Stopped when asked to stop.
    """
    heal_evaluations(every)
    waiting = sum(not waypoint.is_evaluated for waypoint in every)
    meter = ProgressMeter(f"{cohort.key} evaluation", waiting, "evaluation")

    def note(name: str) -> None:
        meter.advance(1)
        on_run(name)

    try:
        evaluate_cohort(every, paths.binarized(cohort.dataset), store, machine, facts, note)
    finally:
        meter.close()
    return waiting


def write_results(cohort: CohortSpec, runs: list[Finished], store: Path, paths: Paths) -> None:
    """Write `reports/<scale>/results/<cohort>/` from evaluated runs, each with its earlier waypoints as far as these
    are evaluated."""
    results = [
        result_of(cohort, run, [waypoint for waypoint in earlier_waypoints(run, store) if waypoint.is_evaluated])
        for run in runs
    ]
    save_results(paths.cohort_results(cohort.key), results)


def write_standing(cohort: CohortSpec, jobs: Iterable[Job], store: Path, spec: EvaluationSpec, paths: Paths) -> None:
    """The same of a cohort that may not be done: each run as it was at the deepest waypoint that was evaluated.

    `jobs`: the cohort's, in the store. A run without an evaluation is left out; without any run, nothing is written.
    """
    pairs = zip(jobs, cohort.runs, strict=True)
    every = [
        [waypoint for waypoint in due_waypoints(job, run, store, spec) if waypoint.is_evaluated] for job, run in pairs
    ]
    results = [result_of(cohort, series[-1], series[:-1]) for series in every if series]
    if results:
        save_results(paths.cohort_results(cohort.key), results)


def diverged(cohort: CohortSpec, jobs: list[Job]) -> list[str]:
    """A line per run that did not end well."""
    statuses = [(job.spec.name, read_run(job.finished)["status"]) for job in jobs]
    return [f"{cohort.key}/{name} {status}" for name, status in statuses if status != FINISHED]
