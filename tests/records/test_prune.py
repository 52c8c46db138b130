"""Pruning removes what no grid names and what killed processes left, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.data.datasets import load_dataset
from pipeline.evaluation.classifier import reader_path
from pipeline.experiments import grid
from pipeline.experiments.cohorts import load_cohorts
from pipeline.files import owner
from pipeline.paths import HERE
from pipeline.records.run_folder import Job, waypoint_name
from pipeline.records.store import stored_jobs
from pipeline.training.train import run_lock
from pipeline.work.locks import Busy, locked
from stages import prune
from tests.conftest import PATIENCE_SECONDS, make_images, wait_for, write_dataset
from tests.experiments.test_params import SMALL, changed

STORE = Path(".store")
UNNAMED = "0123456789abcdef"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two grids, one of them an experiment beside it, and a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELBO_STORE", raising=False)
    write_dataset(HERE.binarized("mnist"), make_images())
    Path("params.yaml").write_text(yaml.safe_dump(SMALL))
    Path("trial").mkdir()
    Path("trial/params.yaml").write_text(yaml.safe_dump(changed("scales.small.seeds", [7])))
    command(monkeypatch, grid.main)
    command(monkeypatch, grid.main, "--params", "trial/params.yaml", "--cohorts", "trial/cohorts")
    for job in jobs():
        put(job.folder / "checkpoint.safetensors")
    put(STORE / UNNAMED / "checkpoint.safetensors")
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    main()


def run_prune() -> None:
    prune.main(HERE)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")


def jobs() -> list[Job]:
    """Of both grids, as far as they continue nothing."""
    digest = load_dataset(HERE.binarized("mnist")).digest
    stored = []
    for folder in (HERE.cohorts, Path("trial/cohorts")):
        cohorts = load_cohorts(folder)
        for cohort in cohorts.values():
            stored += stored_jobs(cohort, cohorts, digest, STORE, "cpu")
    return stored


def content() -> set[str]:
    return {path.as_posix() for root in (STORE, Path("reports"), Path("runs")) for path in root.rglob("*")}


def test_what_is_left_over_goes_and_the_rest_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = content() - {path.as_posix() for path in (STORE / UNNAMED, *(STORE / UNNAMED).rglob("*"))}
    job = jobs()[0]
    put(job.folder / "aside/checkpoint.safetensors.1")
    put(job.folder / f".checkpoint.safetensors.{owner()}.part")
    put(job.folder / f"{waypoint_name(5)}.part/run.json")
    put(reader_path(STORE, UNNAMED))
    put(STORE / "locks" / f"{'f' * 16}.lock")
    put(Path("reports/small/results/gone-mnist-1L-T5/runs.json"))
    put(Path("reports/small/results/first-mnist-1L-T1/runs.json"))
    put(Path("reports/small/results/gaussian-toy/metrics.json"))
    put(Path("runs/small/gone-mnist-1L-T5/training/x/run.json"))
    before = content()
    command(monkeypatch, run_prune, "--dry-run")
    told = capsys.readouterr().out
    assert content() == before
    assert f"would remove {STORE / UNNAMED}: a run that no grid names, 0.0 MB" in told
    assert "8 items to remove" in told
    command(monkeypatch, run_prune)
    assert "8 items removed" in capsys.readouterr().out
    reports = {"reports/small/results/first-mnist-1L-T1/runs.json", "reports/small/results/gaussian-toy/metrics.json"}
    files = {name for name in content() if Path(name).is_file() and "/locks/" not in name}
    assert files == {name for name in kept if Path(name).is_file()} | reports
    command(monkeypatch, run_prune)
    assert "0 items removed" in capsys.readouterr().out


def test_a_run_that_is_trained_now_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(jobs()[0].spec, UNNAMED, STORE / UNNAMED, None)
    with run_lock(job, 0.0):
        command(monkeypatch, run_prune)
    assert (STORE / UNNAMED).exists()
    assert f"kept: {STORE / UNNAMED}" in capsys.readouterr().out


def test_the_lock_of_a_run_that_has_no_state_yet_is_kept_while_it_is_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of another project on the same store, before its first checkpoint: without the file a second one begins."""
    job = Job(jobs()[0].spec, "f" * 16, STORE / ("f" * 16), None)
    with run_lock(job, 0.0):
        command(monkeypatch, run_prune)
        assert (STORE / "locks" / f"{job.digest}.lock").exists()
        with pytest.raises(Busy), run_lock(job, 0.0):
            pytest.fail("two processes are in")
    assert f"kept: {STORE / 'locks'}" in capsys.readouterr().out
    command(monkeypatch, run_prune)
    assert not (STORE / "locks" / f"{job.digest}.lock").exists()


def test_a_lock_whose_file_was_removed_while_it_was_waited_for_is_taken_anew(tmp_path: Path) -> None:
    """Else the one that waited and one that comes later hold locks on two files of one name."""
    path = tmp_path / "run.lock"
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with locked(path, "run", PATIENCE_SECONDS):
            entered.set()
            leave.wait(PATIENCE_SECONDS)

    waiting = threading.Thread(target=wait)
    with locked(path, "run", 0.0):
        waiting.start()
        # Until the other has opened the file.
        wait_for(lambda: sum(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir()) > 1)
        path.unlink()
    entered.wait(PATIENCE_SECONDS)
    try:
        with pytest.raises(Busy), locked(path, "run", 0.0):
            pytest.fail("two are in")
    finally:
        leave.set()
        waiting.join()


def test_what_a_living_process_writes_stays_and_what_killed_ones_left_goes_wherever_it_lies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, dead = owner().partition("-")[0], subprocess.Popen(["true"])
    dead.wait()
    evaluated = jobs()[0].folder

    def temporary(number: int) -> list[Path]:
        """As downloads, unpackers, evaluations and all other writers name them."""
        mark = f"{machine}-{number}"
        return [
            HERE.raw("mnist").parent / f".mnist.{mark}.x1y2/received",
            HERE.reports / f"small/results/first-mnist-1L-T1/.metrics.json.{mark}.part",
            STORE / f".unpacking-{mark}.x1y2/{UNNAMED}/checkpoint.safetensors",
            STORE / f"arrived/small-first.{mark}.part",
            STORE / f"pace/.cpu.json.{mark}.part",
            evaluated / f".evaluation-0123.npz.{mark}.part",
        ]

    for path in [*temporary(dead.pid), *temporary(os.getppid())]:
        put(path)
    put(temporary(dead.pid)[2].with_name(f".checkpoint.safetensors.{machine}-{dead.pid}.part"))
    elsewhere = STORE / "pace/.cpu.json.00000000-1.part"
    put(elsewhere)
    put(HERE.reports / "small/results/first-mnist-1L-T1/runs.json")
    capsys.readouterr()
    command(monkeypatch, run_prune)
    # What lies in a folder that goes is not told by itself; and the run that no grid names.
    assert f"{len(temporary(dead.pid)) + 1} items removed" in capsys.readouterr().out
    assert [path for path in temporary(dead.pid) if path.exists()] == []
    assert [path for path in temporary(os.getppid()) if not path.exists()] == []
    # Another machine's process may be at work still, but not for days.
    assert elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    command(monkeypatch, run_prune)
    assert not elsewhere.exists()


def test_runs_of_data_that_is_not_here_cannot_be_told_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(HERE.binarized("mnist"))
    before = content()
    command(monkeypatch, run_prune)
    assert content() == before
