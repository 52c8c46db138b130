"""Training killed in every way, then run again: the results are those of an unbroken run."""

from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.records.run_folder import checkpoint_step
from tests.conftest import PATIENCE_SECONDS, wait_for
from tests.project import copy_project, environment, run
from tests.test_pipeline import TINY

KEY = "tiny/burda-table1-mnist-1L-T4"
RUNS = ("iwae-M1-K4-s0", "vae-M4-K1-s0")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with one cohort of two runs of some seconds each, trained unbroken into `expected/`."""
    folder = tmp_path_factory.mktemp("project")
    params = copy.deepcopy(TINY)
    params["workers"] = 2
    params["checkpoint_seconds"] = 0.3
    settings = [{"objective": "iwae", "K": 4}, {"objective": "vae", "M": 4}]
    params["experiments"] = {"burda-table1": {"T": [4], "settings": settings}}
    scale = params["scales"]["tiny"]
    scale["experiments"] = {"burda-table1": {"datasets": ["mnist"], "layers": [1]}}
    scale["max_steps"] = 1500
    copy_project(folder, params)
    run(folder, "dvc", "repro", f"train@{KEY}")
    shutil.copytree(folder / f"runs/{KEY}/training", folder / "expected")
    return folder


def forget_training(folder: Path) -> None:
    for name in (".store", "runs", ".dvc/cache", ".mlflow"):
        shutil.rmtree(folder / name, ignore_errors=True)
    run(folder, "dvc", "repro", "binarize@mnist")


def start(folder: Path) -> subprocess.Popen[str]:
    """`dvc repro` in a process group of its own, once both runs have a checkpoint."""
    process = subprocess.Popen(
        ["dvc", "repro", f"train@{KEY}"],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(lambda: len(list((folder / ".store").glob("*/checkpoint.safetensors"))) >= len(RUNS), process)
    return process


def trainer_pid(folder: Path) -> int:
    return int((folder / ".store/locks" / f"{KEY.replace('/', '-')}.lock").read_text())


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(number) for number in listing.stdout.split()]


def steps_done(folder: Path) -> dict[str, int]:
    """By run in the store, the updates that its checkpoint holds."""
    return {path.parent.name: checkpoint_step(path) for path in (folder / ".store").glob("*/checkpoint.safetensors")}


def assert_as_unbroken(folder: Path) -> None:
    for name in RUNS:
        ours, expected = folder / f"runs/{KEY}/training" / name, folder / "expected" / name
        weights, unbroken = (load_file(path / "weights.safetensors") for path in (ours, expected))
        assert all(np.array_equal(weights[key], unbroken[key]) for key in unbroken)
        curves = [np.loadtxt(path / "history.csv", delimiter=",", skiprows=1) for path in (ours, expected)]
        # Column 3 is wall time.
        assert np.array_equal(*(np.delete(curve, 3, axis=1) for curve in curves))
    assert not list((folder / ".store").glob("*/checkpoint.safetensors"))


def finish(folder: Path) -> None:
    output = run(folder, "dvc", "repro", f"train@{KEY}").stdout
    assert f"{KEY}: " in output
    assert_as_unbroken(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_the_whole_group_is_killed(project: Path, number: signal.Signals) -> None:
    forget_training(project)
    process = start(project)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    assert not (project / f"runs/{KEY}/training").exists(), output
    if number is not signal.SIGKILL:
        assert "stopped: what was done is on disk" in output
        assert "Traceback" not in output
    finish(project)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_only_the_trainer_is_killed(project: Path, number: signal.Signals) -> None:
    forget_training(project)
    process = start(project)
    os.kill(trainer_pid(project), number)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    finish(project)


def test_only_dvc_is_killed(project: Path) -> None:
    """The trainer lives on and keeps a second one out, which says so; afterwards nothing is trained twice."""
    forget_training(project)
    process = start(project)
    trainer = trainer_pid(project)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    second = run(project, sys.executable, "-m", "stages.train", KEY, check=False, ELBO_LOCK_SECONDS="0.2")
    assert second.returncode == 1
    assert f"process {trainer} is working on it" in second.stdout
    assert f"kill {trainer}" in second.stdout
    wait_for(
        lambda: (
            any(project.glob(f"runs/{KEY}/training/{RUNS[1]}"))
            and not any(project.glob(".store/*/checkpoint.safetensors"))
        )
    )
    output = run(project, "dvc", "repro", f"train@{KEY}").stdout
    assert f"{KEY}: 0 runs trained, 2 taken from the store" in output
    assert_as_unbroken(project)


def test_a_worker_that_stands_still_keeps_its_run(project: Path) -> None:
    """Its trainer is gone, and nobody else writes: else a checkpoint would go back when it wakes up."""
    forget_training(project)
    process = start(project)
    trainer = trainer_pid(project)
    worker = children(trainer)[0]
    os.kill(worker, signal.SIGSTOP)
    os.kill(trainer, signal.SIGKILL)
    # Not its output, whose end waits for the worker.
    process.wait(PATIENCE_SECONDS)
    before = steps_done(project)
    second = run(project, sys.executable, "-m", "stages.train", KEY, check=False, ELBO_LOCK_SECONDS="2")
    assert second.returncode == 1
    assert re.search(rf"process ([0-9]+ )*{worker}\b.* is working on it", second.stdout), second.stdout
    os.kill(worker, signal.SIGCONT)
    process.communicate(timeout=PATIENCE_SECONDS)
    after = steps_done(project)
    assert all(after[name] >= steps for name, steps in before.items())
    finish(project)


def test_one_worker_is_killed(project: Path) -> None:
    """Its run is named and resumed by the next call; the other one is finished."""
    forget_training(project)
    process = start(project)
    os.kill(children(trainer_pid(project))[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    assert "ended with exit code -9" in output
    finish(project)
