from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.catalogue import DATASETS, dataset_info
from pipeline.data.datasets import load_dataset, verified_dataset
from pipeline.errors import UserError
from pipeline.files import sha256_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    arrays = {
        "train_images": np.full((6, 784), 200, np.uint8),
        "test_images": np.full((3, 784), 100, np.uint8),
        "test_bits": np.ones((3, 784), np.uint8),
        "train_labels": np.arange(6, dtype=np.uint8),
        "test_labels": np.arange(3, dtype=np.uint8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    info = {
        "name": "mnist",
        "digest": "abc",
        "counts": {"train_images": 6, "test_images": 3},
        "sha256": {f"{name}.npy": "" for name in arrays},
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def test_published_counts() -> None:
    counts = {n: (i.train_images, i.test_images, i.train_images_burda) for n, i in DATASETS.items()}
    assert counts == {
        "mnist": (60000, 10000, 59600),
        "fixed-mnist": (50000, 10000, 50000),
        "omniglot": (24345, 8070, 23000),
    }
    assert [name for name, info in DATASETS.items() if info.fixed] == ["fixed-mnist"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="allowed: mnist, fixed-mnist, omniglot"):
        dataset_info("../mnist")


def test_load(folder: Path) -> None:
    data = load_dataset(folder)
    assert (data.name, data.digest) == ("mnist", "abc")
    assert data.train_images.shape == (6, 784)
    assert data.train_images[0, 0] == 200
    assert data.test_labels is not None
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    data.train_images[0, 0] = 1
    assert load_dataset(folder).train_images[0, 0] == 200


@pytest.mark.parametrize(
    "file",
    ["train_images.npy", "test_images.npy", "test_bits.npy", "train_labels.npy", "test_labels.npy", "dataset.json"],
)
def test_a_missing_file_names_the_stage(file: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"{file}: missing; run `dvc repro binarize@mnist`"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not an array of numpy"),
        (lambda p: p.write_bytes(b""), "not an array of numpy"),
        (lambda p: p.write_bytes(b"not numpy at all"), "not an array of numpy"),
        (lambda p: np.save(p, np.ones((6, 784), np.float32)), "holds float32"),
        (lambda p: np.save(p, np.ones((5, 784), np.uint8)), r"holds uint8 \[5, 784\]"),
    ],
)
def test_damage_names_the_file_and_the_stage(damage, what: str, folder: Path) -> None:
    damage(folder / "train_images.npy")
    with pytest.raises(UserError, match=rf"train_images\.npy: {what}.*dvc repro binarize@mnist"):
        load_dataset(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "mnist", "digest": "x", "counts": 3, "sha256": {}}', "{"])
def test_a_damaged_dataset_json_is_one_sentence(content: str, folder: Path) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        load_dataset(folder)


def test_loading_needs_numpy_alone() -> None:
    """Training runs on machines that have none of these."""
    heavy = ("scipy", "PIL", "requests")
    code = f"import pipeline.data.datasets, sys; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_whoever_trains_or_evaluates_verifies_the_arrays(folder: Path) -> None:
    """A reversed order of the training images is other data, whatever its type and shape."""
    info = json.loads((folder / "dataset.json").read_text())
    order = np.arange(6, dtype=np.uint8)[:, None] * np.ones(784, np.uint8)
    np.save(folder / "train_images.npy", order)
    info["sha256"] = {path.name: sha256_file(path) for path in folder.glob("*.npy")}
    (folder / "dataset.json").write_text(json.dumps(info))
    assert np.array_equal(verified_dataset(folder).train_images, order)
    np.save(folder / "train_images.npy", order[::-1])
    with pytest.raises(UserError, match=r"train_images\.npy: damaged: .*; delete it and run `dvc repro b"):
        verified_dataset(folder)
