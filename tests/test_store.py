"""The store: which folder a run has, copying what is finished, and one process a cohort."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.spec import CohortSpec, digest
from pipeline.store import (
    LOCK_VARIABLE,
    STORE_VARIABLE,
    cohort_jobs,
    cohort_lock,
    copy_finished,
    forget,
    store_folder,
    training_folder,
)
from pipeline.training.state import RUN_JSON, WEIGHTS, Job
from tests.conftest import make_run

KEY = "tiny/second-mnist-1L-T5"
SOURCE = "tiny/first-mnist-1L-T1/vae-M1-K1-s0"


def cohort_of(*runs: Any) -> CohortSpec:
    return CohortSpec("tiny", "second", "second-mnist-1L-T5", runs)


def finished_job(store: Path, name: str) -> Job:
    job = Job(make_run(name=name), f"digest-{name}", store / f"digest-{name}", None)
    job.finished.mkdir(parents=True)
    (job.finished / WEIGHTS).write_text(f"weights of {name}")
    write_json(job.finished / RUN_JSON, {"status": "finished"})
    return job


def source_run(runs: Path, status: str) -> Path:
    key, _, name = SOURCE.rpartition("/")
    folder = training_folder(runs, key) / name
    write_json(folder / RUN_JSON, {"status": status, "digest": "0123"})
    return folder


def test_jobs_lie_under_their_digests(tmp_path: Path) -> None:
    runs = [make_run(), make_run("vae", 5, 1)]
    jobs = cohort_jobs(cohort_of(*runs), "data", tmp_path / "store", tmp_path / "runs")
    assert [job.spec for job in jobs] == runs
    for job, run in zip(jobs, runs, strict=True):
        assert job.digest == digest(run, "data")
        assert job.folder == tmp_path / "store" / job.digest
        assert job.continues is None
        assert not job.is_finished
    assert jobs[0].digest != cohort_jobs(cohort_of(*runs), "other data", tmp_path, tmp_path)[0].digest


def test_a_continued_run_is_found_and_enters_the_digest(tmp_path: Path) -> None:
    run = make_run(continues=SOURCE)
    folder = source_run(tmp_path, "finished")
    (job,) = cohort_jobs(cohort_of(run), "data", tmp_path / "store", tmp_path)
    assert job.continues == folder == tmp_path / "tiny/first-mnist-1L-T1/training/vae-M1-K1-s0"
    assert job.digest == digest(run, "data", "0123")
    assert job.digest != digest(run, "data")


def test_a_diverged_run_is_not_continued(tmp_path: Path) -> None:
    source_run(tmp_path, "diverged at step 7")
    with pytest.raises(UserError) as caught:
        cohort_jobs(cohort_of(make_run(continues=SOURCE)), "data", tmp_path / "store", tmp_path)
    assert str(caught.value) == f"{KEY}/iwae-M1-K5-s0 continues {SOURCE}, which diverged at step 7"


def test_a_missing_run_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"first-mnist-1L-T1/training/vae-M1-K1-s0/run\.json: missing"):
        cohort_jobs(cohort_of(make_run(continues=SOURCE)), "data", tmp_path / "store", tmp_path)


def test_copying_replaces_what_was_there(tmp_path: Path) -> None:
    jobs = [finished_job(tmp_path / "store", name) for name in ("a", "b")]
    target = tmp_path / "training"
    for old in (target / "a", target / "gone", target / ".a.part"):
        old.mkdir(parents=True)
        (old / "old.txt").touch()
    copy_finished(jobs, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == {
        *("a", f"a/{RUN_JSON}", f"a/{WEIGHTS}"),
        *("b", f"b/{RUN_JSON}", f"b/{WEIGHTS}"),
    }
    assert (target / "b" / WEIGHTS).read_text() == "weights of b"
    # Copied: DVC moves and deletes its outputs.
    shutil.rmtree(target)
    assert all(job.is_finished for job in jobs)


def test_a_copy_that_fails_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [finished_job(tmp_path / "store", name) for name in ("a", "b")]
    target = tmp_path / "training"
    copytree = shutil.copytree

    def full(source: Path, destination: Path) -> Path:
        if source == jobs[0].finished:
            return Path(copytree(source, destination))
        destination.mkdir()
        (destination / RUN_JSON).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.store.shutil.copytree", full)
    message = re.escape(f"{target / 'b'}: cannot be written (")
    with pytest.raises(UserError, match=f"{message}.*No space left on device.*; free some space"):
        copy_finished(jobs, target)
    # What is there is whole.
    assert [path.name for path in target.iterdir()] == ["a"]
    assert (target / "a" / WEIGHTS).read_text() == "weights of a"


def test_forgetting(tmp_path: Path) -> None:
    kept, gone = finished_job(tmp_path, "kept"), finished_job(tmp_path, "gone")
    never_begun = Job(make_run(), "x", tmp_path / "x", None)
    forget([gone, never_begun])
    assert not gone.folder.exists()
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
    assert text.startswith(f"{KEY}: process {pid} is working on this cohort")
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
            pid_file = next((tmp_path / "locks").glob("*.pid"))
            assert int(pid_file.read_text()) == os.getpid()


def test_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a killed trainer take a moment to end."""
    monkeypatch.setenv(LOCK_VARIABLE, "20")
    with holder(tmp_path) as (_, connection):
        connection.send("let go")
        start = time.monotonic()
        with cohort_lock(tmp_path, KEY):
            assert time.monotonic() - start < 20


def test_lock_is_released_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, "0.1")

    def fail() -> NoReturn:
        raise UserError("training failed")

    with pytest.raises(UserError, match="training failed"), cohort_lock(tmp_path, KEY):
        fail()
    with cohort_lock(tmp_path, KEY):
        pass
