"""Cohorts one after the other within a time limit: choosing, describing and doing the work (see `pipeline.launch`)."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.names import CohortKey
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, RunSpec
from pipeline.files import content_of, read_object
from pipeline.launch.plan import (
    AT_END,
    BLOCKED,
    EVALUATE,
    RECORDED,
    RUNNABLE,
    TRAIN,
    Standing,
    due_by_run,
    evaluation_shape,
    machine_name,
    remember,
    remembered,
    standing,
    standings,
    training_shape,
)
from pipeline.paths import HERE, Paths
from pipeline.records.facts import Origin
from pipeline.records.provenance import LAUNCHER, origin
from pipeline.records.results import METRICS
from pipeline.records.run_folder import Job
from pipeline.records.store import BUSY_SECONDS, Busy, Marks, cohort_lock, depths, stored_jobs
from pipeline.training.cohort import relative_cost
from pipeline.training.train import Progress
from pipeline.work import interruption
from pipeline.work.cohort import Pace, Watch, diverged, evaluate_waypoints, train_waiting, write_standing
from pipeline.work.console import clock, counted
from pipeline.work.locks import locked
from pipeline.work.machine import Machine
from pipeline.work.workers import Stopped

say = partial(print, flush=True)
RESERVE_SECONDS, RESERVE_SHARE = 20.0, 0.1
"""Kept back of a time limit for the last checkpoint: the smaller of the two."""
PACE_SECONDS = 2.0
"""Speeds measured over less than this are not remembered."""
RESULTS_SECONDS = 120.0
"""How long to wait for another process that writes the same cohort's results."""


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
    paths: Paths = HERE

    def standings(self) -> list[Standing]:
        return standings(self.chosen, self.cohorts, self.evaluations, self.store, self.machine, self.again, self.paths)

    @cached_property
    def marks(self) -> Marks:
        return depths(self.cohorts)

    def jobs(self, cohort: CohortSpec) -> list[Job]:
        """A cohort's runs in the store.

        Raises: UserError when its data is missing.
        """
        data_digest = load_dataset(self.paths.binarized(cohort.dataset)).digest
        return stored_jobs(cohort, self.cohorts, data_digest, self.store, self.machine.device.type, self.marks)


def choose(
    cohorts: Mapping[str, CohortSpec], order: Sequence[str], scale: str, patterns: Sequence[str]
) -> list[CohortSpec]:
    """The cohorts of a scale that match any pattern, in the order of the patterns; `<cohort>/<run>` takes single runs.

    A pattern may leave the scale away. `order`: all keys.

    Raises: UserError where nothing matches.
    """
    of_scale = [key for key in order if fnmatchcase(CohortKey.of(key).scale, scale)]
    if not of_scale:
        known = ", ".join(dict.fromkeys(CohortKey.of(key).scale for key in order))
        raise UserError(f"--scale {scale}: no such scale; known: {known}")
    chosen: list[CohortSpec] = []
    taken: set[str] = set()
    for pattern in patterns or ["*"]:
        matched = False
        for key in of_scale:
            runs = tuple(run for run in cohorts[key].runs if _matches(key, run.name, pattern))
            new = tuple(run for run in runs if f"{key}/{run.name}" not in taken)
            matched = matched or bool(runs)
            taken |= {f"{key}/{run.name}" for run in new}
            if new:
                chosen.append(replace(cohorts[key], runs=new))
        if not matched:
            raise UserError(
                f"--only {pattern}: matches no cohort or run of scale {scale}; known: {', '.join(of_scale)}"
            )
    return chosen


def _matches(key: str, run: str, pattern: str) -> bool:
    cohort, asked = CohortKey.of(key), pattern.split("/")
    known = [[cohort.scale, cohort.name, run], [cohort.name, run], [cohort.scale, cohort.name], [cohort.name]]
    # A star stays within its part.
    return any(
        len(parts) == len(asked) and all(fnmatchcase(part, glob) for part, glob in zip(parts, asked, strict=True))
        for parts in known
    )


def check_epochs(project: Project, epochs: Sequence[int]) -> None:
    """Raises: UserError when no chosen run goes so deep."""
    deepest = max(run.epochs for cohort in project.chosen for run in cohort.runs)
    if epochs and max(epochs) > deepest:
        raise UserError(
            f"--to-epoch {max(epochs)}: what was chosen ends at {deepest:g} epochs;"
            " raise its stages, epochs or max_steps in params.yaml"
        )


def cut(project: Project, epochs: int) -> Project:
    """The same runs, taken to so many epochs at most."""

    def shallower(run: RunSpec) -> RunSpec:
        return replace(run, max_steps=min(run.total_steps, epochs * run.steps_per_epoch))

    chosen = tuple(replace(cohort, runs=tuple(map(shallower, cohort.runs))) for cohort in project.chosen)
    return replace(project, chosen=chosen)


def time_left_in_words(item: Standing) -> str:
    """`1:05:03 left`, or which part of it was not timed on this machine yet."""
    known = clock((item.training_left or 0) + (item.evaluation_left or 0))
    if item.training_left is None:
        return "not timed yet"
    return f"{known} left" if item.evaluation_left is not None else f"{known} left and an evaluation not timed yet"


def _scores(item: Standing, paths: Paths) -> list[str]:
    """The numbers of a cohort's runs, a line each, as they stand in `reports/`."""
    lines = []
    path = paths.cohort_results(item.cohort.key) / METRICS
    with content_of(path, "a cohort's numbers"):
        for name, metrics in read_object(path).items():
            if "nll" not in metrics:
                lines.append(f"    {name}: diverged")
                continue
            units = "+".join(f"{metrics[key]:.0f}" for key in ("active_units_1", "active_units_2") if key in metrics)
            nll = f"NLL {metrics['nll']:.2f} (SE {metrics['nll_se']:.2f}, {metrics['test_images']:.0f} images)"
            lines.append(f"    {name}: {nll}, {units} active units")
    return lines


def share_made(plan: Sequence[Standing]) -> float:
    """The share of all updates of these cohorts that is made, runs weighing what they cost."""
    whole = sum(relative_cost(run) for item in plan for run in item.cohort.runs)
    made = 0.0
    for item in plan:
        done = [run.total_steps for run in item.cohort.runs] if item.need == RECORDED else item.steps
        pairs = zip(item.cohort.runs, done, strict=False)
        made += sum(relative_cost(run) * steps / run.total_steps for run, steps in pairs)
    return made / whole if whole else 1.0


def describe(plan: Sequence[Standing], machine: Machine, paths: Paths) -> str:
    """The plan as text: a line per cohort, then the total and what comes next."""
    width = max(len(item.cohort.key) for item in plan)
    lines = []
    for item in plan:
        trained = f"{len(item.cohort.runs):2d} runs  {100 * item.share_trained:5.1f} % trained"
        what = item.need if item.need in AT_END else f"{item.need}: {item.note or time_left_in_words(item)}"
        lines.append(f"{item.cohort.key:<{width}}  {trained}  {what}")
        if item.need in AT_END:
            lines.extend(_scores(item, paths))
    open_items = [item for item in plan if item.need not in AT_END]
    timed = [item.training_left + (item.evaluation_left or 0) for item in open_items if item.training_left is not None]
    begun = sum(item.share_trained > 0 for item in open_items)
    lines.append(f"{len(plan)} cohorts: {len(plan) - len(open_items)} done, {begun} begun, {len(open_items)} to do")
    lines.append(f"progress: {100 * share_made(plan):.2f} % of the updates, each weighing what it costs")
    runs = sum(len(item.cohort.runs) for item in plan)
    # As the reports and README.md count them.
    finished = sum(len(item.cohort.runs) if item.need in AT_END else item.evaluated for item in plan)
    lines.append(f"{finished} of {runs} runs finished")
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
    facts: Origin | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_evaluated: Callable[[str], None] = lambda name: None,
) -> bool:
    """Train and evaluate one cohort; False where its evaluation would not fit before `until` (monotonic seconds).

    `facts`: what made the numbers, for their records; this process where None.

    Raises: UserError with what went wrong; Stopped when asked to stop; Busy when another process has the cohort.
    """
    store, machine, paths, spec = project.store, project.machine, project.paths, project.evaluations[cohort.key]
    with cohort_lock(store, cohort.key, BUSY_SECONDS):
        item = standing(cohort, project.cohorts, spec, store, machine, project.again, project.marks, paths)
        jobs = list(item.jobs)
        if item.need not in RUNNABLE:
            return True  # Another process was quicker.
        facts = facts or origin(LAUNCHER, paths)
        if item.need == TRAIN:
            say(f"{cohort.key}: training, {100 * item.share_trained:.1f} % done, {time_left_in_words(item)}")
            shape, pace = training_shape(cohort, jobs), Pace()
            try:
                train_waiting(cohort, jobs, machine, facts, paths, Watch(pace, on_progress))
            finally:
                if pace.rate is not None and pace.seconds >= PACE_SECONDS:
                    remember(store, machine, shape, pace.rate)
            for line in diverged(cohort, jobs):
                say(f"warning: {line}", file=sys.stderr)
        whole = project.cohorts[cohort.key]
        due = [waypoint for waypoints in due_by_run(jobs, whole, store, spec) for waypoint in waypoints]
        waiting = sum(not waypoint.is_evaluated for waypoint in due)
        each = remembered(store, machine, evaluation_shape(cohort, spec))
        if waiting and until is not None and each is not None and time.monotonic() + each > until:
            say(f"{cohort.key}: trained; evaluating a run takes {clock(each)}, which is left to the next call")
            return False
        start = time.monotonic()
        evaluated = evaluate_waypoints(cohort, due, store, paths, machine, facts, on_evaluated)
        results = record_cohort(project, cohort.key)
        took = time.monotonic() - start
        if evaluated:
            remember(store, machine, evaluation_shape(cohort, spec), took / evaluated)
        say(f"{cohort.key}: done, {counted(evaluated, 'evaluation')} in {clock(took)} -> {results}")
        return True


def record_cohort(project: Project, key: str) -> Path:
    """Write the results of all of a cohort as far as the store holds its evaluations; returns their folder.

    Raises: Busy when another process writes them for minutes.
    """
    cohort, folder = project.cohorts[key], project.paths.cohort_results(key)
    with locked(project.store / "locks" / f"results-{key.replace('/', '-')}.lock", str(folder), RESULTS_SECONDS):
        write_standing(cohort, project.jobs(cohort), project.store, project.evaluations[key], project.paths)
    return folder


def record(project: Project) -> None:
    """Write the results of the chosen cohorts as far as the store holds their evaluations, and say which are done."""
    for item in project.standings():
        if item.jobs:
            folder = record_cohort(project, item.cohort.key)
            if item.evaluated == len(item.jobs):
                say(f"{item.cohort.key}: done -> {folder}")


def begin(seconds: float | None) -> float | None:
    """Listen to signals and to a time limit; returns when the time is over (monotonic seconds)."""
    interruption.listen()
    if seconds is None:
        return None
    left = seconds - min(RESERVE_SECONDS, RESERVE_SHARE * seconds)
    interruption.stop_after(left)
    return time.monotonic() + left


def end(project: Project, failures: Sequence[str]) -> int:
    """Say where all stands and how the work ended; returns the exit status."""
    plan = project.standings()
    blocked = [item.cohort.key for item in plan if item.need == BLOCKED and item.cohort.key not in failures]
    say(describe(plan, project.machine, project.paths))
    if interruption.signalled():
        say("stopped by a signal: checkpoints are on disk, the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    if interruption.stop_requested():
        say("time is up: checkpoints are on disk, the same command goes on from there")
    if failures:
        say(f"error: {', '.join(failures)} failed (see above)", file=sys.stderr)
    if blocked:
        say(f"error: {', '.join(blocked)}: nothing can be done here (see above)", file=sys.stderr)
    return 1 if failures or blocked else 0


def run(project: Project, seconds: float | None, epochs: Sequence[int] = ()) -> int:
    """On a GPU: cohort after cohort, until everything chosen is done, so many seconds are over, or a signal comes;
    returns the exit status. `epochs`: so far all are taken first, then so far, before their depths."""
    until = begin(seconds)
    failures: list[str] = []
    for epoch in sorted(epochs):
        failures += _through(cut(project, epoch), until)
    failures += _through(project, until)
    return end(project, list(dict.fromkeys(failures)))


def _through(project: Project, until: float | None) -> list[str]:
    """Work on one chosen cohort after the other; returns those that failed."""
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
    return failures
