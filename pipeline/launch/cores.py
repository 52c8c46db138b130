"""On CPUs: worker processes, one a core, that each take the next run of the plan that nobody else has.

All that they share is the store. A run is locked while it is worked on, so that any number of launchers beside each
other never train or evaluate the same run twice, and none waits for another. A run goes from waypoint to waypoint; each
is evaluated, and written into `reports/`, when it is reached.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from pipeline.data.datasets import DatasetFacts, verified_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import evaluate_here, evaluation_at, waypoint_run
from pipeline.experiments.spec import CohortSpec, RunSpec
from pipeline.launch.launcher import PACE_SECONDS, Project, begin, end, record_cohort, say
from pipeline.launch.measure import time_kinds
from pipeline.launch.plan import (
    BLOCKED,
    CORE,
    RECORDED,
    RUNNABLE,
    Standing,
    evaluation_seconds,
    evaluation_shape,
    likelihood_shape,
    remember,
    remembered,
    run_named,
    run_shape,
)
from pipeline.records.facts import Given, Origin
from pipeline.records.provenance import LAUNCHER, origin
from pipeline.records.run_folder import Job, is_thinned, is_whole, read_run
from pipeline.records.status import FINISHED
from pipeline.training.cohort import relative_cost
from pipeline.training.train import Progress, run_lock, train
from pipeline.work import interruption
from pipeline.work.cohort import Pace
from pipeline.work.console import clock, counted
from pipeline.work.locks import Busy
from pipeline.work.workers import Stopped, run_parallel

LINE_SECONDS = 60.0
LEFT_ALONE = (RECORDED, BLOCKED)
UPDATES, EVALUATING, END = "updates", "evaluating", "done"


@dataclass(frozen=True)
class Piece:
    """A run and how deep it is to be taken."""

    cohort: CohortSpec
    """All of it, in the depth of its scale."""
    run: RunSpec
    """As the cohort has it."""
    steps: int

    @property
    def cell(self) -> str:
        return f"{self.cohort.key}/{self.run.name}"


@dataclass(frozen=True)
class News:
    """What a worker tells of its piece: the update that it stands at, and updates a second where they are known."""

    piece: int
    step: int
    rate: float | None = None
    doing: str = UPDATES
    error: str = ""


def pieces(project: Project, epochs: Sequence[int]) -> list[Piece]:
    """The chosen runs in their order: all to the first of `epochs`, all to the next, ..., all to their depths."""
    plan: list[Piece] = []
    for epoch in [*sorted(epochs), None]:
        for chosen in project.chosen:
            for run in chosen.runs:
                limit = run.total_steps if epoch is None else min(run.total_steps, epoch * run.steps_per_epoch)
                cohort = project.cohorts[chosen.key]
                piece = Piece(cohort, run_named(cohort, run.name), limit)
                if piece not in plan:
                    plan.append(piece)
    return plan


def job_of(project: Project, piece: Piece) -> Job:
    """The piece's run in the store."""
    jobs = project.jobs(piece.cohort)
    return next(job for job in jobs if job.spec.name == piece.run.name)


def waypoints_to(job: Job, piece: Piece) -> list[int]:
    """The waypoints of a run up to where the piece takes it."""
    return [steps for steps in sorted({*job.waypoints, piece.steps}) if steps <= piece.steps]


@dataclass
class _Worker:
    """One process's work on the pieces."""

    project: Project
    pieces: list[Piece]
    facts: Origin
    send: Callable[[News], None]
    closed: set[int] = field(default_factory=set)
    """Pieces of which nothing is left, or which failed here."""
    until: float | None = None
    """When the time is over (monotonic seconds)."""
    worked: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    images: dict[str, tuple[Tensor, DatasetFacts]] = field(default_factory=dict)
    """By dataset: the training images, and the whole of dataset.json."""

    def serve(self) -> None:
        """Take one piece after the other until none can be taken."""
        while self.take_one():
            pass

    def take_one(self) -> bool:
        """Work on the first piece that nobody works on; whether there was one."""
        for number, piece in enumerate(self.pieces):
            if interruption.stop_requested():
                raise interruption.Interrupted
            if number in self.closed:
                continue
            try:
                if self.work_on(number, piece):
                    return True
            except Busy:
                continue
            except UserError as error:
                self.fail(number, str(error))
            except interruption.Interrupted:
                raise
            except Exception:
                self.fail(number, traceback.format_exc())
        return False

    def fail(self, number: int, what: str) -> None:
        self.closed.add(number)
        self.send(News(number, 0, error=f"{self.pieces[number].cell}: {what}"))

    def work_on(self, number: int, piece: Piece) -> bool:
        """Train and evaluate one piece; False where nothing was to be done, or not yet.

        Raises: Busy where another process works on the run; UserError with what went wrong; Interrupted.
        """
        job = self.jobs.setdefault(number, job_of(self.project, piece))
        left = [steps for steps in waypoints_to(job, piece) if self.is_open(job, piece, steps)]
        if not left:
            self.closed.add(number)
            record_cohort(self.project, piece.cohort.key)
            return False
        if job.continues is not None and not job.waypoint(left[0]).exists():
            if not is_whole(job.continues):
                return False
            if (status := read_run(job.continues)["status"]) != FINISHED:
                raise UserError(f"continues {job.spec.continues}, which {status}")
        with run_lock(job, 0):
            for steps in waypoints_to(job, piece):
                if not self.reach(number, job, piece, steps):
                    self.closed.add(number)
                    break
            else:
                self.send(News(number, piece.steps, doing=END))
        self.worked = True
        return True

    def is_open(self, job: Job, piece: Piece, steps: int) -> bool:
        """Whether a waypoint is still to be made or evaluated; of those on the way none is made for its own sake."""
        if not is_whole(job.waypoint(steps), job.digest):
            return steps == piece.steps
        spec = evaluation_at(self.project.evaluations[piece.cohort.key], piece.run, steps)
        waypoint = waypoint_run(job, piece.run, steps, self.project.store, spec)
        return waypoint is not None and not waypoint.is_evaluated

    def reach(self, number: int, job: Job, piece: Piece, steps: int) -> bool:
        """Train the run to a waypoint unless it is there, then evaluate it unless that was done.

        Returns False where the evaluation would not fit into what is left of the time.
        """
        project = self.project
        at = replace(job, spec=replace(job.spec, max_steps=steps))
        folders = {mark: job.waypoint(mark) for mark in job.waypoints}
        passed = (
            mark for mark, folder in folders.items() if is_whole(folder, job.digest) or is_thinned(folder, job.digest)
        )
        deepest = max(passed, default=0)
        if steps > deepest or (steps == piece.steps and not at.is_finished):
            self.train_to(number, at)
        spec = evaluation_at(project.evaluations[piece.cohort.key], piece.run, steps)
        waypoint = waypoint_run(job, piece.run, steps, project.store, spec)
        if waypoint is None or waypoint.is_evaluated:
            return True
        shape = evaluation_shape(piece.cohort, waypoint.evaluation)
        each = remembered(project.store, CORE, shape)
        # With a whole slot ahead it is tried in any case: the time that is remembered may be wrong.
        if self.worked and self.until is not None and each is not None and time.monotonic() + each > self.until:
            self.send(News(number, steps, doing=f"left: evaluating it takes {clock(each)}, more than there is"))
            return False
        self.send(News(number, steps, doing=EVALUATING))
        start = time.monotonic()
        data = project.paths.binarized(piece.cohort.dataset)
        evaluate_here([waypoint], data, project.store, project.machine, self.facts)
        remember(project.store, CORE, shape, time.monotonic() - start)
        self.worked = True
        record_cohort(project, piece.cohort.key)
        return True

    def train_to(self, number: int, job: Job) -> None:
        images, facts = self.data_of(job.spec.dataset)
        pace = Pace()

        def report(progress: Progress) -> None:
            pace.note(progress.run, progress.step, time.monotonic())
            self.send(News(number, progress.step, pace.rate))

        try:
            machine = self.project.machine
            arguments = (images, facts, report, interruption.stop_requested, machine.checkpoint_seconds, machine.engine)
            train([job], *arguments, wait_seconds=None)
            self.worked = True
        finally:
            if pace.rate is not None and pace.seconds >= PACE_SECONDS:
                remember(self.project.store, CORE, run_shape(job.spec), pace.rate)

    def data_of(self, dataset: str) -> tuple[Tensor, Given]:
        """The training images, verified once a process, and what run.json tells."""
        if dataset not in self.images:
            data = verified_dataset(self.project.paths.binarized(dataset))
            self.images[dataset] = torch.from_numpy(data.train_images), data.info
        images, info = self.images[dataset]
        return images, {**self.facts, "data": info, "workers": self.project.machine.workers}


def work_here(project: Project, facts: Origin, send: Callable[[News], None]) -> None:
    """Train and evaluate the chosen runs one after the other in this process.

    Raises: UserError naming each run that failed and why; Interrupted when asked to stop.
    """
    errors: list[str] = []

    def hear(news: News) -> None:
        if news.error:
            errors.append(news.error)
        else:
            send(news)

    _Worker(project, pieces(project, ()), facts, hear).serve()
    if errors:
        raise UserError("\n".join(errors))


def _serve(
    worker: int,
    send: Callable[[News], None],
    *,
    project: Project,
    plan: list[Piece],
    facts: Origin,
    until: float | None,
) -> None:
    _Worker(project, plan, facts, send, until=until).serve()


@dataclass(frozen=True)
class Due:
    """An evaluation that is to be made: of the waypoint after so many updates."""

    steps: int
    seconds: float | None
    """On a core, as measured on this machine; None where it was not timed yet."""


def due_evaluations(project: Project, piece: Piece, job: Job) -> list[Due]:
    """The evaluations of a piece that are not in the store, with what they take."""
    due = []
    for steps in waypoints_to(job, piece):
        spec = evaluation_at(project.evaluations[piece.cohort.key], piece.run, steps)
        waypoint = waypoint_run(job, piece.run, steps, project.store, spec)
        if spec is not None and (waypoint is None or not waypoint.is_evaluated):
            due.append(Due(steps, evaluation_seconds(project.store, piece.cohort, spec)))
    return due


def _seconds(updates: int, rate: float | None) -> float | None:
    """What so many updates take; None where there are some and their rate is not known."""
    if updates <= 0:
        return 0.0
    return None if rate is None else updates / rate


@dataclass
class Board:
    """What the launcher tells while its workers work: a line a minute."""

    plan: list[Piece]
    done: dict[str, int]
    """By run's digest: updates that the store holds."""
    digests: list[str]
    """By piece."""
    cores: int = 1
    rates: dict[str, float] = field(default_factory=dict)
    """By shape: updates a second of a run on a core, as far as they were timed."""
    due: list[list[Due]] = field(default_factory=list)
    """By piece: its evaluations that were to be made when the work began."""
    evaluated: dict[str, int] = field(default_factory=dict)
    """By cell: the update up to which all evaluations are made."""
    current: dict[int, News] = field(default_factory=dict)
    """By worker."""
    failed: list[str] = field(default_factory=list)
    told: float = field(default_factory=time.monotonic)

    def hear(self, worker: int, news: News) -> None:
        if news.error:
            self.failed.append(self.plan[news.piece].cell)
            say(f"error: {news.error}", file=sys.stderr)
            return
        if self.current.get(worker) is None or self.current[worker].piece != news.piece:
            say(f"{self.plan[news.piece].cell}: from update {news.step:,} to {self.plan[news.piece].steps:,}")
        if news.doing != UPDATES:
            say(self.of(news))
        self.current[worker] = news
        digest = self.digests[news.piece]
        self.done[digest] = max(self.done.get(digest, 0), news.step)
        # Whoever goes on from a waypoint has evaluated it.
        if news.doing in (UPDATES, END):
            cell, passed = self.plan[news.piece].cell, news.step - (news.doing == UPDATES)
            self.evaluated[cell] = max(self.evaluated.get(cell, 0), passed)
        if news.rate:
            self.rates[run_shape(self.plan[news.piece].run)] = news.rate
        if time.monotonic() - self.told >= LINE_SECONDS:
            self.told = time.monotonic()
            say(self.line())

    def line(self) -> str:
        now = "; ".join(self.of(news) for news in self.current.values())
        return f"{100 * self.share():.2f} %, {self.left()} | {now}"

    def left(self) -> str:
        """How long all takes, training and evaluations, on all cores: `about 1:20:00 left`."""
        deepest: dict[str, int] = {}
        for number, piece in enumerate(self.plan):
            if piece.cell not in deepest or piece.steps > self.plan[deepest[piece.cell]].steps:
                deepest[piece.cell] = number
        # Cells may share a run, which is trained once.
        updates = {self.digests[i]: (self.plan[i], self.done.get(self.digests[i], 0)) for i in deepest.values()}
        parts = [_seconds(piece.steps - done, self.rates.get(run_shape(piece.run))) for piece, done in updates.values()]
        parts += [due.seconds for i in deepest.values() for due in self.waiting(i)]
        known = sum(part for part in parts if part is not None) / self.cores
        return f"about {clock(known)} left{' and what was not timed yet' if None in parts else ''}"

    def waiting(self, number: int) -> list[Due]:
        """The evaluations of a piece that are still to be made."""
        passed = self.evaluated.get(self.plan[number].cell, -1)
        return [due for due in self.due[number] if due.steps > passed] if self.due else []

    def of(self, news: News) -> str:
        piece = self.plan[news.piece]
        if news.doing != UPDATES:
            return f"{piece.cell}: {news.doing} at update {news.step:,}"
        left = ""
        if news.rate:
            evaluations = [due.seconds for due in self.waiting(news.piece)]
            known = sum(seconds for seconds in evaluations if seconds is not None)
            untimed = " and an evaluation not timed yet" if None in evaluations else ""
            left = f", {news.rate:,.0f}/s, {clock((piece.steps - news.step) / news.rate + known)} left{untimed}"
        return f"{piece.cell}: {news.step:,} of {piece.steps:,}{left}"

    def share(self) -> float:
        """Share of the work of all runs to their depths that is done; runs weigh what they cost."""
        runs = {digest: piece.run for digest, piece in zip(self.digests, self.plan, strict=True)}
        whole = sum(relative_cost(run) for run in runs.values())
        made = sum(
            relative_cost(run) * min(1.0, self.done.get(digest, 0) / run.total_steps) for digest, run in runs.items()
        )
        return made / whole if whole else 1.0


def forecast(plan: Sequence[Standing], project: Project) -> str:
    """What is ahead, in a sentence, at speeds that were measured on this machine."""
    training = sum(item.training_left or 0.0 for item in plan)
    evaluation = sum(item.evaluation_left or 0.0 for item in plan)
    untimed = " and what was not timed yet" if any(None in (i.training_left, i.evaluation_left) for i in plan) else ""
    if not training + evaluation:
        return f"ahead: {untimed.removeprefix(' and ') or 'nothing'}"
    share = 100 * evaluation / (training + evaluation)
    rates = [images_a_second(project, cohort) for cohort in project.chosen]
    known = [rate for rate in rates if rate is not None]
    speed = f" at {min(known):,.0f} to {max(known):,.0f} images a second and core" if known else ""
    cores = counted(project.machine.workers, "core")
    return f"about {clock(training + evaluation)} ahead on {cores}, {share:.0f} % of it evaluations{speed}{untimed}"


def images_a_second(project: Project, cohort: CohortSpec) -> float | None:
    """How many images' likelihoods a core estimates in a second; None where that was not timed yet."""
    rate = remembered(project.store, CORE, likelihood_shape(cohort.runs[0].latent))
    return None if rate is None else rate / project.evaluations[cohort.key].num_samples


def run(project: Project, seconds: float | None, epochs: Sequence[int] = ()) -> int:
    """Work on `project.machine.workers` processes until everything chosen is done, so many seconds are over, or a
    signal comes; returns the exit status. `epochs`: so far all runs are taken first, then so far, before their depths.
    """
    until = begin(seconds)
    standings = project.standings()
    workable = [cohort for cohort, item in zip(project.chosen, standings, strict=True) if item.need not in LEFT_ALONE]
    plan = pieces(replace(project, chosen=tuple(workable)), epochs)
    jobs = [job_of(project, piece) for piece in plan]
    open_jobs = [job for job, piece in zip(jobs, plan, strict=True) if job.steps_done < piece.steps]
    board = Board(plan, {job.digest: job.steps_done for job in jobs}, [job.digest for job in jobs])
    task = partial(_serve, project=project, plan=plan, facts=origin(LAUNCHER, project.paths), until=until)
    count = min(project.machine.workers, len(plan))
    failures: list[str] = []
    try:
        time_kinds(open_jobs, jobs, project.store, project.paths)
        say(forecast(project.standings(), project))
        board.cores = project.machine.workers
        board.due = [due_evaluations(project, piece, job) for piece, job in zip(plan, jobs, strict=True)]
        shapes = {run_shape(piece.run) for piece in plan}
        board.rates = {shape: rate for shape in shapes if (rate := remembered(project.store, CORE, shape))}
        run_parallel(task, range(count), count, board.hear, name=lambda worker: f"worker {worker}")
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        failures = ["a worker"]
    except Stopped:
        pass
    else:
        tell_busy(project.standings())
    return end(project, list(dict.fromkeys([*board.failed, *failures])))


def tell_busy(plan: Sequence[Standing]) -> None:
    """Name each run that was left because another process works on it. `plan`: after this launcher's own have ended."""
    left = {job.digest: job for item in plan if item.need in RUNNABLE for job in item.jobs}
    for job in left.values():
        try:
            with run_lock(job, 0):
                pass
        except Busy as busy:
            say(busy)
