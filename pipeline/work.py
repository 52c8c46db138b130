"""Work on one cohort, as the DVC stages and the launcher both do it: train what waits, evaluate what is trained.

Needs torch, numpy and safetensors alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.cohorts import binarized, results_folder
from pipeline.console import ProgressMeter
from pipeline.data.datasets import load_dataset
from pipeline.device import Machine
from pipeline.evaluation.cohort import Finished, evaluate_cohort, result_of
from pipeline.results import save_results
from pipeline.spec import CohortSpec, EvaluationSpec
from pipeline.store import store_folder
from pipeline.training.cohort import train_jobs
from pipeline.training.state import Job, read_run
from pipeline.training.train import Progress


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


def train_waiting(
    cohort: CohortSpec,
    jobs: list[Job],
    machine: Machine,
    facts: dict[str, Any],
    pace: Pace,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Train the unfinished jobs with progress on the console. `facts` goes into every run.json.

    Raises: UserError with what went wrong in each stack that failed; Stopped when asked to stop.
    """
    waiting = [job for job in jobs if not job.is_finished]
    meter = ProgressMeter(cohort.key, sum(job.spec.total_steps for job in waiting), "run-step")
    seen: dict[str, int] = {}

    def note(progress: Progress) -> None:
        if progress.run not in seen:
            meter.skip(progress.step)
        else:
            meter.advance(progress.step - seen[progress.run])
        seen[progress.run] = progress.step
        pace.note(progress.run, progress.step, time.monotonic())
        on_progress(progress)

    data = binarized(cohort.dataset)
    recorded = {**facts, "data": load_dataset(data).info, "workers": machine.workers}
    try:
        train_jobs(jobs, data, machine, recorded, note, started)
    finally:
        meter.close()


def evaluate_waiting(
    cohort: CohortSpec,
    runs: list[Finished],
    machine: Machine,
    spec: EvaluationSpec,
    facts: dict[str, Any],
    on_run: Callable[[str], None] = lambda name: None,
) -> int:
    """Evaluate what the store does not hold yet and write the cohort's results; returns how many were evaluated.

    `on_run(name)` is called as each evaluation ends.

    Raises: UserError with what went wrong; Stopped when asked to stop.
    """
    waiting = sum(not run.is_evaluated for run in runs)
    meter = ProgressMeter(f"{cohort.key} evaluation", waiting, "run")

    def note(name: str) -> None:
        meter.advance(1)
        on_run(name)

    try:
        data, store = binarized(cohort.dataset), store_folder()
        evaluate_cohort(runs, data, store, machine, spec, facts, note)
    finally:
        meter.close()
    write_results(cohort, runs)
    return waiting


def write_results(cohort: CohortSpec, runs: list[Finished]) -> None:
    """Write `reports/<scale>/results/<cohort>/` from the run directories and their evaluations in the store."""
    save_results(results_folder(cohort.key), [result_of(cohort, run) for run in runs])


def diverged(cohort: CohortSpec, jobs: list[Job]) -> list[str]:
    """A line per run that did not end well."""
    statuses = [(job.spec.name, read_run(job.finished)["status"]) for job in jobs]
    return [f"{cohort.key}/{name} {status}" for name, status in statuses if status != "finished"]
