"""What is done of each cohort, what is left, and how long that takes at the speed measured on this machine.

Needs torch, numpy and safetensors alone. Speeds are kept in the store:

    <store>/pace/<machine>-<shape>.json    updates a second of a stack of that shape, or seconds an evaluation takes
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.data.catalogue import DATASETS
from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import Finished, due_waypoints, evaluation_at
from pipeline.evaluation.evaluate import evaluation_digest
from pipeline.experiments.choices import AUTO
from pipeline.experiments.schedule import stage_ends
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, RunSpec, digest
from pipeline.files import content_of, read_object, write_json
from pipeline.paths import Paths
from pipeline.records.results import RUNS
from pipeline.records.run_folder import Job, is_whole, read_run
from pipeline.records.status import FINISHED
from pipeline.records.store import Marks, depths, stored_jobs
from pipeline.work.machine import Machine

RECORDED, DONE, EVALUATE, TRAIN, WAITS, BLOCKED = "recorded", "done", "evaluate", "train", "waits", "blocked"
"""What a cohort needs. recorded: its results are in `reports/` and the store lacks the runs; waits: another cohort's
runs come first; blocked: something that this machine cannot mend, which `note` says."""
AT_END = (RECORDED, DONE)
RUNNABLE = (EVALUATE, TRAIN)


@dataclass(frozen=True)
class Standing:
    """Where a cohort stands."""

    cohort: CohortSpec
    need: str
    note: str = ""
    jobs: tuple[Job, ...] = ()
    steps: tuple[int, ...] = ()
    """Updates that each job has made."""
    evaluated: int = 0
    training_left: float | None = None
    evaluation_left: float | None = None
    """Seconds, at speeds measured on this machine; None where they were not timed yet."""

    @property
    def total_steps(self) -> int:
        return sum(run.total_steps for run in self.cohort.runs)

    @property
    def share_trained(self) -> float:
        return 1.0 if self.need == RECORDED else sum(self.steps) / self.total_steps


def machine_name(machine: Machine) -> str:
    """What speeds depend on: the GPU and the engine where one was asked for, or the number of processes on a CPU."""
    if machine.name is not None:
        return machine.name
    if machine.device.type == "cuda":
        engine = "" if machine.engine == AUTO else f", {machine.engine}"
        return torch.cuda.get_device_name(machine.device) + engine
    return f"cpu, {machine.workers} processes"


def training_shape(cohort: CohortSpec, jobs: list[Job]) -> str:
    """What the speed of a stack depends on beside the machine: the dataset does not matter."""
    return f"train {shape_of(cohort, sum(not job.is_finished for job in jobs))}"


def shape_of(cohort: CohortSpec, count: int) -> str:
    """The shape of the stacks that so many of a cohort's runs form."""
    counts = "-".join(str(T) for T in sorted({run.T for run in cohort.runs}))
    return f"{cohort.layers}L T{counts} R{count} {cohort.runs[0].precision}"


def evaluation_shape(cohort: CohortSpec, spec: EvaluationSpec) -> str:
    """What the time of an evaluation depends on, as a key for remembered times.

    Dataset and layers name the networks; the digest covers numbers of samples and images, but no run and no depth.
    """
    return f"evaluate {cohort.dataset} {cohort.layers}L {evaluation_digest(spec, '', 0)}"


MOST_TEST_IMAGES = max(dataset.test_images for dataset in DATASETS.values())
"""OMNIGLOT has fewer than MNIST; what an evaluation of all its images takes is overrated by a quarter."""
CORE = Machine(torch.device("cpu"), 1, 0.0, name="cpu core")
"""Speeds of a run, and of an evaluation, on one core."""


def run_shape(run: RunSpec) -> str:
    """What the speed of a single run on a core depends on."""
    return f"train {run.layers}L T{run.T} {run.precision}"


def likelihood_shape(latent: Sequence[int]) -> str:
    """What the speed of a likelihood estimate on a core depends on, in samples of an image a second."""
    return "likelihood " + "-".join(map(str, latent))


def image_samples(spec: EvaluationSpec) -> int:
    """Samples of images that an evaluation draws for its likelihoods, which are nearly all of its work."""
    test = spec.test_images or MOST_TEST_IMAGES
    drawn = (test + min(test, spec.pruned_images) + spec.train_images) * spec.num_samples
    if spec.binarizations > 1:
        drawn += spec.binarizations * min(MOST_TEST_IMAGES, spec.binarization_images) * spec.binarization_samples
    return drawn


def evaluation_seconds(store: Path, cohort: CohortSpec, spec: EvaluationSpec) -> float | None:
    """What an evaluation takes on a core: as it was measured, else from the speed of likelihoods; None without any."""
    measured = remembered(store, CORE, evaluation_shape(cohort, spec))
    if measured is not None:
        return measured
    rate = remembered(store, CORE, likelihood_shape(cohort.runs[0].latent))
    return None if rate is None else image_samples(spec) / rate


def _pace_file(store: Path, machine: Machine, shape: str) -> Path:
    return store / "pace" / (re.sub(r"[^A-Za-z0-9]+", "-", f"{machine_name(machine)} {shape}") + ".json")


def remember(store: Path, machine: Machine, shape: str, value: float) -> None:
    """Keep a measured speed for the next plans; each file has one number, so launchers side by side do not collide."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(_pace_file(store, machine, shape), {"value": value, "measured": now})


def remembered(store: Path, machine: Machine, shape: str) -> float | None:
    """The speed that was measured; None where none was, or what is kept is no speed."""
    path = _pace_file(store, machine, shape)
    if not path.exists():
        return None
    with suppress(UserError), content_of(path, "a speed"):
        value = float(read_object(path)["value"])
        return value if 0 < value < math.inf else None
    return None


def _recorded(
    cohort: CohortSpec, whole: CohortSpec, jobs: list[Job], spec: EvaluationSpec, data_digest: str, paths: Paths
) -> bool:
    """Whether the results in `reports/` are those of these very runs under this very evaluation.

    `whole`: the cohort with all its runs, at its scale's depth.
    """
    path = paths.cohort_results(cohort.key) / RUNS
    if not path.exists():
        return False
    try:
        with content_of(path, "a cohort's results"):
            results = read_object(path).items()
            known = {name: (run["digest"], run["evaluation"].get("digest")) for name, run in results}
    except UserError:
        return False  # Damaged: what the store has is written anew.

    def expected(job: Job, run: RunSpec) -> tuple[str, str]:
        run_digest = digest(run, data_digest, job.origin)
        at = evaluation_at(spec, run_named(whole, run.name), run.total_steps)
        return run_digest, "" if at is None else evaluation_digest(at, run_digest, run.total_steps)

    pairs = list(zip(jobs, cohort.runs, strict=True))
    # They may come from a GPU, whose precision is another.
    return all(known.get(run.name) in (expected(job, run), expected(job, job.spec)) for job, run in pairs)


def single_runs(chosen: Sequence[CohortSpec]) -> tuple[CohortSpec, ...]:
    """The same runs, each in a cohort of its own: on cores runs train alone, on a GPU a cohort's train in stacks."""
    return tuple(replace(cohort, runs=(run,)) for cohort in chosen for run in cohort.runs)


def unit_name(cohort: CohortSpec, on_gpu: bool) -> str:
    """What a device takes at once: a cohort on a GPU, one of `single_runs` on a core."""
    return cohort.key if on_gpu else f"{cohort.key}/{cohort.runs[0].name}"


def run_named(cohort: CohortSpec, name: str) -> RunSpec:
    """The run of a cohort that has this name.

    Raises: StopIteration when there is none.
    """
    return next(run for run in cohort.runs if run.name == name)


def due_by_run(jobs: Sequence[Job], cohort: CohortSpec, store: Path, spec: EvaluationSpec) -> list[list[Finished]]:
    """The waypoints of each job up to its depth that are to be evaluated. `cohort`: theirs, at its scale's depth."""
    due = []
    for job in jobs:
        every = due_waypoints(job, run_named(cohort, job.spec.name), store, spec)
        due.append([waypoint for waypoint in every if waypoint.spec.total_steps <= job.spec.total_steps])
    return due


def standing(
    cohort: CohortSpec,
    cohorts: Mapping[str, CohortSpec],
    spec: EvaluationSpec,
    store: Path,
    machine: Machine,
    again: bool,
    marks: Marks,
    paths: Paths,
) -> Standing:
    """Where a cohort stands, from the store, the data folder and the committed results (unless `again`).

    `marks`: of `depths(cohorts)`.

    Raises: UserError when its data is missing or a checkpoint cannot be read.
    """
    data_digest = load_dataset(paths.binarized(cohort.dataset)).digest
    jobs = stored_jobs(cohort, cohorts, data_digest, store, machine.device.type, marks)
    steps = [job.steps_done for job in jobs]
    due = due_by_run(jobs, cohorts[cohort.key], store, spec)
    finished = [job.is_finished for job in jobs]
    evaluated = sum(
        is_finished and all(waypoint.is_evaluated for waypoint in waypoints)
        for is_finished, waypoints in zip(finished, due, strict=True)
    )
    recorded = _recorded(cohort, cohorts[cohort.key], jobs, spec, data_digest, paths)
    recorded = recorded and not (again and evaluated < len(jobs))
    rate = remembered(store, machine, training_shape(cohort, jobs))
    each = remembered(store, machine, evaluation_shape(cohort, spec))
    training_left = _quotient(sum(run.total_steps for run in cohort.runs) - sum(steps), rate)
    evaluation_left = _quotient(len(jobs) - evaluated, None if each is None else 1 / each)
    if machine.device.type == "cpu":
        full = cohorts[cohort.key]
        training_left, evaluation_left = _on_cores(full, jobs, steps, due, spec, store, machine)

    def stands(need: str, note: str = "") -> Standing:
        return Standing(cohort, need, note, tuple(jobs), tuple(steps), evaluated, training_left, evaluation_left)

    if evaluated == len(jobs):
        return stands(DONE if recorded else EVALUATE)
    if recorded:
        return stands(RECORDED)
    if all(finished):
        return stands(EVALUATE)
    for job in jobs:
        if job.continues is None or job.is_finished:
            continue
        if not is_whole(job.continues):
            return stands(WAITS, f"continues {job.spec.continues}, which is not finished")
        if (status := read_run(job.continues)["status"]) != FINISHED:
            return stands(BLOCKED, f"continues {job.spec.continues}, which {status}")
    return stands(TRAIN)


def _on_cores(
    cohort: CohortSpec,
    jobs: Sequence[Job],
    steps: Sequence[int],
    due: Sequence[Sequence[Finished]],
    spec: EvaluationSpec,
    store: Path,
    machine: Machine,
) -> tuple[float | None, float | None]:
    """Seconds of training and of evaluations that are left of a cohort, a run a core; None where not timed yet."""
    training = [
        _quotient(job.spec.total_steps - done, remembered(store, CORE, run_shape(job.spec)))
        for job, done in zip(jobs, steps, strict=True)
    ]
    evaluations: list[float | None] = []
    for job, done, there in zip(jobs, steps, due, strict=True):
        run = run_named(cohort, job.spec.name)
        # Those that wait, and those of waypoints to come.
        waiting = [waypoint.evaluation for waypoint in there if not waypoint.is_evaluated]
        waiting += [at for end in stage_ends(job.spec) if end > done and (at := evaluation_at(spec, run, end))]
        if job.spec.total_steps > done and job.spec.total_steps not in stage_ends(job.spec):
            waiting += [at for at in [evaluation_at(spec, run, job.spec.total_steps)] if at]
        evaluations += [evaluation_seconds(store, cohort, at) for at in waiting]

    def total(parts: Sequence[float | None]) -> float | None:
        known = [part for part in parts if part is not None]
        return sum(known) / machine.workers if len(known) == len(parts) else None

    return total(training), total(evaluations)


def standings(
    chosen: Sequence[CohortSpec],
    cohorts: Mapping[str, CohortSpec],
    evaluations: Mapping[str, EvaluationSpec],
    store: Path,
    machine: Machine,
    again: bool,
    paths: Paths,
) -> list[Standing]:
    """Where the chosen cohorts stand, in their order. `evaluations`: by cohort.

    `again`: results in `reports/` do not count, only what the store holds.
    """
    marks = depths(cohorts)

    def stand(cohort: CohortSpec) -> Standing:
        try:
            return standing(cohort, cohorts, evaluations[cohort.key], store, machine, again, marks, paths)
        except UserError as error:
            return Standing(cohort, BLOCKED, str(error))

    items = []
    for cohort in chosen:
        item = stand(cohort)
        if item.need == WAITS and cohort.continues is not None:
            source = stand(cohorts[cohort.continues])
            if source.need == RECORDED:
                note = (
                    f"{item.note} here: only its results are; bring its folder of the store, or train it with --again"
                )
                item = replace(item, need=BLOCKED, note=note)
            elif source.need == BLOCKED:
                item = replace(item, need=BLOCKED, note=f"{item.note}: {source.note}")
        items.append(item)
    return items


def _quotient(work: int, rate: float | None) -> float | None:
    """The seconds that the work takes; None where there is some and its rate is not known."""
    if not work:
        return 0.0
    return None if rate is None else work / rate
