"""A copy of the project in a folder of its own, for tests that run DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT, mirror_folder


def environment(**changes: str) -> dict[str, str]:
    """The environment in which a user runs the project, with the offline data."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mirror = str(mirror_folder().resolve())
    variables = {"PATH": path, "ELBO_DATA_MIRROR": mirror, "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "ELBO_", "FORCE"))}
    return {**inherited, **variables, **changes}


def run(folder: Path, *command: str, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; its output, both streams together, is `stdout`."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**changes),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def copy_project(folder: Path, params: dict[str, Any]) -> None:
    """The files of this checkout (tracked or not, but not ignored) as a git repository with other parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=False
    ).stdout.splitlines()
    for name in listed:
        generated = name == "dvc.lock" or name.startswith(("reports/", "cohorts/"))
        if not generated and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    write_params(folder, params)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "copy"]):
        run(folder, "git", *command)


def write_params(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(folder, sys.executable, "-m", "pipeline.experiments")


def ran_stages(output: str) -> set[str]:
    """The stages that a `dvc repro` executed."""
    prefix = "Running stage '"
    return {line.removeprefix(prefix).rstrip("':") for line in output.splitlines() if line.startswith(prefix)}
