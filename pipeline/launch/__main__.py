"""The launcher: trains and evaluates cohorts one after the other, within a time limit, with no DVC and no MLflow.

    python -m pipeline.launch run --minutes 28                     start or continue the next unfinished cohort, and on
    python -m pipeline.launch status                               what is done, what is left, how long it takes
    python -m pipeline.launch run --only 'burda-table1-mnist-1L*'  some cohorts alone; COHORT/RUN: a single run
    python -m pipeline.launch run --to-epoch 40                    all of them so far before one goes deeper
    python -m pipeline.launch run --idle                           for days, on a machine that others use too
    python -m pipeline.launch run --ray                            all of them at once, on Ray (docs/scale-out.md)
    python -m pipeline.launch measure                              how fast this machine trains each kind of run
    python -m pipeline.launch simulate 1 4 32                      how long so many such machines would take
    python -m pipeline.launch pack runs.tar                        runs and checkpoints, to carry to another machine
    python -m pipeline.launch unpack runs.tar                      verify them there and put them into its store

Needs torch, numpy and safetensors alone (docs/gpu.md). It reads `cohorts/` and `data/binarized/`, and writes `.store/`
(or ELBO_STORE), from which `dvc repro` takes what is finished, and `reports/<scale>/results/`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import UserError
from pipeline.experiments.choices import AUTO, DEVICES, ENGINES
from pipeline.experiments.cohorts import load_cohorts, load_evaluation, load_order
from pipeline.files import disk_error, read_object
from pipeline.paths import Paths
from pipeline.records.provenance import LAUNCHER

if TYPE_CHECKING:
    from pipeline.launch.launcher import Project


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        # `argument --minutes: must be ...` as a sentence.
        told = re.sub(r"^argument (\S+): (?=must )", r"\1 ", message)
        self.exit(2, f"error: {told}; `{self.prog} --help` tells more\n")


def _count(text: str) -> int:
    """Raises: ArgumentTypeError where it is no whole number from 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be at least 1, a whole number; not {text!r}")
    return int(text)


def _amount(text: str) -> float:
    """Raises: ArgumentTypeError where it is no number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, a number such as 90 or 0.5; not {text!r}")
    return value


def _arguments(words: Sequence[str] | None, paths: Paths) -> argparse.Namespace:
    shared = _Parser(add_help=False)
    shared.add_argument("--scale", default="paper", help="a scale, or a pattern such as 'trial-*' (paper)")
    shared.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="these cohorts or runs, in this order")
    shared.add_argument("--cohorts", type=Path, default=paths.cohorts, help="the folder of resolved cohorts (cohorts)")
    shared.add_argument("--device", choices=DEVICES, default=AUTO)
    shared.add_argument("--workers", type=_count, help="processes on a CPU (one a core)")
    shared.add_argument("--engine", choices=ENGINES, default=AUTO, help="how a GPU runs updates (auto)")
    shared.add_argument("--again", action="store_true", help="train also what reports/ has but the store has not")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=f"python -m {LAUNCHER}", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    working = commands.add_parser("run", parents=[shared], help="start or continue the next unfinished cohort, and on")
    working.add_argument("--minutes", type=_amount, help="stop cleanly before so much time has passed")
    working.add_argument(
        "--to-epoch",
        type=_count,
        nargs="+",
        default=[],
        metavar="N",
        help="take all that is chosen so far (then so far) before anything goes deeper",
    )
    working.add_argument("--idle", action="store_true", help="leave the machine to others: at the lowest priority")
    working.add_argument("--checkpoint-seconds", type=_amount, default=30.0, help="a killed run loses no more (30)")
    working.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="as tasks of the Ray cluster there (auto, HOST:PORT), or of one on this machine (docs/scale-out.md)",
    )
    working.add_argument("--dry-run", action="store_true", help="print the plan alone, as status does")
    commands.add_parser("status", parents=[shared], help="what is done, what is left, how long it takes")
    commands.add_parser("measure", parents=[shared], help="time a few steps of each kind of run on this machine")
    simulating = commands.add_parser("simulate", parents=[shared], help="how long so many devices would take")
    simulating.add_argument("devices", type=_count, nargs="+")
    simulating.add_argument("--machine", metavar="NAME", help="at speeds of that machine in the store (this one)")
    simulating.add_argument("--speeds", type=Path, help="JSON: updates a second by shape, before those in the store")
    for name, text in (("pack", "put runs and checkpoints into a file"), ("unpack", "take them from a file")):
        carrying = commands.add_parser(name, parents=[shared], help=text)
        carrying.add_argument("file", type=Path)
        if name == "pack":
            carrying.add_argument(
                "--light",
                action="store_true",
                help="leave out the weights of evaluated waypoints on the way: all that begun runs need to go on",
            )
    arguments = parser.parse_args(words)
    if getattr(arguments, "ray", None) and arguments.workers is not None:
        parser.error("--workers: with --ray a run takes one core, and a cohort one GPU")
    return arguments


def _speeds(path: Path) -> dict[str, float]:
    """Updates a second by shape, as the user gives them.

    Raises: UserError naming the file and the shape whose speed is none.
    """
    given = read_object(path, "give a JSON object of updates a second by shape (docs/scale-out.md)")
    for shape, speed in given.items():
        if not isinstance(speed, int | float) or isinstance(speed, bool) or not 0 < speed < math.inf:
            raise UserError(f"{path}: {shape!r}: {speed!r} is no number of updates a second")
    return given


def _project(arguments: argparse.Namespace, paths: Paths) -> Project:
    """What the options choose, and the machine that is to do it."""
    from pipeline.launch.launcher import Project, choose
    from pipeline.records.store import store_folder
    from pipeline.work.machine import this_machine

    cohorts = load_cohorts(arguments.cohorts)
    chosen = choose(cohorts, load_order(arguments.cohorts), arguments.scale, arguments.only)
    return Project(
        cohorts=cohorts,
        evaluations={key: load_evaluation(arguments.cohorts, cohort) for key, cohort in cohorts.items()},
        chosen=tuple(chosen),
        store=store_folder(paths),
        machine=this_machine(
            "cpu" if getattr(arguments, "ray", None) else arguments.device,
            arguments.workers or "auto",
            getattr(arguments, "checkpoint_seconds", 30.0),
            arguments.engine,
            "--device cuda",
        ),
        again=arguments.again,
        paths=paths,
    )


def _measure(project: Project) -> None:
    """Time what was chosen on this machine: on a CPU runs of each kind, on a GPU a few steps of each stack."""
    from pipeline.launch.launcher import say
    from pipeline.launch.measure import measure_shapes, time_kinds

    if project.machine.device.type == "cpu":
        jobs = [job for cohort in project.chosen for job in project.jobs(cohort)]
        time_kinds(jobs, jobs, project.store, project.paths, again=True, tell=say)
        return
    for line in measure_shapes(project.chosen, project.machine, project.store, project.paths):
        say(line)


def _simulated(project: Project, arguments: argparse.Namespace) -> str:
    """How long the machines that the options name would take, as lines."""
    import torch

    from pipeline.launch.placement import at_speeds, describe_scaling
    from pipeline.launch.plan import AT_END, machine_name, remembered, single_runs

    given = _speeds(arguments.speeds) if arguments.speeds else {}
    machine = replace(project.machine, name=arguments.machine)
    on_gpu = not machine_name(machine).startswith("cpu")
    units = project.chosen if on_gpu else single_runs(project.chosen)
    # Speeds of a GPU are asked for on machines that have none.
    machine = replace(machine, device=torch.device("cuda" if on_gpu else "cpu"), workers=1)
    asked = replace(project, machine=machine, chosen=units)
    plan = [item for item in asked.standings() if item.need not in AT_END]

    def rate(shape: str) -> float | None:
        known = remembered(project.store, machine, f"train {shape}") if on_gpu else None
        return given.get(shape) or known

    return describe_scaling(at_speeds(plan, rate), arguments.devices, on_gpu)


def _work(project: Project, arguments: argparse.Namespace, start: float) -> int:
    """Train and evaluate what was chosen, or say what there is to do. `start`: when the time limit began to count.

    Returns the exit status.
    """
    from pipeline.launch import cores
    from pipeline.launch.launcher import check_epochs, describe, run, say
    from pipeline.work.priority import yield_to_others

    on_ray = getattr(arguments, "ray", None)
    limit = getattr(arguments, "minutes", None)
    seconds = None if limit is None else max(0.0, 60 * limit - (time.monotonic() - start))
    if on_ray:
        from pipeline.launch import cluster

        check_epochs(project, arguments.to_epoch)
        return cluster.run(project, on_ray, arguments.device, seconds, arguments.to_epoch, arguments.dry_run)
    if arguments.command == "status" or arguments.dry_run:
        print(describe(project.standings(), project.machine, project.paths))
        return 0
    check_epochs(project, arguments.to_epoch)
    if arguments.idle:
        say(yield_to_others())
    if project.machine.device.type == "cpu":
        return cores.run(project, seconds, arguments.to_epoch)
    return run(project, seconds, arguments.to_epoch)


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line asks for: show the plan, time, train, evaluate, pack or bring in results.

    `words`: the options in place of the command line's. Returns the exit status: 0 when all that was chosen is done.
    """
    start, paths = time.monotonic(), Paths()
    arguments = _arguments(words, paths)
    # Importing torch takes seconds: they count towards the limit, and a mistyped option is answered before.
    from pipeline.launch.archive import pack, unpack
    from pipeline.launch.launcher import record

    project = _project(arguments, paths)
    if arguments.command == "pack":
        light = project.evaluations if arguments.light else None
        print(pack(arguments.file, project.chosen, project.cohorts, project.store, paths, light))
    elif arguments.command == "unpack":
        print(unpack(arguments.file, project.store))
        record(project)
    elif arguments.command == "measure":
        _measure(project)
    elif arguments.command == "simulate":
        print(_simulated(project, arguments))
    else:
        return _work(project, arguments, start)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {disk_error(error.filename or 'the disk', 'used', error)}")
