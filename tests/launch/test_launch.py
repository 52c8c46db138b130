"""The launcher on a bare machine: stopped, taken up again, carried elsewhere, and taken over by the stages."""

from __future__ import annotations

import copy
import json
import os
import re
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

from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohorts, load_evaluation, load_order
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.launch import __main__ as command_line
from pipeline.launch.cores import END, Board, Due, News, Piece, forecast, pieces
from pipeline.launch.cores import run as run_launcher
from pipeline.launch.launcher import Project, check_epochs, choose, describe
from pipeline.launch.plan import (
    BLOCKED,
    CORE,
    EVALUATE,
    RECORDED,
    TRAIN,
    WAITS,
    Standing,
    evaluation_shape,
    likelihood_shape,
    remember,
    run_shape,
)
from pipeline.paths import HERE, Paths
from pipeline.records.store import store_folder
from pipeline.records.sums import SHA256
from pipeline.training.train import run_lock
from pipeline.work import interruption
from pipeline.work.cohort import Pace
from pipeline.work.machine import Machine
from pipeline.work.priority import yield_to_others
from tests.conftest import PATIENCE_SECONDS, make_run, wait_for
from tests.project import copy_project, environment, run
from tests.test_imports import BARE
from tests.test_pipeline import TINY

FIRST, SECOND = "tiny/burda-table1-mnist-1L-T1", "tiny/burda-table2-mnist-1L-T4"
CELLS = {FIRST: "vae-M1-K1-s0", SECOND: "iwae-M1-K4-s0"}
STEPS = 2_500


def digest_of(project: Path, cohort: str) -> str:
    runs: dict[str, Any] = json.loads((project / HERE.cohort_results(cohort) / "runs.json").read_text())
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
    first, second = (f"{cohort}/{cell}" for cohort, cell in CELLS.items())
    assert output.index(f"{first}: done at update {STEPS:,}") < output.index(f"{second}: from update 0 to {STEPS:,}")
    assert "2 cohorts: 2 done, 0 begun, 0 to do" in output
    return folder


def bare_copy(project: Path, folder: Path) -> Path:
    """What one carries to a bare machine: code, resolved cohorts, data."""
    for name in ("pipeline", "cohorts", "data/binarized"):
        shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def numbers(folder: Path, cohort: str) -> dict[str, Any]:
    """All that a cohort's results hold apart from times and the way they were made."""
    results = folder / HERE.cohort_results(cohort)
    arrays = dict(np.load(results / "arrays.npz"))
    kept = {name: array.tolist() for name, array in arrays.items() if not name.endswith("/seconds")}
    return {"metrics": json.loads((results / "metrics.json").read_text()), **kept}


def assert_same(folder: Path, project: Path) -> None:
    for cohort in CELLS:
        assert numbers(folder, cohort) == numbers(project, cohort)
        name = f"waypoint-{STEPS:08d}/weights.safetensors"
        weights = (f".store/{digest_of(path, cohort)}/{name}" for path in (project, project))
        ours, expected = (load_file(path / name) for path, name in zip((folder, project), weights, strict=True))
        assert all(np.array_equal(ours[key], expected[key]) for key in expected)


def test_each_number_names_what_made_it(project: Path) -> None:
    results = project / HERE.cohort_results(FIRST)
    (entry,) = (
        facts for name, facts in json.loads((results / "provenance.json").read_text()).items() if name != SHA256
    )
    head = run(project, "git", "rev-parse", "HEAD").stdout.strip()
    for made in (entry["training"], entry["evaluation"]):
        assert made["git_revision"].removesuffix("-dirty") == head
        assert made["command"] == "python -m pipeline.launch run --scale tiny --device cpu --workers 1"
    (number,) = json.loads((results / "runs.json").read_text()).values()
    assert number["spec"]["algorithm_version"] == 2


def test_the_stages_take_over_what_was_launched(project: Path) -> None:
    before = numbers(project, SECOND)
    for cohort in CELLS:
        output = run(project, sys.executable, "-m", "stages.train", cohort).stdout
        assert f"{cohort}: 0 runs trained, 1 taken from the store" in output
    output = run(project, sys.executable, "-m", "stages.evaluate", SECOND).stdout
    assert f"{SECOND}: 1 run, 0 evaluations made" in output
    assert numbers(project, SECOND) == before


def in_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ELBO_STORE", raising=False)
    cohorts = load_cohorts(HERE.cohorts)
    chosen = tuple(cohorts[key] for key in load_order(HERE.cohorts))
    evaluations = {key: load_evaluation(HERE.cohorts, cohort) for key, cohort in cohorts.items()}
    return Project(cohorts, evaluations, chosen, store_folder(), Machine(torch.device("cpu"), 1, 1e9))


def test_time_limits_change_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many short slots as it takes end in the unbroken run's bits."""
    copied = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    shares: list[float] = []
    seconds = 0.5
    while sum(shares[-1:]) < 2 * len(CELLS):
        monkeypatch.setattr(interruption, "_deadline", None)
        assert run_launcher(copied, seconds) == 0
        # An evaluation starts anew in each slot, and must fit into one.
        seconds *= 1.3
        shares.append(sum(item.share_trained + item.evaluated for item in copied.standings()))
        output = capsys.readouterr().out
        left = "time is up: checkpoints are on disk" in output or ", more than there is" in output
        assert left or shares[-1] == 2 * len(CELLS)
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert_same(tmp_path, project)


def test_evaluation_that_does_not_fit_is_left(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of the slot goes to the next run."""
    copied = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    shape = evaluation_shape(copied.cohorts[FIRST], copied.evaluations[FIRST])
    remember(copied.store, CORE, shape, 3600.0)
    assert run_launcher(copied, 900.0) == 0
    output = capsys.readouterr().out
    assert f"{FIRST}/{CELLS[FIRST]}: left: evaluating it takes 1:00:00, more than there is" in output
    assert f"{SECOND}/{CELLS[SECOND]}: from update 0" in output
    assert {item.cohort.key: item.need for item in copied.standings()} == {SECOND: EVALUATE, FIRST: EVALUATE}


def test_a_cohort_that_fails_spares_the_next(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bare_copy(project, tmp_path)
    copied = in_this_process(folder, monkeypatch)
    (job,) = copied.standings()[1].jobs
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    job.folder.write_text("in the way")
    assert run_launcher(copied, None) == 1
    captured = capsys.readouterr()
    assert f"error: {FIRST}/{CELLS[FIRST]} failed (see above)" in captured.err
    assert "cannot be written (" in captured.err
    assert "2 cohorts: 0 done" in captured.out


def begin(folder: Path) -> subprocess.Popen[str]:
    """A launcher in a group of its own, once it has a checkpoint."""
    words = [*command("run"), "--checkpoint-seconds", "0.1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    variables = environment(PYTHONPATH=str(folder))
    process = subprocess.Popen(words, cwd=folder, env=variables, text=True, start_new_session=True, **streams)
    wait_for(lambda: list(folder.glob(".store/*/checkpoint.safetensors")), process)
    return process


def test_a_checkpoint_that_cannot_be_read_is_set_aside(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    copied = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    (job,) = copied.standings()[1].jobs
    job.folder.mkdir(parents=True)
    (job.folder / "checkpoint.safetensors").write_bytes(b"damaged")
    assert [item.need for item in copied.standings()] == [WAITS, TRAIN]
    assert run_launcher(copied, None) == 0
    assert f"warning: {job.folder}/checkpoint.safetensors: damaged" in capfd.readouterr().err
    assert_same(tmp_path, project)


def test_a_signal_changes_nothing(project: Path, tmp_path: Path) -> None:
    folder = bare_copy(project, tmp_path)
    process = begin(folder)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
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
    copied = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    (job,) = copied.jobs(copied.cohorts[FIRST])
    with run_lock(job, 0):
        assert run_launcher(copied, None) == 0
    output = capsys.readouterr().out
    assert f"{CELLS[FIRST]} ({job.digest}): process {os.getpid()} is working on it; wait for it to end" in output
    assert "2 cohorts: 0 done, 0 begun, 2 to do" in output
    assert not job.folder.exists()


def test_two_launchers_on_one_store_share_the_runs(project: Path, tmp_path: Path) -> None:
    """Every update is made once, in one or the other; the results are those of one alone."""
    folder = bare_copy(project, tmp_path)
    words = [*command("run"), "--checkpoint-seconds", "0.1"]
    variables = environment(PYTHONPATH=str(folder))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = [subprocess.Popen(words, cwd=folder, env=variables, text=True, **streams) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for cohort, cell in CELLS.items():
        begun = [line for output in outputs for line in output.splitlines() if f"{cell}: from update" in line]
        assert len(begun) == 1, outputs
        assert f"{cohort}/{cell}: from update 0 to {STEPS:,}" in begun[0]
    assert_same(folder, project)


def test_killed_at_any_moment_nothing_is_lost(project: Path, tmp_path: Path) -> None:
    folder = bare_copy(project, tmp_path)
    shares = []
    for pause in (0.0, 0.7, 1.9, 0.3):
        process = begin(folder)
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_SECONDS)
        said = launch(folder, "status")
        shares.append(float(re.findall(r"progress: ([0-9.]+) %", said)[0]))
    assert shares == sorted(shares)
    assert "2 done" in launch(folder, "run")
    assert_same(folder, project)


def test_what_is_recorded_is_not_trained_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bare_copy(project, tmp_path)
    shutil.copytree(project / HERE.cohort_results(FIRST), folder / HERE.cohort_results(FIRST))
    copied = in_this_process(folder, monkeypatch)
    assert run_launcher(copied, None) == 1, "what is blocked is work that was not done"
    assert {item.cohort.key: item.need for item in copied.standings()} == {FIRST: RECORDED, SECOND: BLOCKED}
    output = capsys.readouterr().out
    assert f"blocked: continues {FIRST}/vae-M1-K1-s0, which is not finished here: only its results are;" in output
    assert "train it with --again" in output
    assert not list(folder.glob(".store/*/waypoint-*"))
    again = replace(copied, again=True)
    assert {item.cohort.key: item.need for item in again.standings()} == {FIRST: TRAIN, SECOND: WAITS}
    # Results of another evaluation are not those that are asked for.
    evaluations = {key: replace(spec, num_samples=200) for key, spec in copied.evaluations.items()}
    changed = replace(copied, evaluations=evaluations)
    assert changed.standings()[1].need == TRAIN


def test_plan_says_what_is_missing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bare_copy(project, tmp_path))

    def said(*words: str, status: int = 0) -> str:
        assert command_line.main([*words, "--scale", "tiny", "--device", "cpu", "--workers", "1"]) == status
        return capsys.readouterr().out

    output = said("status")
    assert f"{SECOND}   1 runs    0.0 % trained  waits: continues {FIRST}/vae-M1-K1-s0, which is not finished" in output
    assert "time left (cpu, 1 processes): unknown; 2 not timed here yet" in output
    assert f"next: {FIRST}" in output
    assert said("run", "--dry-run") == output
    assert not Path(".store").exists()
    shutil.rmtree("data")
    output = said("run", status=1)
    assert "blocked: data/binarized/mnist/dataset.json: missing" in output
    assert "next:" not in output


def test_time_left_is_work_over_measured_speed(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = in_this_process(bare_copy(project, tmp_path), monkeypatch)
    cohort, spec = copied.cohorts[FIRST], copied.evaluations[FIRST]
    (run,) = cohort.runs
    remember(copied.store, CORE, run_shape(run), 50.0)
    assert "0:50 left and an evaluation not timed yet" in describe(copied.standings(), copied.machine, copied.paths)
    remember(copied.store, CORE, evaluation_shape(cohort, spec), 30.0)
    text = describe(copied.standings(), copied.machine, copied.paths)
    assert "train: 1:20 left" in text
    assert "time left (cpu, 1 processes): 1:20 for 1 of them at speeds measured on this machine; 1 not timed" in text
    # Two processes take half as long.
    other = replace(copied, machine=Machine(torch.device("cpu"), 2, 1e9))
    assert "time left (cpu, 2 processes): 0:40 for 1 of them" in describe(other.standings(), other.machine, other.paths)


def test_what_is_ahead_tells_the_share_of_evaluations(tmp_path: Path) -> None:
    cohort = CohortSpec("tiny", "a", "a", (make_run(),))
    spec = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=4, train_images=0, pruned_images=0)
    project = Project({"tiny/a": cohort}, {"tiny/a": spec}, (cohort,), tmp_path, Machine(torch.device("cpu"), 1, 1e9))
    timed = Standing(cohort, TRAIN, training_left=60.0, evaluation_left=20.0)
    assert forecast([timed], project) == "about 1:20 ahead on 1 core, 25 % of it evaluations"
    remember(project.store, CORE, likelihood_shape((50,)), 13_000.0)
    told = "about 1:20 ahead on 1 core, 25 % of it evaluations at 100 to 100 images a second and core"
    assert forecast([timed], project) == told
    unknown = replace(timed, evaluation_left=None)
    assert forecast([unknown, timed], project).endswith(" and what was not timed yet")
    assert forecast([replace(unknown, training_left=None)], project) == "ahead: what was not timed yet"
    assert forecast([replace(timed, training_left=0.0, evaluation_left=0.0)], project) == "ahead: nothing"


def test_pace_leaves_starting_out() -> None:
    pace = Pace()
    for run_, step, now in [("a", 100, 0.0), ("b", 100, 0.0), ("a", 110, 60.0), ("b", 110, 60.0), ("a", 130, 70.0)]:
        pace.note(run_, step, now)
    assert (pace.steps, pace.seconds, pace.rate) == (20, 10.0, 2.0)
    assert Pace().rate is None


def test_single_runs_and_their_order_can_be_chosen() -> None:
    runs = (make_run(), make_run("vae", 5, 1), make_run(seed=1, name="iwae-M1-K5-s1"))
    cohorts = {
        key: CohortSpec(key.partition("/")[0], "a", key.partition("/")[2], runs)
        for key in ("tiny/a-mnist-1L-T5", "tiny/b-mnist-1L-T5", "other/a-mnist-1L-T5")
    }

    def chosen(*patterns: str) -> list[str]:
        choice = choose(cohorts, list(cohorts), "tiny", patterns)
        return [f"{cohort.name[0]}:{','.join(run.name for run in cohort.runs)}" for cohort in choice]

    iwae, vae, other = (run.name for run in runs)
    assert chosen() == [f"a:{iwae},{vae},{other}", f"b:{iwae},{vae},{other}"]
    assert chosen("b-*", "a-*") == [f"b:{iwae},{vae},{other}", f"a:{iwae},{vae},{other}"]
    assert chosen(f"a-mnist-1L-T5/{vae}") == [f"a:{vae}"]
    assert chosen("*/vae-*", "tiny/a-*") == [f"a:{vae}", f"b:{vae}", f"a:{iwae},{other}"]
    assert chosen("tiny/*/*-s1") == [f"a:{other}", f"b:{other}"]
    with pytest.raises(UserError, match="--only a-mnist-1L-T5/piwae: matches no cohort or run of scale tiny"):
        chosen("a-mnist-1L-T5/piwae")


def test_all_are_taken_so_far_before_one_goes_deeper() -> None:
    cohort = CohortSpec("tiny", "a", "a", (make_run(max_steps=100), make_run(seed=1, max_steps=30, name="s1")))
    project = Project({"tiny/a": cohort}, {}, (cohort,), Path("store"), Machine(torch.device("cpu"), 1, 1e9))
    # 200 images are 10 updates an epoch.
    assert [(piece.run.seed, piece.steps) for piece in pieces(project, [])] == [(0, 100), (1, 30)]
    # To one epoch, to four, to the depth; the second run's depth is three.
    expected = [(0, 10), (1, 10), (0, 40), (1, 30), (0, 100)]
    assert [(piece.run.seed, piece.steps) for piece in pieces(project, [4, 1])] == expected


def test_no_run_goes_deeper_than_its_scale() -> None:
    cohort = CohortSpec("tiny", "a", "a", (make_run(max_steps=100),))
    project = Project({"tiny/a": cohort}, {}, (cohort,), Path("store"), Machine(torch.device("cpu"), 1, 1e9))
    check_epochs(project, [10, 1])
    with pytest.raises(UserError, match="--to-epoch 11: what was chosen ends at 10 epochs; raise its stages"):
        check_epochs(project, [1, 11])


def test_the_plan_counts_runs_as_the_reports_do(tmp_path: Path) -> None:
    """Those of recorded cohorts, and of others those that are evaluated at their depth."""
    cohort = CohortSpec("tiny", "a", "a", (make_run(max_steps=30), make_run(seed=1, max_steps=30, name="s1")))
    plan = [
        Standing(cohort, BLOCKED, "", (), (), 0),
        Standing(cohort, RECORDED, "", (), (), 0),
        Standing(cohort, TRAIN, "", (), (30, 10), 1),
    ]
    (tmp_path / "reports/tiny/results/a").mkdir(parents=True)
    (tmp_path / "reports/tiny/results/a/metrics.json").write_text("{}")
    text = describe(plan, Machine(torch.device("cpu"), 1, 1e9), Paths(tmp_path))
    assert "3 of 6 runs finished" in text.splitlines()


def test_what_is_left_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []
    monkeypatch.setattr("pipeline.work.priority.os.nice", lambda step: asked.append(step) or 19)
    monkeypatch.setattr("pipeline.work.priority.AUTOGROUP", tmp_path / "autogroup")
    assert "and so the scheduling group of this session" in yield_to_others()
    assert (tmp_path / "autogroup").read_text() == "19"
    monkeypatch.setattr("pipeline.work.priority.AUTOGROUP", tmp_path / "nowhere" / "autogroup")
    assert yield_to_others() == "at niceness 19: others come first"
    assert asked == [19, 19]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--only", "burda-table9*"],
            "--only burda-table9*: matches no cohort or run of scale tiny; known: tiny/burda",
        ),
        (["status", "--scale", "huge"], "--scale huge: no such scale; known: tiny"),
        (
            ["unpack", "nothing.tar"],
            "nothing.tar: cannot be read (No such file or directory); there is no such file here: bring it",
        ),
        (["pack", "runs.tar"], ".store: holds no run or checkpoint of the chosen cohorts; nothing to pack"),
        (["run", "--minutes", "0"], "--minutes must be above 0"),
        (["run", "--workers", "0"], "--workers must be at least 1"),
        (["run", "--minutes", "1h30"], "--minutes must be above 0, a number such as 90 or 0.5; not '1h30'"),
        (["run", "--minutes", "nan"], "--minutes must be above 0"),
        (["run", "--minutes", "inf"], "--minutes must be above 0"),
        (["run", "--checkpoint-seconds", "nan"], "--checkpoint-seconds must be above 0"),
        (["run", "--checkpoint-seconds", "-1"], "--checkpoint-seconds must be above 0"),
        (["run", "--to-epoch", "1", "0"], "--to-epoch must be at least 1, a whole number; not '0'"),
        (["run", "--to-epoch", "nan"], "--to-epoch must be at least 1, a whole number; not 'nan'"),
        (["simulate", "1", "0"], "devices must be at least 1"),
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
    told = str(caught.value) if isinstance(caught.value, UserError) else capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1, told


def test_the_time_left_on_cores_holds_what_is_to_be_evaluated() -> None:
    spec = make_run(max_steps=400)
    cohort = CohortSpec("tiny", "a", "a", (spec,))
    plan = [Piece(cohort, spec, 40), Piece(cohort, spec, 400)]
    due = [[Due(40, 30.0)], [Due(40, 30.0), Due(400, 60.0)]]
    board = Board(plan, {"d": 0}, ["d", "d"], 2, {run_shape(spec): 10.0}, due)
    # 400 updates and both evaluations, once each, on two cores.
    assert board.left() == "about 1:05 left"
    board.hear(0, News(0, 20, 10.0))
    assert board.of(board.current[0]) == f"tiny/a/{spec.name}: 20 of 40, 10/s, 0:32 left"
    board.hear(0, News(0, 40, doing="evaluating"))
    assert board.left() == "about 1:03 left"
    board.hear(0, News(0, 40, doing=END))
    assert board.left() == "about 0:48 left"
    assert board.line().startswith("10.00 %, about 0:48 left | ")
    board.hear(0, News(1, 400, 20.0))
    assert board.left() == "about 0:30 left"
    board.hear(0, News(1, 400, doing=END))
    assert board.left() == "about 0:00 left"


def test_what_was_not_timed_is_said_beside_the_time_left() -> None:
    spec = make_run(max_steps=400)
    cohort = CohortSpec("tiny", "a", "a", (spec,))
    board = Board([Piece(cohort, spec, 400)], {"d": 0}, ["d"], due=[[Due(400, None)]])
    assert board.left() == "about 0:00 left and what was not timed yet"
    board.hear(0, News(0, 100, 10.0))
    assert board.left() == "about 0:30 left and what was not timed yet"
    assert board.of(board.current[0]).endswith("100 of 400, 10/s, 0:30 left and an evaluation not timed yet")
