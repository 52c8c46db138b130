"""The whole pipeline through DVC at a tiny scale, on real data of all three datasets."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from pipeline.records.results import load_results
from tests.project import copy_project, ran_stages, run, write_params

TINY: dict[str, Any] = {
    "algorithm_version": 2,
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
                "pruned_images": 10,
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


def test_second_repro_is_idle(project: Path) -> None:
    assert ran_stages(run(project, "dvc", "repro").stdout) == set()


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


def test_a_deeper_scale_trains_the_rest_alone(project: Path) -> None:
    cohort, name = "burda-table3-fixed-mnist-1L-T4", "iwae-M1-K4-s0"
    training = project / f"runs/tiny/{cohort}/training/{name}"
    params = copy.deepcopy(TINY)
    params["scales"]["tiny"]["experiments"]["burda-table3"]["max_steps"] = 50
    write_params(project, params)
    output = run(project, "dvc", "repro", f"evaluate@tiny/{cohort}").stdout
    assert ran_stages(output) == {"check", f"train@tiny/{cohort}", f"evaluate@tiny/{cohort}"}
    provenance = json.loads((project / f"reports/tiny/results/{cohort}/provenance.json").read_text())
    stretches = provenance[name]["training"]["stretches"]
    # Two calls of one command on one machine may be one stretch; no update was made twice.
    assert [stretch["from"] for stretch in stretches[1:]] == [stretch["to"] for stretch in stretches[:-1]]
    assert (stretches[0]["from"], stretches[-1]["to"]) == (0, 50)
    assert {path.name for path in (project / ".store").glob("*/waypoint-00000030")} == {"waypoint-00000030"}
    weights = load_file(training / "weights.safetensors")
    # One that was never stopped.
    run(project, sys.executable, "-m", "stages.train", f"tiny/{cohort}", ELBO_STORE="another-store")
    expected = load_file(training / "weights.safetensors")
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[key], expected[key]) for key in weights)
    shutil.rmtree(project / "another-store")
    # Back at the old depth nothing is trained.
    write_params(project, TINY)
    output = run(project, "dvc", "repro").stdout
    assert "0 runs trained" in output or " trained, " not in output
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


def test_the_same_runs_made_again_leave_a_clean_git_status(project: Path) -> None:
    """As on a fresh clone: no store, no cache, no runs; the results of the commit are computed anew."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    run(project, "git", "add", "-A")
    run(project, "git", *identity, "commit", "-q", "-m", "results", "--allow-empty")
    for name in (".store", ".dvc/cache", "runs"):
        shutil.rmtree(project / name)
    for path in project.glob("reports/tiny/results/*/metrics.json"):
        path.unlink()
    output = run(project, "dvc", "repro").stdout
    assert {f"{stage}@tiny/{cohort}" for stage in ("train", "evaluate") for cohort in COHORTS} - ran_stages(output) == {
        "train@tiny/burda-table2-mnist-1L-T4"
    }, "a continued cohort has a stage of another name"
    assert run(project, "git", "status", "--porcelain").stdout == ""
    news = run(project, sys.executable, "-m", "stages.news", "tiny").stdout
    assert "6 of 6 committed NLLs reproduced bit for bit" in news


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
    run(tmp_path, "dvc", "repro", "--single-item", "report@tiny")
    assert (tmp_path / "reports/tiny/index.html").read_bytes() == expected


def test_without_git_dvc_works_once_it_is_told(project: Path, tmp_path: Path) -> None:
    for name in ("pipeline", "stages", "cohorts", ".dvc"):
        shutil.copytree(project / name, tmp_path / name, ignore=shutil.ignore_patterns("cache", "tmp", "__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(project / name, tmp_path / name)
    run(tmp_path, "dvc", "config", "--local", "core.no_scm", "true")
    run(tmp_path, "dvc", "repro", "binarize@mnist")
    assert json.loads((tmp_path / "data/binarized/mnist/dataset.json").read_text())["name"] == "mnist"


def test_an_experiment_with_other_parameters_is_not_stored_with_the_numbers_of_these(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    target = "evaluate@tiny/burda-table1-mnist-1L-T1"
    try:
        done = run(project, "dvc", "exp", "run", "-S", "scales.tiny.max_steps=31", target, check=False)
    finally:
        (project / "params.yaml").write_text(text)
    assert done.returncode != 0
    assert "out of step with params.yaml: run `python -m pipeline.experiments`" in done.stdout
    assert run(project, "dvc", "exp", "list", "--name-only").stdout.strip() == ""


def test_force_computes_anew_through_dvc(project: Path) -> None:
    cohort = "tiny/burda-table1-mnist-1L-T1"
    plain = run(project, "dvc", "repro", "--force", "--single-item", f"train@{cohort}").stdout
    assert f"{cohort}: 0 runs trained, 1 taken from the store" in plain
    forced = run(project, "dvc", "repro", "--force", "--single-item", f"train@{cohort}", FORCE="1").stdout
    assert f"{cohort}: 1 run trained, 0 taken from the store" in forced
    run(project, "dvc", "repro")


def test_a_corrected_estimator_is_computed_anew_and_nothing_else_is(project: Path) -> None:
    path, cohort = project / "pipeline/objectives.py", "tiny/burda-table1-mnist-1L-T1"
    text = path.read_text()
    try:
        path.write_text(f"{text}\n# Tidied.\n")
        assert ran_stages(run(project, "dvc", "repro", f"evaluate@{cohort}").stdout) == {"check"}
        vae = "    w = uniform(log_w)\n    return Weights(w, w, w)\n"
        assert text.count(vae) == 1
        path.write_text(text.replace(vae, vae.replace("(w, w, w)", "(w, 0.9 * w, w)")))
        refused = run(project, "dvc", "repro", f"evaluate@{cohort}", check=False)
        assert refused.returncode != 0
        assert f"the estimators of {cohort}" in refused.stdout
        assert ran_stages(refused.stdout) == {"check"}
        run(project, sys.executable, "-m", "pipeline.experiments")
        targets = [f"evaluate@{cohort}", "evaluate@tiny/burda-table3-fixed-mnist-1L-T4"]
        output = run(project, "dvc", "repro", *targets).stdout
        assert f"{cohort}: 1 run trained, 0 taken from the store" in output
        assert ran_stages(output) == {"check", f"train@{cohort}", f"evaluate@{cohort}"}
    finally:
        path.write_text(text)
        run(project, sys.executable, "-m", "pipeline.experiments")
        output = run(project, "dvc", "repro").stdout
    assert " 1 run trained" not in output


def test_params_out_of_step_stop_before_any_work(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    try:
        (project / "params.yaml").write_text(text.replace("max_steps: 30", "max_steps: 31"))
        done = run(project, "dvc", "repro", check=False)
        assert done.returncode != 0
        assert "out of step with params.yaml: run `python -m pipeline.experiments`" in done.stdout
        (project / "params.yaml").write_text(text.replace("max_steps: 30", "max_stpes: 30"))
        done = run(project, "dvc", "repro", check=False)
        assert done.returncode != 0
        assert "params.yaml: scales.tiny.max_stpes: unknown key; allowed here: protocol," in done.stdout
        assert "Traceback" not in done.stdout
        assert "Running stage 'train" not in done.stdout
        (project / "params.yaml").write_text(text.replace("max_steps: 30", "max_steps: 31"))
        for target in ("report@tiny", "track@tiny", "toy@tiny", "evaluate@tiny/burda-table2-mnist-1L-T4"):
            done = run(project, "dvc", "repro", target, check=False)
            assert done.returncode != 0, target
            assert "out of step with params.yaml" in done.stdout
    finally:
        (project / "params.yaml").write_text(text)
    assert ran_stages(run(project, "dvc", "repro").stdout) <= {"check"}
