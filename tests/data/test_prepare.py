from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pipeline.data import sources
from pipeline.data.catalogue import DATASETS
from pipeline.data.datasets import Dataset, load_dataset
from pipeline.data.prepare import binarize, draw_bits
from pipeline.data.sources import Download, Mirror, Session
from pipeline.errors import UserError
from pipeline.files import write_json

SEED = 5


@pytest.fixture(scope="module")
def prepared(mirror_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Every dataset, downloaded from the mirror and binarized."""
    root = tmp_path_factory.mktemp("prepared")
    loaded = {}
    for name in DATASETS:
        raw = root / "raw" / name
        session = Session(Mirror(mirror_folder, first=True), root, print)
        variant = DATASETS[name].variants[-1]
        files = tuple(sources.obtain(file, raw, session) for file in variant.files)
        write_json(raw / "source.json", asdict(Download(name, variant.title, files)))
        binarize(name, raw, root / "binarized" / name, SEED)
        loaded[name] = load_dataset(root / "binarized" / name)
    return loaded


def folder_of(dataset: Dataset) -> Path:
    return Path(str(dataset.train_images.filename)).parent  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", DATASETS)
def test_counts_types_and_range(name: str, prepared: dict[str, Dataset]) -> None:
    data, info = prepared[name], DATASETS[name]
    assert data.train_images.shape == (info.train_images, 784)
    assert data.test_bits.shape == data.test_images.shape == (info.test_images, 784)
    assert data.info["train_images_burda"] == info.train_images_burda <= info.train_images
    assert isinstance(data.train_images, np.memmap)
    assert set(np.unique(data.test_bits)) == {0, 1}
    assert (data.test_labels is not None) == (data.train_labels is not None) == info.labelled
    assert data.train_images.max() == 255
    assert 0.05 < data.train_images.mean() / 255 < 0.2


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_json_has_the_digests_of_the_files(name: str, prepared: dict[str, Dataset]) -> None:
    data = prepared[name]
    folder = folder_of(data)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.npy")}
    assert data.info["sha256"] == digests
    # Runs are named after what they are trained and evaluated on; no model sees the training labels.
    named = [digests[key] for key in sorted(digests) if key != "train_labels.npy"]
    assert data.digest == hashlib.sha256("".join(named).encode()).hexdigest()
    assert {path.name for path in folder.iterdir()} == {*digests, "dataset.json"}
    assert data.info["variant"] == data.info["sources"]["variant"] == DATASETS[name].variants[-1].title


@pytest.mark.parametrize("name", ["mnist", "omniglot"])
def test_bits_are_drawn_with_the_grey_probabilities(name: str, prepared: dict[str, Dataset]) -> None:
    """Mean over all test pixels against the mean grey: 4 standard errors; certain pixels never move."""
    data = prepared[name]
    p = data.test_images / 255
    standard_error = np.sqrt((p * (1 - p)).sum()) / p.size
    assert 0 < abs(data.test_bits.mean() - p.mean()) < 4 * standard_error
    assert (data.test_bits[data.test_images == 0] == 0).all()
    assert (data.test_bits[data.test_images == 255] == 1).all()
    for low in (32, 96, 160, 224):
        chosen = (data.test_images >= low - 16) & (data.test_images < low + 16)
        error = np.sqrt((p * (1 - p))[chosen].sum()) / chosen.sum()
        assert abs(data.test_bits[chosen].mean() - p[chosen].mean()) < 4 * error


def test_equal_seeds_equal_bits(prepared: dict[str, Dataset]) -> None:
    data = prepared["mnist"]
    assert np.array_equal(draw_bits(data.test_images, SEED), data.test_bits)
    assert not np.array_equal(draw_bits(data.test_images, SEED + 1), data.test_bits)


def test_another_source_gives_the_same_digest_and_another_seed_another(
    prepared: dict[str, Dataset], tmp_path: Path
) -> None:
    data = prepared["mnist"]
    raw = tmp_path / "raw"
    shutil.copytree(folder_of(data).parents[1] / "raw" / "mnist", raw)
    listed = json.loads((raw / "source.json").read_text())
    for file in listed["files"]:
        file["source"] = "https://elsewhere.example/file"
    (raw / "source.json").write_text(json.dumps(listed))
    assert binarize("mnist", raw, tmp_path / "same", SEED)["digest"] == data.digest
    assert binarize("mnist", raw, tmp_path / "other", SEED + 1)["digest"] != data.digest


def test_fixed_mnist_is_the_files_bits(prepared: dict[str, Dataset], mirrored) -> None:
    data = prepared["fixed-mnist"]
    train, test = (
        scipy.io.loadmat(mirrored(f"binarized_mnist/binarized_mnist_{split}.mat"))["X"] for split in ("train", "test")
    )
    assert np.array_equal(data.train_images, 255 * train)
    assert np.array_equal(data.test_bits, test)
    assert np.array_equal(data.test_images, 255 * test)
    uniform = np.random.default_rng(0).random((1000, 784))
    assert np.array_equal(uniform < data.train_images[:1000] / 255, train[:1000])


def test_fixed_mnist_from_text_is_the_same(prepared: dict[str, Dataset], tmp_path: Path) -> None:
    """The text form gives the digest of the MAT form, and a leftover MAT file is not read in its stead."""
    data = prepared["fixed-mnist"]
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, images in (("train", data.train_images), ("test", data.test_images)):
        text = np.full((*images.shape, 2), ord(" "), np.uint8)
        text[..., 0] = (images > 0) + ord("0")
        text[:, -1, 1] = ord("\n")
        text.tofile(raw / f"binarized_mnist_{split}.amat")
        (raw / f"binarized_mnist_{split}.mat").write_bytes(b"left over")
    names = [{"name": f"binarized_mnist_{split}.amat"} for split in ("train", "test")]
    (raw / "source.json").write_text(json.dumps({"variant": "x", "files": names}))
    assert binarize("fixed-mnist", raw, tmp_path / "out", SEED)["digest"] == data.digest


def test_mnist_stands_upright(prepared: dict[str, Dataset]) -> None:
    """Ones are tall: their ink spreads over rows, not columns. Sevens carry their ink on top."""
    data = prepared["mnist"]
    assert data.test_labels is not None
    assert np.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train_labels is not None
    assert np.bincount(data.train_labels)[:3].tolist() == [5923, 6742, 5958]
    ones, others = (data.train_images[data.train_labels == digit].mean() for digit in (1, 0))
    assert 2 * ones < others
    for images in (data.test_images, data.test_bits):
        ones = images[data.test_labels == 1].reshape(-1, 28, 28).mean(axis=0)
        axis = np.arange(28)
        spread = [np.sqrt(np.cov(axis, aweights=ones.sum(axis=other))) for other in (1, 0)]
        assert spread[0] > 1.5 * spread[1]
        seven = images[data.test_labels == 7].reshape(-1, 28, 28).mean(axis=0)
        assert seven[7:10, 6:12].mean() > 2 * seven[18:21, 6:12].mean()


def test_omniglot_training_images_are_permuted_as_burda_did(prepared: dict[str, Dataset], mirrored) -> None:
    """Column i of the permuted matrix is column permutation(i) of the file."""
    reference = scipy.io.loadmat(mirrored("omniglot/chardata_rebuilt.mat"))["data"]
    order = np.random.RandomState(123).permutation(24345)
    for row in (0, 1, 22999, 23000, 24344):
        image = reference[:, order[row]].reshape(28, 28).T.ravel()
        assert np.abs(prepared["omniglot"].train_images[row] - 255.0 * image).max() < 0.51


def test_a_wrong_count_is_an_error_and_writes_nothing(prepared: dict[str, Dataset], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(folder_of(prepared["mnist"]).parents[1] / "raw" / "mnist", raw)
    shutil.copy(raw / "t10k-images-idx3-ubyte", raw / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: damaged: its SHA-256 is not the one"):
        binarize("mnist", raw, tmp_path / "out", SEED)
    listed = json.loads((raw / "source.json").read_text())
    listed["files"] = [{"name": file["name"]} for file in listed["files"]]
    (raw / "source.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"\[10000, 784\] instead of \[60000, 784\]"):
        binarize("mnist", raw, tmp_path / "out", SEED)
    assert not (tmp_path / "out").exists()


def test_missing_raw_files_are_one_sentence(tmp_path: Path) -> None:
    for name in DATASETS:
        with pytest.raises(UserError, match=r"missing"):
            binarize(name, tmp_path / "absent", tmp_path / "out", SEED)
        (tmp_path / name).mkdir()
        (tmp_path / name / "source.json").write_text('{"variant": "x", "files": []}')
        with pytest.raises(UserError, match=r"missing"):
            binarize(name, tmp_path / name, tmp_path / "out", SEED)
