"""The launcher: trains and evaluates cohorts one after the other, within a time limit, with no DVC and no MLflow.

    python -m pipeline.launch run --minutes 28                     start or continue the next unfinished cohort, and on
    python -m pipeline.launch status                               what is done, what is left, how long it takes
    python -m pipeline.launch run --only 'burda-table1-mnist-1L*'  some cohorts alone
    python -m pipeline.launch pack runs.tar                        runs and checkpoints, to carry to another machine
    python -m pipeline.launch unpack runs.tar                      verify them there and put them into its store

Needs torch, numpy and safetensors alone (docs/gpu.md). It reads `cohorts/` and `data/binarized/`, and writes `.store/`
(or ELBO_STORE), from which `dvc repro` takes what is finished, and `reports/<scale>/results/`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline import interruption
from pipeline.cohorts import COHORTS, load_cohorts, load_evaluation, load_order, results_folder
from pipeline.console import clock
from pipeline.device import Machine, this_machine
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_run
from pipeline.files import read_json
from pipeline.pack import pack, unpack
from pipeline.plan import (
    AT_END,
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
from pipeline.provenance import origin
from pipeline.results import METRICS
from pipeline.spec import CohortSpec, EvaluationSpec
from pipeline.store import Busy, cohort_lock, store_folder
from pipeline.work import Pace, diverged, evaluate_waiting, train_waiting, write_results
from pipeline.workers import Stopped

MODULE = "pipeline.launch"
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


def _duration(seconds: float | None) -> str:
    return "time not known yet" if seconds is None else f"{clock(seconds)} left"


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
        what = item.need if item.need in AT_END else f"{item.need}: {item.note or _duration(item.seconds_left)}"
        lines.append(f"{item.cohort.key:<{width}}  {trained}  {what}")
        if item.need in AT_END:
            lines.extend(_scores(item))
    open_items = [item for item in plan if item.need not in AT_END]
    timed = [item.seconds_left for item in open_items if item.seconds_left is not None]
    begun = sum(item.share_trained > 0 for item in open_items)
    lines.append(f"{len(plan)} cohorts: {len(plan) - len(open_items)} done, {begun} begun, {len(open_items)} to do")
    if open_items:
        measured = f"{clock(sum(timed))} for {len(timed)} of them at speeds measured on this machine"
        unknown = len(open_items) - len(timed)
        rest = f"; {unknown} were not timed here yet (each is after its first minute)" if unknown else ""
        lines.append(f"time left ({machine_name(machine)}): {measured if timed else 'unknown'}{rest}")
    following = next((item.cohort.key for item in plan if item.need in RUNNABLE), None)
    if following is not None:
        lines.append(f"next: {following}")
    return "\n".join(lines)


def work_on(project: Project, cohort: CohortSpec, until: float | None) -> bool:
    """Train and evaluate one cohort; False where its evaluation would not fit before `until` (monotonic seconds).

    Raises: UserError with what went wrong; Stopped when asked to stop; Busy when another process has the cohort.
    """
    store, machine, spec = project.store, project.machine, project.evaluations[cohort.scale]
    with cohort_lock(store, cohort.key, BUSY_SECONDS):
        item = standing(cohort, project.cohorts, spec, store, machine, project.again)
        jobs = list(item.jobs)
        if item.need not in RUNNABLE:
            return True  # Another process was quicker.
        facts = origin(MODULE)
        if item.need == TRAIN:
            print(f"{cohort.key}: training, {100 * item.share_trained:.1f} % done, {_duration(item.seconds_left)}")
            shape, pace = training_shape(cohort, jobs), Pace()
            try:
                train_waiting(cohort, jobs, machine, facts, pace)
            finally:
                if pace.rate is not None and pace.seconds >= PACE_SECONDS:
                    remember(store, machine, shape, pace.rate)
            for line in diverged(cohort, jobs):
                print(f"warning: {line}", file=sys.stderr)
        runs = [finished_run(job.finished, store, spec) for job in jobs]
        waiting = sum(not run.is_evaluated for run in runs)
        each = remembered(store, machine, evaluation_shape(cohort, spec))
        if waiting and until is not None and each is not None and time.monotonic() + each > until:
            print(f"{cohort.key}: trained; evaluating a run takes {clock(each)}, which is left to the next call")
            return False
        start = time.monotonic()
        evaluated = evaluate_waiting(cohort, runs, machine, spec, facts)
        took = time.monotonic() - start
        if evaluated:
            remember(store, machine, evaluation_shape(cohort, spec), took / evaluated)
        print(f"{cohort.key}: done, {evaluated} runs evaluated in {clock(took)} -> {results_folder(cohort.key)}")
        return True


def run(project: Project, minutes: float | None) -> int:
    """Work until everything chosen is done, the time is up, or a signal comes; returns the exit status."""
    interruption.listen()
    until = None
    if minutes is not None:
        seconds = 60 * minutes
        until = time.monotonic() + seconds - min(RESERVE_SECONDS, RESERVE_SHARE * seconds)
        interruption.stop_after(until - time.monotonic())
    passed_over: set[str] = set()
    failures: list[str] = []
    while not interruption.stop_requested():
        plan = project.standings()
        waiting = [s.cohort for s in plan if s.need in RUNNABLE and s.cohort.key not in passed_over]
        if not waiting:
            break
        cohort = waiting[0]
        try:
            if not work_on(project, cohort, until):
                passed_over.add(cohort.key)
        except Busy as busy:
            print(busy)
            passed_over.add(cohort.key)
        except Stopped:
            break
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failures.append(cohort.key)
            passed_over.add(cohort.key)
    print(describe(project.standings(), project.machine))
    if interruption.signalled():
        print("stopped by a signal: checkpoints are on disk, the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    if interruption.stop_requested():
        print("time is up: checkpoints are on disk, the same command goes on from there")
    if failures:
        print(f"error: {', '.join(failures)} failed (see above)", file=sys.stderr)
    return 1 if failures else 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--scale", default="paper", help="a scale, or a pattern such as 'check-*' (paper)")
    shared.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="these cohorts, in this order")
    shared.add_argument("--cohorts", type=Path, default=COHORTS, help="the folder of resolved cohorts (cohorts)")
    shared.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    shared.add_argument("--workers", type=int, help="processes on a CPU (one a core)")
    shared.add_argument("--again", action="store_true", help="train also what reports/ has but the store has not")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    working = commands.add_parser("run", parents=[shared], help="start or continue the next unfinished cohort, and on")
    working.add_argument("--minutes", type=float, help="stop cleanly before so much time has passed")
    working.add_argument("--checkpoint-seconds", type=float, default=30.0, help="a killed run loses no more (30)")
    working.add_argument("--dry-run", action="store_true", help="print the plan alone, as status does")
    commands.add_parser("status", parents=[shared], help="what is done, what is left, how long it takes")
    for name, text in (("pack", "put runs and checkpoints into a file"), ("unpack", "take them from a file")):
        carrying = commands.add_parser(name, parents=[shared], help=text)
        carrying.add_argument("file", type=Path)
    arguments = parser.parse_args(words)
    if arguments.workers is not None and arguments.workers < 1:
        parser.error("--workers must be at least 1")
    if getattr(arguments, "minutes", None) is not None and not arguments.minutes > 0:
        parser.error("--minutes must be above 0")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = _arguments(words)
    cohorts = load_cohorts(arguments.cohorts)
    keys = choose(load_order(arguments.cohorts), arguments.scale, arguments.only)
    scales = {cohort.scale for cohort in cohorts.values()}
    project = Project(
        cohorts=cohorts,
        evaluations={scale: load_evaluation(arguments.cohorts, scale) for scale in scales},
        chosen=tuple(cohorts[key] for key in keys),
        store=store_folder(),
        machine=this_machine(
            arguments.device, arguments.workers or "auto", getattr(arguments, "checkpoint_seconds", 30.0)
        ),
        again=arguments.again,
    )
    if arguments.command == "pack":
        print(pack(arguments.file, project.chosen, project.cohorts, project.store))
        return 0
    if arguments.command == "unpack":
        print(unpack(arguments.file, project.store))
        for item in project.standings():
            spec = project.evaluations[item.cohort.scale]
            runs = [finished_run(job.finished, project.store, spec) for job in item.jobs if job.is_finished]
            if runs and len(runs) == item.evaluated == len(item.jobs):
                write_results(item.cohort, runs)
        return 0
    if arguments.command == "status" or arguments.dry_run:
        print(describe(project.standings(), project.machine))
        return 0
    return run(project, arguments.minutes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
