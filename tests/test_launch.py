"""The launcher on a bare machine: stopped, taken up again, carried elsewhere, and taken over by the stages."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline import interruption
from pipeline import launch as command_line
from pipeline.cohorts import COHORTS, load_cohorts, load_evaluation, load_order, results_folder
from pipeline.device import Machine
from pipeline.errors import UserError
from pipeline.launcher import Project, describe
from pipeline.launcher import run as run_launcher
from pipeline.plan import BLOCKED, EVALUATE, RECORDED, TRAIN, WAITS, evaluation_shape, remember, training_shape
from pipeline.store import cohort_lock, store_folder
from pipeline.work import Pace
from tests.project import copy_project, environment, run
from tests.test_imports import BARE
from tests.test_pipeline import TINY

FIRST, SECOND = "tiny/burda-table1-mnist-1L-T1", "tiny/burda-table2-mnist-1L-T4"
CELLS = {FIRST: "vae-M1-K1-s0", SECOND: "iwae-M1-K4-s0"}
STEPS = 600


def digest_of(project: Path, cohort: str) -> str:
    runs: dict[str, Any] = json.loads((project / results_folder(cohort) / "runs.json").read_text())
    digest: str = runs[CELLS[cohort]]["digest"]
    return digest


def command(*words: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        BARE,
        "pipeline.launch",
        *words,
        "--scale",
        "tiny",
        "--device",
        "cpu",
        "--workers",
        "1",
    ]


def launch(folder: Path, *words: str, check: bool = True) -> str:
    done = run(folder, *command(*words), check=check, PYTHONPATH=str(folder))
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cohorts of a run each, one continuing the other, launched unbroken."""
    folder = tmp_path_factory.mktemp("project")
    params = copy.deepcopy(TINY)
    scale = params["scales"]["tiny"]
    scale["max_steps"] = STEPS
    scale["experiments"] = {name: scale["experiments"][name] for name in ("burda-table2", "burda-table1")}
    copy_project(folder, params)
    for stage in ("download", "binarize"):
        run(folder, sys.executable, "-m", f"stages.{stage}", "mnist")
    output = launch(folder, "run")
    # The first in the file waits for the other.
    assert output.index(f"{FIRST}: done") < output.index(f"{SECOND}: training")
    assert "2 cohorts: 2 done, 0 begun, 0 to do" in output
    return folder


def bare_copy(project: Path, folder: Path) -> Path:
    """What one carries to a bare machine: code, resolved cohorts, data."""
    for name in ("pipeline", "cohorts", "data/binarized"):
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def numbers(folder: Path, cohort: str) -> dict[str, Any]:
    """All that a cohort's results hold apart from times and the way they were made."""
    results = folder / results_folder(cohort)
    arrays = dict(np.load(results / "arrays.npz"))
    kept = {name: array.tolist() for name, array in arrays.items() if not name.endswith("/seconds")}
    return {"metrics": json.loads((results / "metrics.json").read_text()), **kept}


def assert_same(folder: Path, project: Path) -> None:
    for cohort in CELLS:
        assert numbers(folder, cohort) == numbers(project, cohort)
        weights = (f".store/{digest_of(path, cohort)}/run/weights.safetensors" for path in (project, project))
        ours, expected = (load_file(path / name) for path, name in zip((folder, project), weights, strict=True))
        assert all(np.array_equal(ours[key], expected[key]) for key in expected)


def test_each_number_names_what_made_it(project: Path) -> None:
    runs = json.loads((project / results_folder(FIRST) / "runs.json").read_text())
    (entry,) = runs.values()
    head = run(project, "git", "rev-parse", "HEAD").stdout.strip()
    for made in (entry["training"], entry["evaluation"]):
        assert made["git_revision"].removesuffix("-dirty") == head
        assert made["command"] == "python -m pipeline.launch run --scale tiny --device cpu --workers 1"
    assert entry["spec"]["algorithm_version"] == 1


def test_the_stages_take_over_what_was_launched(project: Path) -> None:
    before = numbers(project, SECOND)
    for cohort in CELLS:
        output = run(project, sys.executable, "-m", "stages.train", cohort).stdout
        assert f"{cohort}: 0 runs trained, 1 taken from the store" in output
    output = run(project, sys.executable, "-m", "stages.evaluate", SECOND).stdout
    assert f"{SECOND}: 0 runs evaluated, 1 taken from the store" in output
    assert numbers(project, SECOND) == before


def in_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ELBO_STORE", raising=False)
    cohorts = load_cohorts(COHORTS)
    chosen = tuple(cohorts[key] for key in load_order(COHORTS))
    evaluations = {"tiny": load_evaluation(COHORTS, "tiny")}
    return Project(cohorts, evaluations, chosen, store_folder(), Machine(torch.device("cpu"), 1, 1e9))


def test_time_limits_change_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many short slots as it takes end in the unbroken run's bits."""
    own = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    shares: list[float] = []
    seconds = 0.5
    while sum(shares[-1:]) < 2 * len(CELLS):
        monkeypatch.setattr(interruption, "_deadline", None)
        start = time.monotonic()
        assert run_launcher(own, seconds) == 0
        assert time.monotonic() - start < seconds + 20
        # An evaluation starts anew in each slot, and must fit into one.
        seconds *= 1.1
        shares.append(sum(item.share_trained + item.evaluated for item in own.standings()))
        output = capsys.readouterr().out
        left = "time is up: checkpoints are on disk" in output or "which is left to the next call" in output
        assert left or shares[-1] == 2 * len(CELLS)
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert_same(tmp_path, project)


def test_evaluation_that_does_not_fit_is_left(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of the slot goes to the next cohort."""
    own = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    shape = evaluation_shape(own.cohorts[FIRST], own.evaluations["tiny"])
    remember(own.store, own.machine, shape, 3600.0)
    assert run_launcher(own, 60.0) == 0
    output = capsys.readouterr().out
    assert f"{FIRST}: trained; evaluating a run takes 1:00:00, which is left to the next call" in output
    assert f"{SECOND}: training" in output
    assert {item.cohort.key: item.need for item in own.standings()} == {SECOND: EVALUATE, FIRST: EVALUATE}


def test_a_cohort_that_fails_spares_the_next(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bare_copy(project, tmp_path)
    own = in_this_process(folder, monkeypatch)
    (job,) = own.standings()[1].jobs
    job.folder.mkdir(parents=True)
    shutil.copytree(project / ".store" / digest_of(project, FIRST) / "run", job.finished)
    (job.finished / "weights.safetensors").write_bytes(b"damaged")
    assert run_launcher(own, None) == 1
    captured = capsys.readouterr()
    assert f"{FIRST} failed (see above)" in captured.err
    assert "weights.safetensors: not the weights of this network" in captured.err
    assert "2 cohorts: 0 done" in captured.out


def begin(folder: Path) -> subprocess.Popen[str]:
    """A launcher in a group of its own, once it has a checkpoint."""
    words = [*command("run"), "--checkpoint-seconds", "0.1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    own = environment(PYTHONPATH=str(folder))
    process = subprocess.Popen(words, cwd=folder, env=own, text=True, start_new_session=True, **streams)
    until = time.monotonic() + 120
    while not list(folder.glob(".store/*/checkpoint.safetensors")):
        assert time.monotonic() < until, "no checkpoint within two minutes"
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    return process


def test_a_checkpoint_that_cannot_be_read_blocks_its_cohort_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    (job,) = own.standings()[0].jobs
    job.folder.mkdir(parents=True)
    (job.folder / "checkpoint.safetensors").write_bytes(b"damaged")
    second, first = own.standings()
    assert (second.cohort.key, second.need, first.need) == (SECOND, BLOCKED, TRAIN)
    assert "checkpoint.safetensors: not a readable checkpoint" in second.note
    assert f"next: {FIRST}" in describe([second, first], own.machine)


def test_a_signal_changes_nothing(project: Path, tmp_path: Path) -> None:
    folder = bare_copy(project, tmp_path)
    process = begin(folder)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert "stopped by a signal: checkpoints are on disk" in output
    assert "2 cohorts: 0 done, 1 begun, 2 to do" in output
    assert list(folder.glob(".store/*/checkpoint.safetensors"))
    assert "2 done" in launch(folder, "run")
    assert_same(folder, project)


def test_a_busy_cohort_is_left_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.launcher.BUSY_SECONDS", 0.1)
    own = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    with cohort_lock(own.store, FIRST):
        assert run_launcher(own, None) == 0
    output = capsys.readouterr().out
    assert f"{FIRST}: process {os.getpid()} is working on this cohort" in output
    assert "2 cohorts: 0 done, 0 begun, 2 to do" in output


def test_what_is_recorded_is_not_trained_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bare_copy(project, tmp_path)
    shutil.copytree(project / results_folder(FIRST), folder / results_folder(FIRST))
    own = in_this_process(folder, monkeypatch)
    assert run_launcher(own, None) == 0
    assert {item.cohort.key: item.need for item in own.standings()} == {FIRST: RECORDED, SECOND: BLOCKED}
    output = capsys.readouterr().out
    assert f"blocked: continues {FIRST}/vae-M1-K1-s0, which is not finished here: only its results are;" in output
    assert "train it with --again" in output
    assert not list(folder.glob(".store/*/run"))
    again = replace(own, again=True)
    assert {item.cohort.key: item.need for item in again.standings()} == {FIRST: TRAIN, SECOND: WAITS}
    # Results of another evaluation are not those that are asked for.
    changed = replace(own, evaluations={"tiny": replace(own.evaluations["tiny"], num_samples=200)})
    assert changed.standings()[1].need == TRAIN


def test_plan_says_what_is_missing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bare_copy(project, tmp_path))

    def said(*words: str) -> str:
        assert command_line.main([*words, "--scale", "tiny", "--device", "cpu", "--workers", "1"]) == 0
        return capsys.readouterr().out

    output = said("status")
    assert f"{SECOND}   1 runs    0.0 % trained  waits: continues {FIRST}/vae-M1-K1-s0, which is not finished" in output
    assert "time left (cpu, 1 processes): unknown; 2 not timed here yet" in output
    assert f"next: {FIRST}" in output
    assert said("run", "--dry-run") == output
    assert not Path(".store").exists()
    shutil.rmtree("data")
    output = said("run")
    assert "blocked: data/binarized/mnist/dataset.json: missing" in output
    assert "next:" not in output


def test_time_left_is_work_over_measured_speed(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    cohort, spec = own.cohorts[FIRST], own.evaluations["tiny"]
    remember(own.store, own.machine, training_shape(cohort, list(own.standings()[1].jobs)), 50.0)
    assert "12 left and an evaluation not timed yet" in describe(own.standings(), own.machine)
    remember(own.store, own.machine, evaluation_shape(cohort, spec), 30.0)
    text = describe(own.standings(), own.machine)
    assert "train: 0:42 left" in text
    assert "time left (cpu, 1 processes): 0:42 for 1 of them at speeds measured on this machine; 1 not timed" in text
    # Another number of processes is another speed.
    other = replace(own, machine=Machine(torch.device("cpu"), 2, 1e9))
    assert "unknown; 2 not timed here yet" in describe(other.standings(), other.machine)


def test_pace_leaves_starting_out() -> None:
    pace = Pace()
    for run_, step, now in [("a", 100, 0.0), ("b", 100, 0.0), ("a", 110, 60.0), ("b", 110, 60.0), ("a", 130, 70.0)]:
        pace.note(run_, step, now)
    assert (pace.steps, pace.seconds, pace.rate) == (20, 10.0, 2.0)
    assert Pace().rate is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--only", "burda-table9*"],
            "--only burda-table9*: matches no cohort of scale tiny; known: tiny/burda",
        ),
        (["status", "--scale", "huge"], "--scale huge: no such scale; known: tiny"),
        (["unpack", "nothing.tar"], "nothing.tar: not a file that `pack` wrote"),
        (["pack", "runs.tar"], ".store: holds no run or checkpoint of the chosen cohorts; nothing to pack"),
        (["run", "--minutes", "0"], "--minutes must be above 0"),
        (["run", "--workers", "0"], "--workers must be at least 1"),
        (["walk"], "invalid choice: 'walk'"),
    ],
)
def test_mistakes(
    words: list[str],
    message: str,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bare_copy(project, tmp_path))
    with pytest.raises((UserError, SystemExit)) as caught:
        command_line.main([words[0], "--scale", "tiny", *words[1:]])
    assert message in str(caught.value) + capsys.readouterr().err
