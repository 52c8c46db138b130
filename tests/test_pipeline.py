"""The whole pipeline through DVC at a tiny scale, on real data of all three datasets."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from pipeline.results import load_results
from tests.project import copy_project, ran_stages, run, write_params

TINY: dict[str, Any] = {
    "algorithm_version": 1,
    "device": "cpu",
    "workers": 1,
    "engine": "auto",
    "checkpoint_seconds": 30,
    "data": {"test_binarization_seed": 123},
    "experiments": {
        "burda-table1": {"T": [1], "settings": [{"objective": "vae"}]},
        "burda-table2": {
            "T": [4],
            "schedule": [{"epochs": 2187, "learning_rate": 1e-4}],
            "settings": [{"objective": "iwae", "K": 4, "after": {"experiment": "burda-table1", "objective": "vae"}}],
        },
        "burda-table3": {"T": [4], "settings": [{"objective": "iwae", "K": 4}]},
        "every-objective": {
            "T": [4],
            "settings": [
                {"objective": "piwae", "M": 2, "K": 2},
                {"objective": "ciwae", "K": 4, "parameter": 0.5},
                {"objective": "miwae", "M": 2, "K": 2},
            ],
        },
    },
    "scales": {
        "tiny": {
            "protocol": "published-code",
            "precision": "float32",
            "seeds": [0],
            "stages": 8,
            "max_steps": 30,
            "evaluation": {
                "seed": 123,
                "num_samples": 130,
                "bound_samples": 64,
                "test_images": 10,
                "train_images": 5,
                "pruned": True,
                "diagnostic_images": 20,
            },
            "toy": {"seed": 0, "samples": [1, 2, 4], "gradients": 16},
            "experiments": {
                "burda-table1": {"datasets": ["mnist"], "layers": [1]},
                "burda-table2": {"datasets": ["mnist"], "layers": [1]},
                "burda-table3": {"datasets": ["fixed-mnist"], "layers": [1]},
                "every-objective": {"datasets": ["omniglot"], "layers": [2], "evaluation": {"snr_gradients": 16}},
            },
        }
    },
}
COHORTS = {
    "burda-table1-mnist-1L-T1",
    "burda-table2-mnist-1L-T4",
    "burda-table3-fixed-mnist-1L-T4",
    "every-objective-omniglot-2L-T4",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project in which `dvc repro` has run; tests leave it reproduced."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder, TINY)
    output = run(folder, "dvc", "repro").stdout
    assert {f"train@tiny/{name}" for name in COHORTS if "table2" not in name} < ran_stages(output)
    yield folder
    shutil.rmtree(folder)


def stage_names(folder: Path) -> set[str]:
    return set(run(folder, "dvc", "stage", "list", "--name-only", "--all").stdout.split())


def mlflow_runs(folder: Path) -> list[str]:
    with sqlite3.connect(folder / ".mlflow/mlflow.db") as database:
        query = "select name from runs where lifecycle_stage = 'active' and status = 'FINISHED'"
        return [name for (name,) in database.execute(query)]


def test_every_dataset_ends_in_results_reports_and_mlflow(project: Path) -> None:
    results = load_results(project / "reports/tiny/results")
    assert {result.cohort.removeprefix("tiny/") for result in results} == COHORTS
    assert {result.spec.dataset for result in results} == {"mnist", "fixed-mnist", "omniglot"}
    for result in results:
        assert result.status == "finished"
        assert np.isfinite(list(result.metrics.values())).all()
        assert result.metrics["test_images"] == 10
        assert result.training["steps"] == 30
    page = (project / "reports/tiny/index.html").read_text()
    assert "not comparable" in page
    assert 'id="figure-toy_snr"' in page
    measured = {result.experiment for result in results if "snr_encoder" in result.metrics}
    assert measured == {"every-objective"}
    assert len(mlflow_runs(project)) == len(results) == 6


def test_second_repro_is_idle_and_quick(project: Path) -> None:
    start = time.monotonic()
    output = run(project, "dvc", "repro").stdout
    assert ran_stages(output) == set()
    assert time.monotonic() - start < 15


def test_lock_holds_the_graphs_stages(project: Path) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    assert set(lock["stages"]) == stage_names(project)


def test_tracking_again_doubles_nothing_and_restores_a_deleted_store(project: Path) -> None:
    before = sorted(mlflow_runs(project))
    run(project, sys.executable, "-m", "stages.track", "tiny")
    assert sorted(mlflow_runs(project)) == before
    shutil.rmtree(project / ".mlflow")
    output = run(project, "dvc", "repro").stdout
    assert ran_stages(output) == {"track@tiny"}
    assert sorted(mlflow_runs(project)) == before


def test_a_new_seed_is_trained_alone_and_a_new_setting_with_what_is_finished(project: Path) -> None:
    params = copy.deepcopy(TINY)
    params["scales"]["tiny"]["experiments"]["burda-table3"]["seeds"] = [0, 1]
    params["experiments"]["every-objective"]["settings"].append({"objective": "iwae", "K": 4})
    write_params(project, params)
    output = run(project, "dvc", "repro").stdout
    seed, setting = "tiny/burda-table3-fixed-mnist-1L-T4-s1", "tiny/every-objective-omniglot-2L-T4"
    stages = {f"{stage}@{cohort}" for stage in ("train", "evaluate") for cohort in (seed, setting)}
    assert ran_stages(output) == {"check", *stages, "report@tiny", "track@tiny"}
    assert f"{seed}: 1 run trained, 0 taken from the store" in output
    assert f"{setting}: 1 run trained, 3 taken from the store" in output
    shutil.rmtree(project / "reports/tiny/results" / seed.partition("/")[2])
    write_params(project, TINY)
    output = run(project, "dvc", "repro").stdout
    assert " trained, " not in output
    assert ran_stages(run(project, "dvc", "repro").stdout) == set()


def test_one_cohort_is_reproduced_bit_for_bit_without_store_and_cache(project: Path) -> None:
    cohort = "burda-table2-mnist-1L-T4"
    training = project / f"runs/tiny/{cohort}/training/iwae-M1-K4-s0"
    results = project / f"reports/tiny/results/{cohort}"
    weights, metrics = load_file(training / "weights.safetensors"), (results / "metrics.json").read_text()
    log_p_hat = np.load(results / "arrays.npz")["iwae-M1-K4-s0/log_p_hat"]
    for name in (".store", ".dvc/cache", "runs", f"reports/tiny/results/{cohort}"):
        shutil.rmtree(project / name)
    output = run(project, "dvc", "repro", f"evaluate@tiny/{cohort}").stdout
    assert f"tiny/{cohort}: 1 run trained, 0 taken from the store" in output
    again = load_file(training / "weights.safetensors")
    assert weights.keys() == again.keys()
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert (results / "metrics.json").read_text() == metrics
    assert np.array_equal(np.load(results / "arrays.npz")["iwae-M1-K4-s0/log_p_hat"], log_p_hat)
    run(project, "dvc", "repro")


def test_report_from_the_summaries_alone(project: Path, tmp_path: Path) -> None:
    """What a fresh clone has: results in git, no data, no cache, no runs."""
    for name in ("pipeline", "stages", "cohorts", "reports", ".dvc"):
        ignore = shutil.ignore_patterns("cache", "tmp", "__pycache__")
        shutil.copytree(project / name, tmp_path / name, ignore=ignore)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", ".gitignore"):
        shutil.copy2(project / name, tmp_path / name)
    run(tmp_path, "git", "init", "-q")
    expected = (tmp_path / "reports/tiny/index.html").read_bytes()
    (tmp_path / "reports/tiny/index.html").unlink()
    start = time.monotonic()
    run(tmp_path, "dvc", "repro", "--single-item", "report@tiny")
    assert time.monotonic() - start < 60
    assert (tmp_path / "reports/tiny/index.html").read_bytes() == expected


def test_without_git_dvc_works_once_it_is_told(project: Path, tmp_path: Path) -> None:
    for name in ("pipeline", "stages", "cohorts", ".dvc"):
        shutil.copytree(project / name, tmp_path / name, ignore=shutil.ignore_patterns("cache", "tmp", "__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(project / name, tmp_path / name)
    run(tmp_path, "dvc", "config", "--local", "core.no_scm", "true")
    run(tmp_path, "dvc", "repro", "binarize@mnist")
    assert json.loads((tmp_path / "data/binarized/mnist/dataset.json").read_text())["name"] == "mnist"


def test_params_out_of_step_stop_before_any_work(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    try:
        (project / "params.yaml").write_text(text.replace("max_steps: 30", "max_steps: 31"))
        done = run(project, "dvc", "repro", check=False)
        assert done.returncode != 0
        assert "out of step with params.yaml: run `python -m pipeline.grid`" in done.stdout
        (project / "params.yaml").write_text(text.replace("max_steps: 30", "max_stpes: 30"))
        done = run(project, "dvc", "repro", check=False)
        assert done.returncode != 0
        assert "params.yaml: scales.tiny.max_stpes: unknown key; allowed here: protocol," in done.stdout
        assert "Traceback" not in done.stdout
        assert "Running stage 'train" not in done.stdout
    finally:
        (project / "params.yaml").write_text(text)
    assert ran_stages(run(project, "dvc", "repro").stdout) <= {"check"}
