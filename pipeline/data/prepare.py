"""From raw files to what training and evaluation read: upright uint8 images and one fixed draw of the test bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogue import PIXELS, SIDE, dataset_info
from pipeline.data.datasets import (
    INFO,
    TEST_BITS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DatasetFacts,
)
from pipeline.data.formats import corrupt, read_binarized_text, read_idx, read_mat
from pipeline.data.omniglot import read_chardata, rebuild
from pipeline.data.sources import SOURCES_FILE
from pipeline.files import atomic_path, content_of, read_object, sha256_file, write_json

BURDA_PERMUTATION_SEED = 123


@dataclass(frozen=True)
class RawImages:
    """Images as published: uint8 [n, 784], grey 0..255, upright; labels uint8 [n] where there are any."""

    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    train_labels: NDArray[np.uint8] | None = None
    test_labels: NDArray[np.uint8] | None = None


def read_idx_set(folder: Path) -> RawImages:
    """The four files of MNIST and of the datasets that took its form; labels where their files are there."""

    def images(split: str) -> NDArray[np.uint8]:
        return read_idx(folder / f"{split}-images-idx3-ubyte", (SIDE, SIDE)).reshape(-1, PIXELS)

    def labels(split: str) -> NDArray[np.uint8] | None:
        stored = _stored(folder, f"{split}-labels-idx1-ubyte")
        return None if stored is None else read_idx(stored, ())

    return RawImages(images("train"), images("t10k"), labels("train"), labels("t10k"))


def read_fixed_mnist(folder: Path) -> RawImages:
    """Bits become 0 and 255, so that drawing them as grey leaves them as they are."""

    def bits(stem: str) -> NDArray[np.uint8]:
        path = _stored(folder, stem) or folder / f"{stem}.mat"
        if path.suffix == ".amat":
            return read_binarized_text(path)
        array = read_mat(path, ["X"])["X"]
        values = array.astype(np.uint8)
        if (values > 1).any() or (values != array).any():
            raise corrupt(path, "holds values other than 0 and 1")
        return values

    return RawImages(train=255 * bits("binarized_mnist_train"), test=255 * bits("binarized_mnist_test"))


def read_omniglot(folder: Path) -> RawImages:
    """Training images come in the order of Burda's code, whose last 1,345 are held out."""
    chardata = _stored(folder, "chardata")
    train, test = rebuild(folder) if chardata is None else read_chardata(chardata)
    return RawImages(train[np.random.RandomState(BURDA_PERMUTATION_SEED).permutation(len(train))], test)


LABELS = 10
READERS: dict[str, Callable[[Path], RawImages]] = {
    "idx": read_idx_set,
    "larochelle": read_fixed_mnist,
    "omniglot": read_omniglot,
}


def draw_bits(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Draw every pixel once, 1 with probability grey / 255: uint8 of the same shape, a function of (images, seed)."""
    uniform = np.random.Generator(np.random.Philox(seed)).random(images.shape)
    return (uniform < images / 255).astype(np.uint8)


def binarize(name: str, raw: Path, folder: Path, seed: int) -> DatasetFacts:
    """Turn `data/raw/<name>` into `data/binarized/<name>` and return its dataset.json, which is written last.

    Raises: UserError when a raw file is missing or corrupt, or holds another number of images than is published.
    """
    info = dataset_info(name)
    source = _source(raw)
    _verify(raw, source)
    images = READERS[info.layout](raw)
    for array, expected in ((images.train, info.train_images), (images.test, info.test_images)):
        if array.shape != (expected, PIXELS):
            raise corrupt(raw, f"images of shape {list(array.shape)} instead of {[expected, PIXELS]}")
    for labels, count in ((images.train_labels, info.train_images), (images.test_labels, info.test_images)):
        if info.labelled != (labels is not None):
            told = "has no labels" if info.labelled else "has labels"
            raise corrupt(raw, f"{told}, unlike what pipeline/data/catalogue.py says")
        if labels is not None and (len(labels) != count or labels.max() >= LABELS):
            raise corrupt(raw, f"{len(labels)} labels up to {labels.max()} instead of {count} from 0 to {LABELS - 1}")
    arrays = {
        TRAIN_IMAGES: images.train,
        TEST_IMAGES: images.test,
        TEST_BITS: images.test // 255 if info.fixed else draw_bits(images.test, seed),
        **({} if images.train_labels is None else {TRAIN_LABELS: images.train_labels}),
        **({} if images.test_labels is None else {TEST_LABELS: images.test_labels}),
    }
    (folder / INFO).unlink(missing_ok=True)
    sha256 = {f"{key}.npy": _save(folder / f"{key}.npy", array) for key, array in arrays.items()}
    # No model is trained on labels, so what they are does not name a run.
    named = [sha256[key] for key in sorted(sha256) if key != f"{TRAIN_LABELS}.npy"]
    value: DatasetFacts = {
        "name": name,
        "title": info.title,
        "variant": source["variant"],
        "fixed": info.fixed,
        "counts": {"train_images": len(images.train), "test_images": len(images.test)},
        "train_images_burda": info.train_images_burda,
        "test_binarization_seed": None if info.fixed else seed,
        "sha256": sha256,
        "digest": hashlib.sha256("".join(named).encode()).hexdigest(),
        "sources": source,
    }
    write_json(folder / INFO, value)
    return value


def _stored(folder: Path, stem: str) -> Path | None:
    """The file that the download listed under this name, whatever its suffix: a leftover of another form is not it."""
    names = [file["name"] for file in _source(folder)["files"]]
    return next((folder / name for name in names if Path(name).stem == stem), None)


def _source(folder: Path) -> dict[str, Any]:
    """The content of source.json: where the raw files came from, and what they are called."""
    path, remedy = folder / SOURCES_FILE, f"run `dvc repro --force download@{folder.name}`"
    value = read_object(path, remedy)
    with content_of(path, "a list of files and their sources", remedy):
        if not all(isinstance(file["name"], str) for file in value["files"]) or not isinstance(value["variant"], str):
            raise ValueError("a name is no text")
    return value


def _verify(folder: Path, source: dict[str, Any]) -> None:
    """Raises: UserError naming a raw file that is not the one that was downloaded.

    A file that was put there by hand is listed without its SHA-256.
    """
    for file in source["files"]:
        path = folder / file["name"]
        # A missing file is for its reader to name.
        if "sha256" in file and path.exists():
            with content_of(path, "a raw file", f"delete it and run `dvc repro binarize@{folder.name}`"):
                sha256 = sha256_file(path)
            if sha256 != file["sha256"]:
                raise corrupt(path, f"damaged: its SHA-256 is not the one in {SOURCES_FILE}")


def _save(path: Path, array: NDArray[np.uint8]) -> str:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(array))
    return sha256_file(path)
