"""What is reported of a run is that run's: names, folders and parameters that change meanwhile decide nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.errors import UserError
from pipeline.experiments import grid
from pipeline.experiments.params import load_params
from pipeline.paths import HERE
from pipeline.records.results import cohort_results
from pipeline.work.locks import locked
from stages import evaluate, train
from tests.faults.finished import COHORT, PARAMS, Numbers, call, numbers, run_all, stage

RUNS = HERE.runs / COHORT / "training"


@pytest.fixture
def project(finished: tuple[Path, Numbers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Numbers:
    """A copy of the finished project, in which the test works; the numbers of its runs."""
    root, expected = finished
    shutil.copytree(root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return {name: value for name, value in expected.items() if name != "provenance"}


def change_params(**changes: Any) -> None:
    """Edit the scale of every run, and write the cohorts from that."""
    scale = {**PARAMS["scales"]["small"], **changes}
    HERE.params.write_text(yaml.safe_dump({**PARAMS, "scales": {"small": scale}}, sort_keys=False))
    call(grid.main)


def after(function: Callable[..., Any], action: Callable[[], None]) -> Callable[..., Any]:
    def both(*words: Any, **named: Any) -> Any:
        result = function(*words, **named)
        action()
        return result

    return both


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"max_steps": 20}, "holds .* after 30 updates, not after 20"), ({"protocol": "paper-text"}, "belongs to run ")],
    ids=["depth", "protocol"],
)
def test_runs_of_earlier_parameters_are_not_reported_under_new_ones(
    changes: dict[str, Any], told: str, project: Numbers
) -> None:
    change_params(**changes)
    with pytest.raises(UserError, match=rf"{told}.*; train it first: python -m stages\.train {COHORT}"):
        stage(evaluate.main, COHORT)
    run_all()
    (protocol,) = {result.spec.protocol_name for result in cohort_results(HERE.cohort_results(COHORT))}
    (steps,) = {result.training["steps"] for result in cohort_results(HERE.cohort_results(COHORT))}
    assert {"protocol": protocol, "max_steps": steps}.items() >= changes.items()


@pytest.mark.parametrize(
    ("module", "last"), [(train, "copy_finished"), (evaluate, "evaluate_waiting")], ids=["train", "evaluate"]
)
def test_parameters_that_change_while_a_stage_works(
    module: Any, last: str, project: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else DVC would record the new cohort beside the old numbers."""
    with monkeypatch.context() as patch:
        patch.setattr(module, last, after(getattr(module, last), lambda: change_params(max_steps=20)))
        with pytest.raises(UserError, match=r"changed while .*: run the same command again$"):
            stage(module.main, COHORT)
    run_all()
    assert {result.training["steps"] for result in cohort_results(HERE.cohort_results(COHORT))} == {20}


@pytest.mark.parametrize("what", ["folders", "waypoints", "weights", "evaluations"])
def test_two_runs_that_are_swapped_in_the_store(what: str, project: Numbers) -> None:
    first, second = sorted(path for path in Path(".store").iterdir() if len(path.name) == 16)
    pairs = {
        "folders": [(first, second)],
        "waypoints": [(first / "waypoint-00000030", second / "waypoint-00000030")],
        "weights": [tuple(folder / "waypoint-00000030/weights.safetensors" for folder in (first, second))],
        "evaluations": [
            tuple(next(folder.glob(f"evaluation-*.{kind}")) for folder in (first, second)) for kind in ("json", "npz")
        ],
    }
    for one, other in pairs[what]:
        one.rename("between")
        other.rename(one)
        Path("between").rename(other)
    shutil.rmtree(HERE.runs)
    shutil.rmtree(HERE.cohort_results(COHORT) / "metrics.json", ignore_errors=True)
    run_all()
    assert numbers() == project


def test_two_runs_that_are_swapped_where_dvc_keeps_them(project: Numbers) -> None:
    first, second = sorted(RUNS.iterdir())
    first.rename("between")
    second.rename(first)
    Path("between").rename(second)
    with pytest.raises(UserError, match=rf"belongs to run .*; train it first: python -m stages\.train {COHORT}"):
        stage(evaluate.main, COHORT)
    run_all()
    assert numbers() == project


def test_images_in_another_order_are_refused(project: Numbers) -> None:
    path = HERE.binarized("mnist") / "train_images.npy"
    np.save(path, np.load(path)[::-1].copy())
    shutil.rmtree(".store")
    shutil.rmtree(HERE.runs)
    with pytest.raises(UserError, match=r"train_images\.npy: damaged: .*; delete it and run `dvc repro b"):
        stage(train.main, COHORT)


def test_what_another_process_trains_is_not_forgotten_under_its_hands(
    project: Numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORCE=1 on a run that a launcher takes deeper: its states are that launcher's too."""
    folder = min(path for path in Path(".store").iterdir() if len(path.name) == 16)
    before = sorted(folder.rglob("*"))
    monkeypatch.setenv("FORCE", "1")
    with locked(Path(".store/locks") / f"{folder.name}.lock", folder.name, 0.0):
        with pytest.raises(UserError, match="is working on it"):
            stage(train.main, COHORT)
        assert sorted(folder.rglob("*")) == before
    stage(train.main, COHORT)


def test_a_cohort_that_was_edited_by_hand_is_refused(project: Numbers) -> None:
    path = HERE.cohorts / f"{COHORT}.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 3', 1))
    with pytest.raises(UserError, match=r"first-mnist-1L\.json is not what params\.yaml gives: run `python"):
        grid.check_in_step(load_params(HERE.params), HERE.cohorts)
