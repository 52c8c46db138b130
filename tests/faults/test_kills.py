"""Forty kills over all stages: what is done again comes out bit for bit, and nothing is left behind.

Each stage is killed with its whole process group (SIGKILL) after a random while, several times, then let run its way.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import PATIENCE_SECONDS
from tests.project import copy_project, environment, run
from tests.test_new_dataset import NAME, entry, mirror
from tests.test_pipeline import TINY

COHORT = f"burda-table1-{NAME}-1L-T4"
KEY = f"tiny/{COHORT}"
STAGES = {
    "download": ("stages.download", NAME),
    "binarize": ("stages.binarize", NAME),
    "train": ("stages.train", KEY),
    "evaluate": ("stages.evaluate", KEY),
    "toy": ("stages.toy", "tiny"),
    "report": ("stages.report", "tiny"),
    "track": ("stages.track", "tiny"),
}
KILLS = {"download": 5, "binarize": 5, "train": 12, "evaluate": 6, "toy": 3, "report": 4, "track": 5}
SEED = 20240501


def parameters() -> dict[str, Any]:
    settings = [{"objective": "iwae", "K": 4}, {"objective": "vae", "M": 4}]
    scale = {**TINY["scales"]["tiny"], "max_steps": 1500}
    scale["experiments"] = {"burda-table1": {"datasets": [NAME], "layers": [1]}}
    experiments = {"burda-table1": {"T": [4], "settings": settings}}
    return {**TINY, "checkpoint_seconds": 0.2, "experiments": experiments, "scales": {"tiny": scale}}


def make_project(root: Path) -> tuple[Path, str]:
    """A project on a small dataset of its own, and the mirror that holds its files."""
    sums, folder = mirror(root / "mirror"), root / "project"
    folder.mkdir()
    copy_project(folder, TINY)
    with (folder / "pipeline/data/catalogue.py").open("a") as stream:
        stream.write(entry(sums))
    from tests.project import write_params

    write_params(folder, parameters())
    return folder, str(root / "mirror")


def stage(folder: Path, name: str, data: str) -> subprocess.CompletedProcess[str]:
    module, argument = STAGES[name]
    return run(folder, sys.executable, "-m", module, argument, ELBO_DATA_MIRROR=data)


def killed(folder: Path, name: str, data: str, seconds: float) -> bool:
    """Start a stage in a process group of its own and kill it after a while; False where it ended before."""
    module, argument = STAGES[name]
    process = subprocess.Popen(
        [sys.executable, "-m", module, argument],
        cwd=folder,
        env=environment(ELBO_DATA_MIRROR=data),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)
        return True


def content(folder: Path) -> dict[str, Any]:
    """What must be the same whether there were kills or not."""
    found: dict[str, Any] = {}
    results = folder / f"reports/tiny/results/{COHORT}"
    for name in ("runs.json", "metrics.json", "waypoints.json"):
        found[name] = (results / name).read_bytes()
    found |= {f"array {name}": array.tobytes() for name, array in np.load(results / "arrays.npz").items()}
    for path in sorted((folder / f"runs/{KEY}/training").glob("*/weights.safetensors")):
        found |= {f"{path.parent.name} {name}": array.tobytes() for name, array in load_file(path).items()}
    for path in sorted((folder / f"data/binarized/{NAME}").iterdir()):
        found[path.name] = path.read_bytes()
    with sqlite3.connect(folder / ".mlflow/mlflow.db") as database:
        query = "select name from runs where lifecycle_stage = 'active' order by name"
        found["mlflow"] = database.execute(query).fetchall()
    return found


def litter(folder: Path) -> list[str]:
    """What killed processes left in the folders that the project writes."""
    roots = [folder / name for name in ("data", ".store", "runs", "reports", ".mlflow")]
    paths = [path for root in roots for path in root.rglob("*")]
    hidden = [path for path in paths if path.name.startswith(".") or ".part" in path.name]
    return [path.relative_to(folder).as_posix() for path in hidden if path.name not in (".gitignore", ".mlflow")]


@pytest.mark.slow
def test_forty_kills_over_all_stages(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    told: dict[str, tuple[int, int]] = {}
    expected: dict[str, Any] = {}
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    whole, data = make_project(tmp_path / "unbroken")
    lengths: dict[str, float] = {}
    for name in STAGES:
        start = time.monotonic()
        stage(whole, name, data)
        lengths[name] = time.monotonic() - start
    expected = content(whole)
    folder, data = make_project(tmp_path / "killed")
    for name in STAGES:
        hits = 0
        for _ in range(KILLS[name]):
            hits += killed(folder, name, data, rng.uniform(0.1, 1.0) * lengths[name])
        told[name] = (hits, KILLS[name])
        output = stage(folder, name, data).stdout
        assert "Traceback" not in output
    found = content(folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    left = litter(folder)
    print(f"kills that hit a running stage, of those tried: {told}; left behind: {left}")
    # The stages that use a file again remove what was left beside it; the rest is for `python -m stages.prune`.
    pruned = run(folder, sys.executable, "-m", "stages.prune")
    assert pruned.returncode == 0
    assert not [path for path in litter(folder) if path.startswith((".store", "data"))]
