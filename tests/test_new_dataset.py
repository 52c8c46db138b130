"""docs/data.md, done: with one entry in the catalogue a dataset is in grid, DVC, report and MLflow."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import make_images
from tests.project import copy_project, run, write_params
from tests.test_pipeline import TINY

NAME, TITLE, TRAIN, TEST = "blobs", "Blobs of ink", 500, 100
COHORTS = (f"burda-table1-{NAME}-1L-T1", f"burda-table1-{NAME}-1L-T4")


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mirror(folder: Path) -> dict[str, str]:
    """Gzipped IDX files in the form of MNIST's; the SHA-256 of each."""
    images = make_images().reshape(-1, 28, 28)
    labels = np.arange(len(images), dtype=np.uint8) % 10
    files = {
        "train-images-idx3-ubyte": images[:TRAIN],
        "train-labels-idx1-ubyte": labels[:TRAIN],
        "t10k-images-idx3-ubyte": images[TRAIN:],
        "t10k-labels-idx1-ubyte": labels[TRAIN:],
    }
    (folder / NAME).mkdir(parents=True)
    for name, array in files.items():
        (folder / NAME / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return {name: hashlib.sha256(idx(array)).hexdigest() for name, array in files.items()}


def entry(sums: dict[str, str]) -> str:
    files = ", ".join(
        f'RawFile((Form("{name}", {{"sha256": "{sha256}"}}),), (Source("mirror", "{NAME}/{name}.gz"),))'
        for name, sha256 in sums.items()
    )
    return f"""
DATASETS["{NAME}"] = DatasetInfo(
    "{NAME}", "{TITLE}", {TRAIN}, {TEST}, train_images_burda={TRAIN}, layout="idx", labelled=True,
    variants=(Variant("IDX files", ({files})),),
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    sums, folder = mirror(root / "mirror"), root / "project"
    folder.mkdir()
    params: dict[str, Any] = copy.deepcopy(TINY)
    settings = [{"objective": "vae"}, {"objective": "iwae", "K": 4}]
    params["experiments"] = {"burda-table1": {"T": [1, 4], "settings": settings}}
    tiny = params["scales"]["tiny"]
    tiny["experiments"] = {"burda-table1": {"datasets": ["mnist"], "layers": [1]}}
    del tiny["toy"]
    copy_project(folder, params)
    with (folder / "pipeline/data/catalogue.py").open("a") as stream:
        stream.write(entry(sums))
    tiny["experiments"]["burda-table1"]["datasets"] = [NAME]
    write_params(folder, params)
    run(folder, "dvc", "repro", "report@tiny", "track@tiny", ELBO_DATA_MIRROR=str(root / "mirror"))
    return folder


def test_its_runs_are_in_the_results_and_in_mlflow(project: Path) -> None:
    for cohort in COHORTS:
        metrics = json.loads((project / f"reports/tiny/results/{cohort}/metrics.json").read_text())
        assert all(np.isfinite(list(run_metrics.values())).all() for run_metrics in metrics.values())
        # Its labels are read, too.
        assert all("digit_reader_accuracy" in run_metrics for run_metrics in metrics.values())
    with sqlite3.connect(project / ".mlflow/mlflow.db") as database:
        query = "select name from experiments where lifecycle_stage = 'active'"
        assert database.execute(query).fetchall() == [(f"tiny/{NAME}",)]


def test_the_report_has_it_in_tables_and_figures(project: Path) -> None:
    report = project / "reports/tiny"
    assert TITLE in (report / "index.html").read_text()
    tables = [path.name for path in (report / "tables").glob("*.csv") if NAME in path.read_text()]
    figures = [path.name for path in (report / "figures").glob("*.csv") if NAME in path.read_text() + path.name]
    assert "cells.csv" in tables
    assert f"convergence_{NAME}.csv" in figures


def test_images_of_another_size_are_refused_in_one_line(project: Path) -> None:
    """Nothing is trained before the files were found to be what the entry says."""
    path = project / f"data/raw/{NAME}/train-images-idx3-ubyte"
    source = path.with_name("source.json")
    content, listed, others = path.read_bytes(), source.read_text(), idx(np.zeros((TRAIN, 27, 27), np.uint8))
    for file in (path, source):
        file.chmod(0o644)
    try:
        path.write_bytes(others)
        # As it was downloaded, so that its size is all that is wrong with it.
        sha256 = hashlib.sha256(content).hexdigest()
        assert sha256 in listed
        source.write_text(listed.replace(sha256, hashlib.sha256(others).hexdigest()))
        done = run(project, "python", "-m", "stages.binarize", NAME, check=False)
    finally:
        path.write_bytes(content)
        source.write_text(listed)
    assert done.returncode == 1
    assert "holds an array [500, 27, 27] instead of one of [28, 28] for each image" in done.stdout
    assert "Traceback" not in done.stdout
