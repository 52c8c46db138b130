"""What make does about the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what make looks at, and an environment that is newer than that."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / ".venv/.ready").touch()
    return tmp_path


def planned(folder: Path) -> str:
    """What `make setup` would run."""
    done = subprocess.run(["make", "-n", "setup"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_that_works_stays(project: Path) -> None:
    assert "pip install" not in planned(project)


@pytest.mark.parametrize("gone", [".venv/bin", ".venv"])
def test_one_whose_programs_are_gone_is_made_anew(gone: str, project: Path) -> None:
    shutil.rmtree(project / gone)
    plan = planned(project)
    assert "-m venv .venv" in plan
    assert "pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'" in plan


def test_other_constraints_are_installed(project: Path) -> None:
    (project / "constraints.txt").touch()
    os.utime(project / ".venv/.ready", (2, 2))
    assert "--constraint constraints.txt" in planned(project)
