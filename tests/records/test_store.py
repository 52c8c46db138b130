"""The store: which folder a run has, copying what is finished, and one process a cohort."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec, digest, origin_of
from pipeline.models.networks import count_parameters
from pipeline.records.run_folder import (
    HISTORY,
    OPTIMIZER,
    RUN_JSON,
    WEIGHTS,
    Job,
    RunState,
    load_waypoint,
    read_run,
    read_weights,
    stored_waypoints,
    verify_waypoint,
    waypoint_name,
    write_waypoint,
)
from pipeline.records.sealed import write_sealed_json
from pipeline.records.store import (
    LOCK_VARIABLE,
    STORE_VARIABLE,
    cohort_jobs,
    cohort_lock,
    copy_finished,
    forget,
    store_folder,
    stored_jobs,
    training_folder,
)
from tests.conftest import PATIENCE_SECONDS, make_run

KEY = "tiny/second-mnist-1L-T5"
SOURCE = "tiny/first-mnist-1L-T1/vae-M1-K1-s0"


def cohort_of(*runs: Any) -> CohortSpec:
    return CohortSpec("tiny", "second", "second-mnist-1L-T5", runs)


def finished_job(store: Path, name: str) -> Job:
    """Of 20 updates, with a waypoint after 10 at the end of its first stage."""
    job = Job(make_run(name=name), f"digest-{name}", store / f"digest-{name}", None)
    for steps in (10, 20):
        flat = torch.full((count_parameters((50,)),), float(steps))
        write_waypoint(job, RunState(steps, flat, flat.clone(), flat.clone()), {})
    return job


FIRST = CohortSpec("tiny", "first", "first-mnist-1L-T1", (make_run("vae", 1, 1),))


def cohorts_with(*runs: Any) -> dict[str, CohortSpec]:
    cohort = cohort_of(*runs)
    return {FIRST.key: FIRST, cohort.key: cohort}


def jobs_of(*runs: Any, data: str = "data", store: Path, under: Path, device: str = "cpu") -> list[Job]:
    return cohort_jobs(cohort_of(*runs), cohorts_with(*runs), data, store, under, device)


def source_run(runs: Path, status: str, steps: int = 20) -> Path:
    key, _, name = SOURCE.rpartition("/")
    folder = training_folder(runs, key) / name
    run_digest = digest(FIRST.runs[0], "data")
    content = {"spec": {}, "digest": run_digest, "steps": steps, "status": status, "training": {}, "files": {}}
    write_sealed_json(folder / RUN_JSON, content)
    return folder


def test_jobs_lie_under_their_digests(tmp_path: Path) -> None:
    runs = [make_run(), make_run("vae", 5, 1)]
    jobs = jobs_of(*runs, store=tmp_path / "store", under=tmp_path / "runs")
    assert [job.spec for job in jobs] == runs
    for job, run in zip(jobs, runs, strict=True):
        assert job.digest == digest(run, "data")
        assert job.folder == tmp_path / "store" / job.digest
        assert job.continues is None
        assert not job.is_finished
    assert jobs[0].digest != jobs_of(*runs, data="other data", store=tmp_path, under=tmp_path)[0].digest


def test_a_continued_run_is_found_and_enters_the_digest(tmp_path: Path) -> None:
    run = make_run(continues=SOURCE)
    folder = source_run(tmp_path, "finished")
    (job,) = jobs_of(run, store=tmp_path / "store", under=tmp_path)
    assert job.continues == folder == tmp_path / "tiny/first-mnist-1L-T1/training/vae-M1-K1-s0"
    assert job.origin == origin_of(digest(FIRST.runs[0], "data"), 20)
    assert job.digest == digest(run, "data", job.origin)
    assert job.digest != digest(run, "data")


def test_a_diverged_run_is_not_continued(tmp_path: Path) -> None:
    source_run(tmp_path, "diverged at step 7")
    with pytest.raises(UserError) as caught:
        jobs_of(make_run(continues=SOURCE), store=tmp_path / "store", under=tmp_path)
    assert str(caught.value) == f"{KEY}/iwae-M1-K5-s0 continues {SOURCE}, which diverged at step 7"


def test_a_run_that_is_not_as_deep_is_not_continued(tmp_path: Path) -> None:
    source_run(tmp_path, "finished", steps=10)
    with pytest.raises(UserError) as caught:
        jobs_of(make_run(continues=SOURCE), store=tmp_path / "store", under=tmp_path)
    told = f"{KEY}/iwae-M1-K5-s0 continues {SOURCE}, which stands at 10 of 20 updates under "
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith("; train it on: python -m stages.train tiny/first-mnist-1L-T1")


def test_another_run_in_its_place_is_not_continued(tmp_path: Path) -> None:
    source_run(tmp_path, "finished")
    with pytest.raises(
        UserError, match=r"which is another run under .*; train it again: python -m stages.train tiny/f"
    ):
        jobs_of(make_run(continues=SOURCE), data="other data", store=tmp_path / "store", under=tmp_path)


def test_a_missing_run_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"first-mnist-1L-T1/training/vae-M1-K1-s0/run\.json: missing"):
        jobs_of(make_run(continues=SOURCE), store=tmp_path / "store", under=tmp_path)


def test_copying_replaces_what_was_there(tmp_path: Path) -> None:
    jobs = [finished_job(tmp_path / "store", name) for name in ("a", "b")]
    target = tmp_path / "training"
    for old in (target / "a", target / "gone", target / ".a.part"):
        old.mkdir(parents=True)
        (old / "old.txt").touch()
    copy_finished(jobs, target)
    # The run at its depth, and the weights at the end of its first stage.
    earlier = waypoint_name(10)
    files = (RUN_JSON, WEIGHTS, OPTIMIZER, HISTORY, f"{earlier}/{RUN_JSON}", f"{earlier}/{WEIGHTS}")
    paths = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert paths == {f"{run}/{name}" for run in "ab" for name in files}
    assert float(read_weights(target / "b" / WEIGHTS, (50,), "digest-b")[0]) == 20
    assert float(read_weights(target / "b" / earlier / WEIGHTS, (50,), "digest-b")[0]) == 10
    # Copied: DVC moves and deletes its outputs.
    shutil.rmtree(target)
    assert all(job.is_finished for job in jobs)


def test_copies_of_equal_runs_are_the_same_bytes_whenever_they_were_trained(tmp_path: Path) -> None:
    """DVC's lock names the copies' digests: a run that is made again must not change it."""
    copies = []
    for day, seconds in ((1, 3.5), (2, 70.25)):
        job = Job(make_run(), "digest", tmp_path / f"store{day}" / "digest", None)
        for steps in (10, 20):
            flat = torch.full((count_parameters((50,)),), float(steps))
            row = [float(steps), 1.0, 1e-3, seconds, -90.0, -91.0, -89.0, -80.0, 1.0]
            state = RunState(steps, flat, flat.clone(), flat.clone(), history=[row], seconds=seconds)
            state.started = f"2030-01-0{day}T00:00:00+00:00"
            state.stretches = [{"device": f"machine {day}", "wall_s": seconds}]
            write_waypoint(job, state, {"steps": steps, "wall_s": seconds, "started": state.started})
        target = tmp_path / f"training{day}"
        copy_finished([job], target)
        copies.append(
            {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        )
        folder = target / make_run().name
        assert verify_waypoint(folder, "digest")["training"] == {"steps": 20}
        assert load_waypoint(folder, (50,), "digest").history[0][:3] == row[:3]
        assert read_run(job.finished)["training"]["wall_s"] == seconds, "the store keeps it"
    assert copies[0] == copies[1]


def test_a_copy_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [finished_job(tmp_path / "store", name) for name in ("a", "b")]
    target = tmp_path / "training"
    copy2 = shutil.copy2

    def full(source: Path, destination: Path) -> Path:
        if jobs[0].folder in source.parents:
            return Path(copy2(source, destination))
        destination.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.records.store.shutil.copy2", full)
    message = re.escape(f"{target / 'b'}: cannot be written (")
    with pytest.raises(UserError, match=f"{message}.*No space left on device.*; free some space"):
        copy_finished(jobs, target)
    # What is there is whole.
    assert [path.name for path in target.iterdir()] == ["a"]
    assert verify_waypoint(target / "a")["digest"] == "digest-a"


def test_what_is_damaged_is_not_copied(tmp_path: Path) -> None:
    jobs = [finished_job(tmp_path / "store", name) for name in ("a", "b")]
    path = jobs[1].finished / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=re.escape(f"{path}: damaged")):
        copy_finished(jobs, tmp_path / "training")
    assert [folder.name for folder in (tmp_path / "training").iterdir()] == ["a"]


def test_what_is_asked_for_is_taken_where_it_is_there_else_what_the_device_computes(tmp_path: Path) -> None:
    run = make_run(precision="tf32")
    computed, asked = (jobs_of(spec, store=tmp_path, under=tmp_path, device="cuda")[0] for spec in (make_run(), run))
    assert computed.digest != asked.digest

    def on_a_cpu() -> Job:
        return jobs_of(run, store=tmp_path, under=tmp_path)[0]

    assert (on_a_cpu().digest, on_a_cpu().spec.precision) == (computed.digest, "float32")
    flat = torch.zeros(count_parameters((50,)))
    write_waypoint(asked, RunState(20, flat, flat.clone(), flat.clone()), {})
    assert on_a_cpu() == asked


def test_depths_of_one_trajectory_are_known_to_all_its_runs(tmp_path: Path) -> None:
    runs = {scale: make_run(max_steps=depth) for scale, depth in (("quick", 20), ("overnight", 400), ("paper", None))}
    cohorts = {
        f"{scale}/a-mnist-1L-T5": CohortSpec(scale, "a", "a-mnist-1L-T5", (run, make_run(seed=1, max_steps=7)))
        for scale, run in runs.items()
    }
    for cohort in cohorts.values():
        first, other = stored_jobs(cohort, cohorts, "data", tmp_path, "cpu")
        assert first.marks == (20, 400, 32_800)
        assert other.marks == (7,)
        assert first.waypoints == sorted({10, 20, 40, 130, 400, 1210, 3640, 10_930, 32_800} & set(first.waypoints))
    assert len({stored_jobs(cohort, cohorts, "data", tmp_path, "cpu")[0].digest for cohort in cohorts.values()}) == 1
    # Runs that continue a run at other depths are other trajectories.
    second = {
        f"{scale}/b": CohortSpec(
            scale, "b", "b", (make_run("vae", 5, 1, continues=f"{scale}/a-mnist-1L-T5/{run.name}"),)
        )
        for scale, run in runs.items()
    }
    digests = {stored_jobs(cohort, cohorts | second, "data", tmp_path, "cpu")[0].digest for cohort in second.values()}
    assert len(digests) == 3


def test_forgetting(tmp_path: Path) -> None:
    kept, gone = finished_job(tmp_path, "kept"), finished_job(tmp_path, "gone")
    never_begun = Job(make_run(), "x", tmp_path / "x", None)
    deeper = replace(gone, spec=replace(gone.spec, max_steps=30))
    flat = torch.zeros(count_parameters((50,)))
    write_waypoint(deeper, RunState(30, flat, flat.clone(), flat.clone()), {})
    forget([gone, never_begun])
    assert stored_waypoints(gone.folder) == [30]
    assert not gone.is_finished
    assert deeper.is_finished
    assert kept.is_finished


def test_store_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    assert store_folder() == Path(".store")
    monkeypatch.setenv(STORE_VARIABLE, "/elsewhere")
    assert store_folder() == Path("/elsewhere")


def _hold(store: Path, key: str, connection: Connection) -> None:
    with cohort_lock(store, key):
        connection.send("held")
        connection.recv()


@contextmanager
def holder(store: Path) -> Iterator[tuple[Any, Connection]]:
    """Another process that holds the lock of KEY until it is sent something."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(store, KEY, theirs))
    process.start()
    try:
        assert ours.poll(30)
        assert ours.recv() == "held"
        yield process, ours
    finally:
        process.kill()
        process.join()


def assert_kept_out(store: Path, pid: int) -> None:
    with pytest.raises(UserError) as caught, cohort_lock(store, KEY):
        pytest.fail("both processes are in")
    text = str(caught.value)
    assert text.startswith(f"{KEY}: process {pid} is working on it")
    assert f"(kill {pid})" in text


def test_lock_keeps_a_second_process_out_until_the_first_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, "0.1")
    with holder(tmp_path) as (process, connection):
        assert_kept_out(tmp_path, process.pid)
        # Other cohorts are free.
        with cohort_lock(tmp_path, "tiny/first-mnist-1L-T1"):
            pass
        connection.send("let go")
        process.join()
        with cohort_lock(tmp_path, KEY):
            pass


def test_lock_of_a_killed_process_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, "0.1")
    with holder(tmp_path) as (process, _):
        assert_kept_out(tmp_path, process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with cohort_lock(tmp_path, KEY):
            (lock,) = (tmp_path / "locks").iterdir()
            assert int(lock.read_text()) == os.getpid()


def test_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a killed trainer take a moment to end."""
    monkeypatch.setenv(LOCK_VARIABLE, str(PATIENCE_SECONDS))
    with holder(tmp_path) as (_, connection):
        connection.send("let go")
        with cohort_lock(tmp_path, KEY):
            pass


def test_lock_is_released_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, "0.1")

    def fail() -> NoReturn:
        raise UserError("training failed")

    with pytest.raises(UserError, match="training failed"), cohort_lock(tmp_path, KEY):
        fail()
    with cohort_lock(tmp_path, KEY):
        pass
