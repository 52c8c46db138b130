"""What moves while DVC is at work: its lock tells the truth."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PATIENCE_SECONDS
from tests.faults.test_kills import KEY, make_project, parameters
from tests.project import environment, run, write_params
from tests.test_new_dataset import NAME

TRAIN = f"train@{KEY}"


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, str]:
    """A project with its data binarized, and the mirror that they come from."""
    folder, data = make_project(tmp_path)
    run(folder, "dvc", "repro", f"binarize@{NAME}", ELBO_DATA_MIRROR=data)
    return folder, data


def to_depth(**scale: Any) -> dict[str, Any]:
    """The parameters with another depth, and with few checkpoints, which nothing here needs."""
    params = {**parameters(), "checkpoint_seconds": 30}
    params["scales"]["tiny"] = {**params["scales"]["tiny"], **scale}
    return params


def locked_stages(folder: Path) -> dict[str, Any]:
    path = folder / "dvc.lock"
    return dict(yaml.safe_load(path.read_text())["stages"]) if path.exists() else {}


def change_while_it_trains(folder: Path, command: list[str], there: Path) -> tuple[int, str]:
    """Start a command and, once a run has begun, put parameters and cohorts of `there` in place; status and output."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + PATIENCE_SECONDS
    while not list((folder / ".store").glob("*/waypoint*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    shutil.copy(there / "params.yaml", folder)
    shutil.copytree(there / "cohorts", folder / "cohorts", dirs_exist_ok=True)
    output = process.communicate(timeout=PATIENCE_SECONDS)[0]
    return process.returncode, output


def test_a_cohort_that_changed_while_it_was_trained_is_refused_and_not_locked(
    project: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = project
    there = tmp_path / "changed"
    write_params(folder, to_depth(max_steps=3_010))
    shutil.copytree(folder / "cohorts", there / "cohorts")
    shutil.copy(folder / "params.yaml", there)
    write_params(folder, to_depth(max_steps=3_000))
    status, output = change_while_it_trains(folder, ["dvc", "repro", TRAIN], there)
    assert status != 0, output
    assert f"error: cohorts/{KEY}.json changed while it was trained: run the same command again" in output
    assert TRAIN not in locked_stages(folder)
    # What was trained is no loss: the same command makes the rest, and only then is it in the lock.
    output = run(folder, "dvc", "repro", TRAIN).stdout
    assert f"{KEY}: 2 runs trained, 0 taken from the store" in output
    assert TRAIN in locked_stages(folder)
    for path in (folder / "runs" / KEY / "training").glob("*/run.json"):
        assert json.loads(path.read_text())["steps"] == 3_010
