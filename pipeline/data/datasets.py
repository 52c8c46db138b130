"""The datasets by name, and reading what the `binarize` stage wrote.

Needs numpy alone, so that training runs on a bare GPU machine. A folder `data/binarized/<name>/` holds

    train_images.npy  uint8 [N, 784]  grey 0..255, row-major, upright; drawn anew at every visit
    test_images.npy   uint8 [M, 784]  grey 0..255
    test_bits.npy     uint8 [M, 784]  0 or 1: the one fixed draw that every evaluation uses
    train_labels.npy  uint8 [N]       digits 0..9, MNIST only; for the classifier that reads decoded images
    test_labels.npy   uint8 [M]       the same of the test images
    dataset.json      counts, seed, digests, and where the raw files came from
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import read_json

PIXELS = 784
TRAIN_IMAGES, TEST_IMAGES, TEST_BITS = "train_images", "test_images", "test_bits"
TRAIN_LABELS, TEST_LABELS = "train_labels", "test_labels"
INFO = "dataset.json"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before a byte of it was read."""

    name: str
    title: str
    """How reports call it."""
    train_images: int
    test_images: int
    train_images_burda: int
    """Burda's code trains on the first so many and leaves the rest unused."""
    fixed: bool = False
    """The binarization is part of the data: nothing is drawn, neither in training nor for the test set."""
    labelled: bool = False
    """Images carry digit labels."""


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("mnist", "MNIST", 60_000, 10_000, train_images_burda=59_600, labelled=True),
        DatasetInfo("fixed-mnist", "MNIST, fixed binarization", 50_000, 10_000, train_images_burda=50_000, fixed=True),
        DatasetInfo("omniglot", "OMNIGLOT", 24_345, 8_070, train_images_burda=23_000),
    )
}


@dataclass(frozen=True)
class Dataset:
    """A binarized dataset; see the module's text for shapes and units."""

    name: str
    train_images: NDArray[np.uint8] = field(repr=False)
    """Memory-mapped; writes stay in memory."""
    test_images: NDArray[np.uint8] = field(repr=False)
    test_bits: NDArray[np.uint8] = field(repr=False)
    train_labels: NDArray[np.uint8] | None = field(repr=False)
    test_labels: NDArray[np.uint8] | None = field(repr=False)
    digest: str
    """Equal digests, equal arrays; where the raw files came from does not enter, nor do the training labels."""
    info: dict[str, Any] = field(repr=False)
    """The whole of dataset.json."""


def dataset_info(name: str) -> DatasetInfo:
    """Raises: UserError listing the allowed names."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; allowed: {', '.join(DATASETS)}")
    return DATASETS[name]


def load_dataset(folder: Path) -> Dataset:
    """Open `data/binarized/<name>`. Names, types and shapes are checked; contents are not hashed again.

    Raises: UserError when a file is missing or is not what dataset.json says, naming the stage to run.
    """
    remedy = f"run `dvc repro binarize@{folder.name}`"
    if not (folder / INFO).is_file():
        raise UserError(f"{folder / INFO}: missing; {remedy}")
    info = read_json(folder / INFO)
    try:
        name, digest = str(info["name"]), str(info["digest"])
        train, test = int(info["counts"]["train_images"]), int(info["counts"]["test_images"])
        labelled = {name for name in (TRAIN_LABELS, TEST_LABELS) if f"{name}.npy" in info["sha256"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INFO}: {error!r} is missing or malformed; {remedy}") from error
    return Dataset(
        name=name,
        train_images=_open(folder / f"{TRAIN_IMAGES}.npy", (train, PIXELS), remedy),
        test_images=_open(folder / f"{TEST_IMAGES}.npy", (test, PIXELS), remedy),
        test_bits=_open(folder / f"{TEST_BITS}.npy", (test, PIXELS), remedy),
        train_labels=_open(folder / f"{TRAIN_LABELS}.npy", (train,), remedy) if TRAIN_LABELS in labelled else None,
        test_labels=_open(folder / f"{TEST_LABELS}.npy", (test,), remedy) if TEST_LABELS in labelled else None,
        digest=digest,
        info=info,
    )


def _open(path: Path, shape: tuple[int, ...], remedy: str) -> NDArray[np.uint8]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: corrupt or unreadable ({error}); delete it and {remedy}") from error
    if array.dtype != np.uint8 or array.shape != shape:
        found = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{path}: holds {found}, but {INFO} says uint8 {list(shape)}; delete it and {remedy}")
    return array
