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


def planned(folder: Path, target: str = "setup") -> str:
    """What `make` would run."""
    done = subprocess.run(["make", "-n", target], cwd=folder, capture_output=True, text=True, check=False)
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


def test_repro_says_how_the_results_that_it_removes_come_back(project: Path, tmp_path: Path) -> None:
    """Stopped half-way it leaves a git that misses them."""
    metrics = tmp_path / "reports/quick/results/cohort/metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.touch()
    (line,) = (line for line in planned(project, "repro").splitlines() if "metrics.json" in line)
    environment = {name: value for name, value in os.environ.items() if name != "ELBO_STORE"}

    def run() -> str:
        return subprocess.run(line, shell=True, cwd=project, env=environment, capture_output=True, text=True).stdout

    (project / ".store").mkdir()
    assert run() == ""
    assert metrics.exists()
    (project / ".store").rmdir()
    assert "`git checkout reports/quick/results` brings the committed results back" in run()
    assert not metrics.exists()
