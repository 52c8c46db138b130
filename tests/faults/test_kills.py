"""Forty kills over all stages: what is done again comes out bit for bit, and nothing is left behind.

Each stage is killed with its whole process group (SIGKILL) after a random while, several times, then let run its way.
A try that came too late counts for nothing: what the stage made is removed, so that every kill hits a stage at work.
"""

from __future__ import annotations

import os
import random
import shutil
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

from pipeline.records.run_folder import checkpoint_step, stored_waypoints
from tests.conftest import PATIENCE_SECONDS
from tests.project import copy_project, environment, run, write_params
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
MADE = {
    "download": ("data/raw",),
    "binarize": ("data/binarized",),
    "train": (".store", "runs"),
    "evaluate": (".store/*/evaluation-*", f"reports/tiny/results/{COHORT}"),
    "toy": ("reports/tiny/results/gaussian-toy",),
    "report": ("reports/tiny/*.*", "reports/tiny/figures", "reports/tiny/metrics", "reports/tiny/tables"),
    "track": (".mlflow",),
}
"""What each stage writes, but for litter."""
KILLS = {"download": 5, "binarize": 5, "train": 12, "evaluate": 6, "toy": 3, "report": 4, "track": 5}
SEED = 20240501
TRACKED = (".gitignore", ".gitkeep")


def parameters() -> dict[str, Any]:
    settings = [{"objective": "iwae", "K": 4}, {"objective": "vae", "M": 4}]
    scale = {**TINY["scales"]["tiny"], "max_steps": 1000}
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
    contents: dict[str, Any] = {}
    results = folder / f"reports/tiny/results/{COHORT}"
    for name in ("runs.json", "metrics.json", "waypoints.json"):
        contents[name] = (results / name).read_bytes()
    contents |= {f"array {name}": array.tobytes() for name, array in np.load(results / "arrays.npz").items()}
    for path in sorted((folder / f"runs/{KEY}/training").glob("*/weights.safetensors")):
        contents |= {f"{path.parent.name} {name}": array.tobytes() for name, array in load_file(path).items()}
    for path in sorted((folder / f"data/binarized/{NAME}").iterdir()):
        contents[path.name] = path.read_bytes()
    with sqlite3.connect(folder / ".mlflow/mlflow.db") as database:
        query = "select name from runs where lifecycle_stage = 'active' order by name"
        contents["mlflow"] = database.execute(query).fetchall()
    return contents


def undo(folder: Path, name: str) -> None:
    """Remove what a stage made, so that it has all of its work before it."""
    for pattern in MADE[name]:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def progress(folder: Path) -> dict[str, int]:
    """Updates that the store holds of each run."""
    steps = {}
    for run_folder in (folder / ".store").glob("[0-9a-f]*"):
        states = [*stored_waypoints(run_folder), *map(checkpoint_step, run_folder.glob("checkpoint*.safetensors"))]
        steps[run_folder.name] = max(states, default=0)
    return steps


def kill_over_and_over(folder: Path, name: str, data: str, length: float, rng: random.Random) -> tuple[int, int]:
    """Kill a stage as often as `KILLS` says; how many tries that took, and how many kills found it in its training.

    length: seconds that the stage takes.
    """
    hits = tries = in_training = 0
    while hits < KILLS[name]:
        tries += 1
        assert tries <= 10 * KILLS[name], f"{name} comes to its end before it is killed"
        before = progress(folder)
        start = time.monotonic()
        if not killed(folder, name, data, rng.uniform(0.1, 1.0) * length):
            length = min(length, time.monotonic() - start)
            undo(folder, name)
            continue
        hits += 1
        now = progress(folder)
        assert all(now.get(digest, 0) >= steps for digest, steps in before.items()), "a kill lost what was trained"
        in_training += now != before
    return tries, in_training


def litter(folder: Path) -> list[str]:
    """What killed processes left in the folders that the project writes."""
    roots = [folder / name for name in ("data", ".store", "runs", "reports", ".mlflow")]
    paths = [path for root in roots for path in root.rglob("*")]
    hidden = [path for path in paths if path.name.startswith(".") or ".part" in path.name]
    return [path.relative_to(folder).as_posix() for path in hidden if path.name not in TRACKED]


@pytest.mark.slow
def test_forty_kills_over_all_stages(tmp_path: Path) -> None:
    assert sum(KILLS.values()) == 40
    rng = random.Random(SEED)
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    whole, data = make_project(tmp_path / "unbroken")
    folder, _ = make_project(tmp_path / "killed")
    lengths: dict[str, float] = {}
    for name in STAGES:
        start = time.monotonic()
        stage(whole, name, data)
        lengths[name] = time.monotonic() - start
    expected = content(whole)
    for name in STAGES:
        tries, in_training = kill_over_and_over(folder, name, data, lengths[name], rng)
        trained = f", {in_training} of them after new updates were on disk" if name == "train" else ""
        print(f"{name}: {KILLS[name]} kills in {tries} tries{trained}", flush=True)
        output = stage(folder, name, data).stdout
        assert "Traceback" not in output
    actual = content(folder)
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []
    print(f"compared: {len(expected)} files, arrays and lists of runs; left behind: {litter(folder)}")
    # The stages that use a file again remove what was left beside it; the rest is for `python -m stages.prune`.
    pruned = run(folder, sys.executable, "-m", "stages.prune")
    assert "Traceback" not in pruned.stdout
    assert not [path for path in litter(folder) if path.startswith((".store", "data"))]
