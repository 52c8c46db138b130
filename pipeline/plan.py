"""What is done of each cohort, what is left, and how long that takes at the speed measured on this machine.

Needs torch, numpy and safetensors alone. Speeds are kept in the store:

    <store>/pace/<machine>-<shape>.json    updates a second of a stack of that shape, or seconds an evaluation takes
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.cohorts import binarized, results_folder
from pipeline.data.datasets import load_dataset
from pipeline.device import Machine
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_run
from pipeline.evaluation.evaluate import evaluation_digest
from pipeline.files import read_json, write_json
from pipeline.results import RUNS
from pipeline.spec import CohortSpec, EvaluationSpec
from pipeline.store import stored_jobs
from pipeline.training.state import CHECKPOINT, RUN_JSON, Job, checkpoint_step, read_run

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
        engine = "" if machine.engine == "auto" else f", {machine.engine}"
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
    return f"evaluate {cohort.dataset} {cohort.layers}L {evaluation_digest(spec, '')}"


def _pace_file(store: Path, machine: Machine, shape: str) -> Path:
    return store / "pace" / (re.sub(r"[^A-Za-z0-9]+", "-", f"{machine_name(machine)} {shape}") + ".json")


def remember(store: Path, machine: Machine, shape: str, value: float) -> None:
    """Keep a measured speed for the next plans; each file has one number, so launchers side by side do not collide."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(_pace_file(store, machine, shape), {"value": value, "measured": now})


def remembered(store: Path, machine: Machine, shape: str) -> float | None:
    path = _pace_file(store, machine, shape)
    return float(read_json(path)["value"]) if path.exists() else None


def _recorded(cohort: CohortSpec, jobs: list[Job], spec: EvaluationSpec) -> bool:
    """Whether the results in `reports/` are those of these very runs under this very evaluation."""
    path = results_folder(cohort.key) / RUNS
    if not path.exists():
        return False
    known = {name: (run["digest"], run["evaluation"].get("digest")) for name, run in read_json(path).items()}
    return known == {job.spec.name: (job.digest, evaluation_digest(spec, job.digest)) for job in jobs}


def standing(
    cohort: CohortSpec,
    cohorts: Mapping[str, CohortSpec],
    spec: EvaluationSpec,
    store: Path,
    machine: Machine,
    again: bool = False,
) -> Standing:
    """Where a cohort stands, from the store, the data folder and the committed results (unless `again`).

    Raises: UserError when its data is missing or a checkpoint cannot be read.
    """
    data_digest = load_dataset(binarized(cohort.dataset)).digest
    jobs = stored_jobs(cohort, cohorts, data_digest, store)
    steps = [job.spec.total_steps if job.is_finished else checkpoint_step(job.folder / CHECKPOINT) for job in jobs]
    runs = [finished_run(job.finished, job.spec, store, spec) for job in jobs if job.is_finished]
    evaluated = sum(run.is_evaluated for run in runs)
    recorded = _recorded(cohort, jobs, spec) and not (again and evaluated < len(jobs))
    rate = remembered(store, machine, training_shape(cohort, jobs))
    each = remembered(store, machine, evaluation_shape(cohort, spec))
    training_left = _quotient(sum(run.total_steps for run in cohort.runs) - sum(steps), rate)
    evaluation_left = _quotient(len(jobs) - evaluated, None if each is None else 1 / each)

    def stands(need: str, note: str = "") -> Standing:
        return Standing(cohort, need, note, tuple(jobs), tuple(steps), evaluated, training_left, evaluation_left)

    if evaluated == len(jobs):
        return stands(DONE if recorded else EVALUATE)
    if recorded:
        return stands(RECORDED)
    if len(runs) == len(jobs):
        return stands(EVALUATE)
    for job in jobs:
        if job.continues is None or job.is_finished:
            continue
        if not (job.continues / RUN_JSON).exists():
            return stands(WAITS, f"continues {job.spec.continues}, which is not finished")
        if (status := read_run(job.continues)["status"]) != "finished":
            return stands(BLOCKED, f"continues {job.spec.continues}, which {status}")
    return stands(TRAIN)


def standings(
    chosen: Sequence[CohortSpec],
    cohorts: Mapping[str, CohortSpec],
    evaluations: Mapping[str, EvaluationSpec],
    store: Path,
    machine: Machine,
    again: bool = False,
) -> list[Standing]:
    """Where the chosen cohorts stand, in their order. `evaluations`: by cohort.

    `again`: results in `reports/` do not count, only what the store holds.
    """

    def stand(cohort: CohortSpec) -> Standing:
        try:
            return standing(cohort, cohorts, evaluations[cohort.key], store, machine, again)
        except UserError as error:
            return Standing(cohort, BLOCKED, str(error))

    found = []
    for cohort in chosen:
        own = stand(cohort)
        if own.need == WAITS and cohort.continues is not None:
            source = stand(cohorts[cohort.continues])
            if source.need == RECORDED:
                note = f"{own.note} here: only its results are; bring its folder of the store, or train it with --again"
                own = replace(own, need=BLOCKED, note=note)
            elif source.need == BLOCKED:
                own = replace(own, need=BLOCKED, note=f"{own.note}: {source.note}")
        found.append(own)
    return found


def _quotient(work: int, rate: float | None) -> float | None:
    """The seconds that the work takes; None where there is some and its rate is not known."""
    if not work:
        return 0.0
    return None if rate is None else work / rate
