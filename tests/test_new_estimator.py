"""docs/add-an-estimator.md, done: with three lines and a setting the estimator is in grid, report and MLflow."""

from __future__ import annotations

import copy
import csv
import json
import math
import sqlite3
from pathlib import Path

from tests.project import copy_project, run, write_params
from tests.test_pipeline import TINY

THREE_LINES = """
OBJECTIVES["vae-stl"] = Objective(
    lambda log_w: Weights(uniform(log_w), uniform(log_w), torch.zeros_like(log_w)), elbo, ROEDER, drops_score=True
)
"""
SETTINGS = [{"objective": "iwae", "K": 4}, {"objective": "vae-stl", "M": 4}]
COHORT, RUN = "later-estimators-mnist-1L-T4", "vae-stl-M4-K1-s0"


def test_three_lines_and_a_setting(tmp_path: Path) -> None:
    params = copy.deepcopy(TINY)
    params["experiments"] = {"later-estimators": {"T": [4], "settings": SETTINGS}}
    params["scales"]["tiny"]["experiments"] = {"later-estimators": {"datasets": ["mnist"], "layers": [1]}}
    copy_project(tmp_path, {**params, "experiments": {"later-estimators": {"T": [4], "settings": SETTINGS[:1]}}})
    with (tmp_path / "pipeline/objectives.py").open("a") as stream:
        stream.write(THREE_LINES)
    write_params(tmp_path, params)
    run(tmp_path, "dvc", "repro", "report@tiny", "track@tiny")

    names = [entry["name"] for entry in json.loads((tmp_path / f"cohorts/tiny/{COHORT}.json").read_text())["runs"]]
    assert names == ["iwae-M1-K4-s0", RUN]
    metrics = json.loads((tmp_path / f"reports/tiny/results/{COHORT}/metrics.json").read_text())
    assert math.isfinite(metrics[RUN]["nll"])
    # Other weights, other model.
    assert metrics[RUN]["nll"] != metrics["iwae-M1-K4-s0"]["nll"]
    with (tmp_path / "reports/tiny/tables/later_estimators.csv").open() as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["objective"] == "vae-stl"]
    assert float(row["nll_effect"]) != 0
    for name in ("tables/later_estimators.md", "figures/later_estimators.svg", "index.html"):
        assert "VAE-STL" in (tmp_path / "reports/tiny" / name).read_text(), name
    with sqlite3.connect(tmp_path / ".mlflow/mlflow.db") as database:
        query = (
            "select r.name from runs r join tags t on r.run_uuid = t.run_uuid"
            " where r.lifecycle_stage = 'active' and t.key = 'objective' and t.value = ?"
        )
        name = "vae-stl-M4-K1-1L-s0, later-estimators, 30 updates"
        assert database.execute(query, ("vae-stl",)).fetchall() == [(name,)]
