"""Cohorts one after the other within a time limit: choosing, describing and doing the work (see `pipeline.launch`)."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import interruption
from pipeline.cohorts import results_folder
from pipeline.console import clock
from pipeline.device import Machine
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_run
from pipeline.files import read_json
from pipeline.plan import (
    AT_END,
    EVALUATE,
    RUNNABLE,
    TRAIN,
    Standing,
    evaluation_shape,
    machine_name,
    remember,
    remembered,
    standing,
    standings,
    training_shape,
)
from pipeline.provenance import LAUNCHER, origin
from pipeline.results import METRICS
from pipeline.spec import CohortSpec, EvaluationSpec
from pipeline.store import Busy, cohort_lock
from pipeline.training.train import Progress
from pipeline.work import Pace, diverged, evaluate_waiting, train_waiting, write_results
from pipeline.workers import Stopped

say = partial(print, flush=True)
RESERVE_SECONDS, RESERVE_SHARE = 20.0, 0.1
"""Kept back of a time limit for the last checkpoint: the smaller of the two."""
PACE_SECONDS = 2.0
"""Speeds measured over less than this are not remembered."""
BUSY_SECONDS = 2.0
"""How long to wait for a cohort that another process works on, before going on with the next one."""


@dataclass(frozen=True)
class Project:
    """Everything that a launcher works with."""

    cohorts: dict[str, CohortSpec]
    evaluations: dict[str, EvaluationSpec]
    """By cohort, as `cohorts`."""
    chosen: tuple[CohortSpec, ...]
    """In the order of work."""
    store: Path
    machine: Machine
    again: bool = False

    def standings(self) -> list[Standing]:
        return standings(self.chosen, self.cohorts, self.evaluations, self.store, self.machine, self.again)


def choose(order: Sequence[str], scale: str, patterns: Sequence[str]) -> list[str]:
    """The keys of a scale that match any pattern (with or without the scale), in the order of the patterns.

    Raises: UserError where nothing matches.
    """
    of_scale = [key for key in order if fnmatchcase(key.partition("/")[0], scale)]
    if not of_scale:
        known = ", ".join(dict.fromkeys(key.partition("/")[0] for key in order))
        raise UserError(f"--scale {scale}: no such scale; known: {known}")
    found: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        matching = [key for key in of_scale if fnmatchcase(key, pattern) or fnmatchcase(key.partition("/")[2], pattern)]
        if not matching:
            raise UserError(f"--only {pattern}: matches no cohort of scale {scale}; known: {', '.join(of_scale)}")
        found.update(dict.fromkeys(matching))
    return list(found)


def time_left(item: Standing) -> str:
    """`1:05:03 left`, or which part of it was not timed on this machine yet."""
    known = clock((item.training_left or 0) + (item.evaluation_left or 0))
    if item.training_left is None:
        return "not timed yet"
    return f"{known} left" if item.evaluation_left is not None else f"{known} left and an evaluation not timed yet"


def _scores(item: Standing) -> list[str]:
    """The numbers of a cohort's runs, a line each, as they stand in `reports/`."""
    lines = []
    for name, metrics in read_json(results_folder(item.cohort.key) / METRICS).items():
        if "nll" not in metrics:
            lines.append(f"    {name}: diverged")
            continue
        units = "+".join(f"{metrics[key]:.0f}" for key in ("active_units_1", "active_units_2") if key in metrics)
        nll = f"NLL {metrics['nll']:.2f} (SE {metrics['nll_se']:.2f}, {metrics['test_images']:.0f} images)"
        lines.append(f"    {name}: {nll}, {units} active units")
    return lines


def describe(plan: Sequence[Standing], machine: Machine) -> str:
    """The plan as text: a line per cohort, then the total and what comes next."""
    width = max(len(item.cohort.key) for item in plan)
    lines = []
    for item in plan:
        trained = f"{len(item.cohort.runs):2d} runs  {100 * item.share_trained:5.1f} % trained"
        what = item.need if item.need in AT_END else f"{item.need}: {item.note or time_left(item)}"
        lines.append(f"{item.cohort.key:<{width}}  {trained}  {what}")
        if item.need in AT_END:
            lines.extend(_scores(item))
    open_items = [item for item in plan if item.need not in AT_END]
    timed = [item.training_left + (item.evaluation_left or 0) for item in open_items if item.training_left is not None]
    begun = sum(item.share_trained > 0 for item in open_items)
    lines.append(f"{len(plan)} cohorts: {len(plan) - len(open_items)} done, {begun} begun, {len(open_items)} to do")
    if open_items:
        measured = f"{clock(sum(timed))} for {len(timed)} of them at speeds measured on this machine"
        unknown = len(open_items) - len(timed)
        rest = f"; {unknown} not timed here yet" if unknown else ""
        lines.append(f"time left ({machine_name(machine)}): {measured if timed else 'unknown'}{rest}")
    following = next((item.cohort.key for item in plan if item.need in RUNNABLE), None)
    if following is not None:
        lines.append(f"next: {following}")
    return "\n".join(lines)


def work_on(
    project: Project,
    cohort: CohortSpec,
    until: float | None,
    facts: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_evaluated: Callable[[str], None] = lambda name: None,
) -> bool:
    """Train and evaluate one cohort; False where its evaluation would not fit before `until` (monotonic seconds).

    `facts`: what made the numbers, for their records; this process where None.

    Raises: UserError with what went wrong; Stopped when asked to stop; Busy when another process has the cohort.
    """
    store, machine, spec = project.store, project.machine, project.evaluations[cohort.key]
    with cohort_lock(store, cohort.key, BUSY_SECONDS):
        item = standing(cohort, project.cohorts, spec, store, machine, project.again)
        jobs = list(item.jobs)
        if item.need not in RUNNABLE:
            return True  # Another process was quicker.
        facts = facts or origin(LAUNCHER)
        if item.need == TRAIN:
            say(f"{cohort.key}: training, {100 * item.share_trained:.1f} % done, {time_left(item)}")
            shape, pace = training_shape(cohort, jobs), Pace()
            try:
                train_waiting(cohort, jobs, machine, facts, pace, on_progress)
            finally:
                if pace.rate is not None and pace.seconds >= PACE_SECONDS:
                    remember(store, machine, shape, pace.rate)
            for line in diverged(cohort, jobs):
                say(f"warning: {line}", file=sys.stderr)
        runs = [finished_run(job.finished, job.spec, store, spec) for job in jobs]
        waiting = sum(not run.is_evaluated for run in runs)
        each = remembered(store, machine, evaluation_shape(cohort, spec))
        if waiting and until is not None and each is not None and time.monotonic() + each > until:
            say(f"{cohort.key}: trained; evaluating a run takes {clock(each)}, which is left to the next call")
            return False
        start = time.monotonic()
        evaluated = evaluate_waiting(cohort, runs, machine, spec, facts, on_evaluated)
        took = time.monotonic() - start
        if evaluated:
            remember(store, machine, evaluation_shape(cohort, spec), took / evaluated)
        say(f"{cohort.key}: done, {evaluated} runs evaluated in {clock(took)} -> {results_folder(cohort.key)}")
        return True


def record(project: Project) -> None:
    """Write the results of every chosen cohort whose runs and evaluations the store holds, and say which."""
    for item in project.standings():
        if item.jobs and item.evaluated == len(item.jobs):
            spec = project.evaluations[item.cohort.key]
            write_results(item.cohort, [finished_run(job.finished, job.spec, project.store, spec) for job in item.jobs])
            say(f"{item.cohort.key}: done -> {results_folder(item.cohort.key)}")


def run(project: Project, seconds: float | None) -> int:
    """Work until everything chosen is done, so many seconds are over, or a signal comes; returns the exit status."""
    interruption.listen()
    until = None
    if seconds is not None:
        left = seconds - min(RESERVE_SECONDS, RESERVE_SHARE * seconds)
        until = time.monotonic() + left
        interruption.stop_after(left)
    worked = False
    passed_over: set[str] = set()
    failures: list[str] = []
    while not interruption.stop_requested():
        plan = project.standings()
        waiting = [item for item in plan if item.need in RUNNABLE and item.cohort.key not in passed_over]
        if not waiting:
            break
        cohort = waiting[0].cohort
        # With a whole slot ahead an evaluation is tried in any case: the time that is remembered may be wrong.
        sure = not worked and waiting[0].need == EVALUATE
        worked = True
        try:
            if not work_on(project, cohort, None if sure else until):
                passed_over.add(cohort.key)
        except Busy as busy:
            say(busy)
            passed_over.add(cohort.key)
        except Stopped:
            break
        except UserError as error:
            say(f"error: {error}", file=sys.stderr)
            failures.append(cohort.key)
            passed_over.add(cohort.key)
    say(describe(project.standings(), project.machine))
    if interruption.signalled():
        say("stopped by a signal: checkpoints are on disk, the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    if interruption.stop_requested():
        say("time is up: checkpoints are on disk, the same command goes on from there")
    if failures:
        say(f"error: {', '.join(failures)} failed (see above)", file=sys.stderr)
    return 1 if failures else 0
