"""The store is made once and refused where it was not made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.store import STORE
from tests.conftest import PATIENCE_SECONDS, wait_for
from tests.tracking.example import publish_all, two_cohorts


def test_a_store_that_was_moved_is_refused(root: Path, tmp_path: Path) -> None:
    publish_all(root, two_cohorts())
    moved = tmp_path / "elsewhere"
    shutil.copytree(root / STORE, moved / STORE)
    with pytest.raises(UserError, match="made in another place"):
        publish_all(moved, two_cohorts())


def test_the_store_lies_in_the_project_whatever_the_project_is_called(tmp_path: Path) -> None:
    root = tmp_path / "why? not #1 50%"
    root.mkdir()
    publish_all(root, two_cohorts()[:1])
    assert (root / STORE / "mlflow.db").is_file()
    assert len(list((root / STORE / "artifacts").rglob("result.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_two_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.store import locked_store, experiment_id\n"
        "root = Path(sys.argv[1])\n"
        "with locked_store(root) as client: print(experiment_id(client, root, 'quick', 'mnist', ['4 epochs']))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert {errors for _, errors in outputs} == {""}


def test_a_kill_while_the_store_is_made_leaves_nothing_that_mlflow_refuses(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.store import locked_store\n"
        "with locked_store(Path(sys.argv[1])): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], text=True)
    folder = tmp_path / STORE
    # MLflow makes its tables one after the other, each in a transaction of its own.
    wait_for(lambda: any(path.stat().st_size for path in folder.glob(".mlflow.db.*.part")), process)
    process.kill()
    process.wait()
    assert not (folder / "mlflow.db").exists()
    assert publish_all(tmp_path, two_cohorts()[:1]).created == 1
    assert list(folder.glob(".mlflow.db*")) == []
