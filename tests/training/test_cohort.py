"""Training a cohort: how it is spread, that nothing is trained twice, and how long it is said to take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import stages.train as stage
from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec, RunSpec, digest
from pipeline.paths import HERE
from pipeline.records.run_folder import WEIGHTS, Job, read_run, read_weights
from pipeline.training.cohort import estimated_hours, relative_cost, stacks, train_jobs
from pipeline.training.train import Progress, run_lock, train
from pipeline.work.machine import Machine
from tests.conftest import make_run, write_dataset

ONE_PROCESS, TWO_PROCESSES = (Machine(torch.device("cpu"), count, 1e9) for count in (1, 2))
GPU = Machine(torch.device("cuda"), 1, 1e9)
HOUR = 3600.0


@pytest.fixture(scope="module")
def data(grey_images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("binarized") / "mnist", grey_images)


def job_for(run: RunSpec, store: Path, continues: Path | None = None) -> Job:
    run_digest = digest(run, "data")
    return Job(run, run_digest, store / run_digest, continues)


def cohort_of(*runs: RunSpec, scale: str = "tiny") -> CohortSpec:
    return CohortSpec(scale, "first", f"first-mnist-1L-T{runs[0].T}", runs)


def train_all(jobs: list[Job], data: Path, machine: Machine = TWO_PROCESSES) -> list[Progress]:
    seen: list[Progress] = []
    train_jobs(jobs, data, machine, {"git_revision": "abc"}, seen.append, lambda: None)
    return seen


def files(jobs: list[Job]) -> dict[Path, tuple[int, int]]:
    """Every file of the jobs and what changes when it is written again."""
    paths = [path for job in jobs for path in job.folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_cost_follows_steps_samples_and_depth() -> None:
    run = make_run("iwae", 1, 5)
    longer, wider, deeper = replace(run, max_steps=40), replace(run, K=50), replace(run, latent=(100, 50))
    assert relative_cost(longer) == 2 * relative_cost(run)
    for other in (wider, deeper):
        assert relative_cost(other) > relative_cost(run)
    # Only the number of samples counts, however it is split.
    assert relative_cost(make_run("vae", 5, 1)) == relative_cost(run)
    # Small runs are dominated by what does not depend on the samples.
    assert relative_cost(wider) < 10 * relative_cost(run)


def test_on_a_cpu_each_run_is_alone_and_the_longest_is_first(tmp_path: Path) -> None:
    steps = [20, 300, 4_000, 100]
    jobs = [job_for(make_run(max_steps=count), tmp_path) for count in steps]
    spread = stacks(jobs, TWO_PROCESSES)
    assert all(len(stack) == 1 for stack in spread)
    # 200 images are 10 steps an epoch.
    assert [stack[0].spec.total_steps for stack in spread] == [4_000, 300, 100, 20]


def test_on_a_gpu_all_runs_are_one_stack(tmp_path: Path) -> None:
    jobs = [job_for(make_run(seed=seed), tmp_path) for seed in range(3)]
    assert stacks(jobs, GPU) == [jobs]


def test_on_a_gpu_other_sample_counts_are_other_stacks(tmp_path: Path) -> None:
    few, many = make_run("iwae", 1, 5), make_run("miwae", 2, 4)
    jobs = [job_for(run, tmp_path) for run in (few, many, replace(few, seed=1), make_run("vae", 8, 1))]
    assert stacks(jobs, GPU) == [[jobs[1], jobs[3]], [jobs[0], jobs[2]]]


def test_every_job_is_trained_once(data: Path, grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    jobs = [job_for(run, tmp_path / "store") for run in (make_run(), make_run("vae", 5, 1), make_run(seed=1))]
    progress = train_all(jobs[:2], data)
    assert {p.run for p in progress if p.finished} == {"iwae-M1-K5-s0", "vae-M5-K1-s0"}
    for job in jobs[:2]:
        content = read_run(job.finished)
        assert (content["status"], content["digest"]) == ("finished", job.digest)
        assert RunSpec.from_json(content["spec"]) == job.spec
        assert content["training"]["git_revision"] == "abc"
        assert (content["training"]["steps"], content["training"]["threads"]) == (20, 1)
    before = files(jobs[:2])
    assert train_all(jobs[:2], data) == []
    # A new run leaves the finished ones alone.
    assert [p.run for p in train_all(jobs, data) if p.finished] == [jobs[2].spec.name]
    assert files(jobs[:2]) == before
    # The same as in this process, on the same images.
    solo = job_for(jobs[0].spec, tmp_path / "solo")
    train([solo], torch.from_numpy(grey_images[:500]), {}, lambda _: None, lambda: False, 1e9)
    weights = [read_weights(job.finished / WEIGHTS, (50,)) for job in (jobs[0], solo)]
    assert torch.equal(*weights)


def test_a_job_that_fails_spares_the_others(data: Path, tmp_path: Path) -> None:
    orphan = job_for(make_run(continues="tiny/a/b"), tmp_path, tmp_path / "nowhere")
    other = job_for(make_run("vae", 5, 1), tmp_path)
    with pytest.raises(UserError, match=r"nowhere/run\.json: missing"):
        train_all([orphan, other], data, ONE_PROCESS)
    assert other.is_finished
    assert not orphan.is_finished


def test_a_run_that_another_process_trains_is_named_once(data: Path, tmp_path: Path) -> None:
    busy, other = job_for(make_run(), tmp_path), job_for(make_run("vae", 5, 1), tmp_path)
    with run_lock(busy, 0), pytest.raises(UserError) as caught:
        train_all([busy, other], data, ONE_PROCESS)
    assert str(caught.value).startswith(f"iwae-M1-K5-s0 ({busy.digest}): process {os.getpid()} is working on it;")
    assert str(caught.value).count(busy.spec.name) == 1
    assert other.is_finished


def test_missing_data_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json: missing; run `dvc repro binarize@mnist`"):
        train_all([job_for(make_run(), tmp_path)], tmp_path / "mnist", ONE_PROCESS)


@pytest.fixture
def one_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(task: Any, items: Sequence[Job], workers: int, on_message: Callable[[int, float], None]) -> None:
        on_message(0, 1.0)

    monkeypatch.setattr("pipeline.training.cohort.run_parallel", timed)


@pytest.mark.usefixtures("one_second_a_step")
def test_estimate_is_steps_times_seconds(tmp_path: Path) -> None:
    run = make_run("iwae", 1, 50, max_steps=7_200)
    job, cohort = job_for(run, tmp_path), cohort_of(run)
    assert estimated_hours(job, tmp_path, ONE_PROCESS, [cohort]) == pytest.approx(2)
    assert estimated_hours(job, tmp_path, ONE_PROCESS, 3 * [cohort]) == pytest.approx(6)
    assert estimated_hours(job, tmp_path, ONE_PROCESS, [cohort_of(run, run), cohort]) == pytest.approx(6)
    assert estimated_hours(job, tmp_path, TWO_PROCESSES, 3 * [cohort]) == pytest.approx(3)
    # Runs with fewer samples take less time than the timed one.
    small = cohort_of(make_run("iwae", 1, 5, max_steps=7_200))
    assert 0 < estimated_hours(job, tmp_path, ONE_PROCESS, [small]) < 1
    assert estimated_hours(job, tmp_path, ONE_PROCESS, []) == 0


@pytest.mark.usefixtures("one_second_a_step")
def test_estimate_on_a_gpu_counts_a_stack_once(tmp_path: Path) -> None:
    run = make_run("iwae", 1, 50, max_steps=7_200)
    cohort = cohort_of(run, replace(run, max_steps=3_600), run)
    job = job_for(run, tmp_path)
    assert estimated_hours(job, tmp_path, GPU, 2 * [cohort]) == pytest.approx(4)
    # Another sample count is another stack.
    few = replace(run, K=5)
    alone = estimated_hours(job, tmp_path, GPU, [cohort_of(few)])
    assert estimated_hours(job, tmp_path, GPU, [cohort_of(run, few, run, few)]) == pytest.approx(2 + alone)


def test_estimate_from_real_steps(data: Path, tmp_path: Path) -> None:
    run = make_run(max_steps=None)
    job = job_for(run, tmp_path)
    hours = estimated_hours(job, data, ONE_PROCESS, [cohort_of(run)])
    # 32,800 small steps: between a tenth of a millisecond and a second each.
    assert 1e-4 * run.total_steps / HOUR < hours < run.total_steps / HOUR
    # The estimate leaves nothing behind.
    assert not job.folder.exists()


LONG = make_run(train_images=60_000, max_steps=None)


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the estimate will say (`hours`), and of which cohorts it was asked (`cohorts`)."""
    told: dict[str, Any] = {"hours": 24.5}

    def estimated(job: Job, data: Path, machine: Machine, cohorts: list[CohortSpec]) -> float:
        told["cohorts"], told["job"] = [cohort.key for cohort in cohorts], job
        return float(told["hours"])

    grid = [cohort_of(LONG), cohort_of(replace(LONG, K=50)), cohort_of(LONG, scale="other")]
    monkeypatch.delenv("ELBO_ALLOW_SLOW", raising=False)
    monkeypatch.setattr(stage, "estimated_hours", estimated)
    monkeypatch.setattr(stage, "load_cohorts", lambda folder: {cohort.key: cohort for cohort in grid})
    return told


def check_duration(*runs: RunSpec) -> None:
    stage.check_duration(cohort_of(*runs), [job_for(run, Path("store")) for run in runs], TWO_PROCESSES, HERE)


def test_work_of_days_is_refused(estimate: dict[str, Any]) -> None:
    estimate["hours"] = 240.0
    with pytest.raises(UserError) as caught:
        check_duration(replace(LONG, K=1), LONG)
    text = str(caught.value)
    assert text.startswith("tiny/first-mnist-1L-T1: the tiny scale would train for about 10 days on this machine")
    assert "(cpu, 2 processes)" in text
    assert "GPU" in text
    assert "`make repro`" in text
    assert text.endswith("To go on all the same: ELBO_ALLOW_SLOW=1")
    # The whole scale, no other; timed with the run that has most samples.
    assert estimate["cohorts"] == ["tiny/first-mnist-1L-T5", "tiny/first-mnist-1L-T50"]
    assert estimate["job"].spec.K == 5


def test_a_day_is_the_limit(estimate: dict[str, Any]) -> None:
    estimate["hours"] = 23.9
    check_duration(LONG)
    estimate["hours"] = 24.1
    with pytest.raises(UserError, match="ELBO_ALLOW_SLOW"):
        check_duration(LONG)


def test_slow_work_can_be_allowed(estimate: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELBO_ALLOW_SLOW", "1")
    check_duration(LONG)
    assert "cohorts" not in estimate


def test_short_cohorts_are_not_timed(estimate: dict[str, Any]) -> None:
    check_duration(*(make_run(max_steps=1_000, seed=seed) for seed in range(20)))
    assert "cohorts" not in estimate
