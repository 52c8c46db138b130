"""Reading what the `binarize` stage wrote.

Needs numpy alone, so that training runs on a bare GPU machine. A folder `data/binarized/<name>/` holds

    train_images.npy  uint8 [N, 784]  grey 0..255, row-major, upright; drawn anew at every visit
    test_images.npy   uint8 [M, 784]  grey 0..255
    test_bits.npy     uint8 [M, 784]  0 or 1: the one fixed draw that every evaluation uses
    train_labels.npy  uint8 [N]       digits 0..9, MNIST only; for the classifier that reads decoded images
    test_labels.npy   uint8 [M]       the same of the test images
    dataset.json      counts, seed, digests, and where the raw files came from
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogue import PIXELS
from pipeline.errors import UserError
from pipeline.files import content_of, read_object, sha256_file

TRAIN_IMAGES, TEST_IMAGES, TEST_BITS = "train_images", "test_images", "test_bits"
TRAIN_LABELS, TEST_LABELS = "train_labels", "test_labels"
INFO = "dataset.json"


class Counts(TypedDict):
    """Images of a dataset."""

    train_images: int
    test_images: int


class DatasetFacts(TypedDict):
    """The content of dataset.json."""

    name: str
    title: str
    variant: str
    """Which set of raw files it was made of (`pipeline.data.catalogue.Variant`)."""
    fixed: bool
    counts: Counts
    train_images_burda: int
    test_binarization_seed: int | None
    """None where the binarization is part of the data."""
    sha256: dict[str, str]
    """Checksum of each file."""
    digest: str
    """One checksum of these, but for the training labels."""
    sources: dict[str, Any]
    """The content of source.json: where the raw files came from."""


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
    info: DatasetFacts = field(repr=False)


def load_dataset(folder: Path) -> Dataset:
    """Open `data/binarized/<name>`. Names, types and shapes are checked; contents are not hashed again.

    Raises: UserError when a file is missing or is not what dataset.json says, naming the stage to run.
    """
    remedy = f"run `dvc repro binarize@{folder.name}`"
    info = read_object(folder / INFO, remedy)
    with content_of(folder / INFO, "a dataset's counts and digests", remedy):
        name, digest = str(info["name"]), str(info["digest"])
        train, test = int(info["counts"]["train_images"]), int(info["counts"]["test_images"])
        labelled = {name for name in (TRAIN_LABELS, TEST_LABELS) if f"{name}.npy" in info["sha256"]}
    return Dataset(
        name=name,
        train_images=_open(folder / f"{TRAIN_IMAGES}.npy", (train, PIXELS), remedy),
        test_images=_open(folder / f"{TEST_IMAGES}.npy", (test, PIXELS), remedy),
        test_bits=_open(folder / f"{TEST_BITS}.npy", (test, PIXELS), remedy),
        train_labels=_open(folder / f"{TRAIN_LABELS}.npy", (train,), remedy) if TRAIN_LABELS in labelled else None,
        test_labels=_open(folder / f"{TEST_LABELS}.npy", (test,), remedy) if TEST_LABELS in labelled else None,
        digest=digest,
        info=cast(DatasetFacts, info),
    )


def verified_dataset(folder: Path) -> Dataset:
    """`load_dataset` once every array has the SHA-256 that dataset.json says: for whoever trains or evaluates.

    Raises: UserError as `load_dataset`, and naming the file that is another one.
    """
    dataset = load_dataset(folder)
    remedy = f"delete it and run `dvc repro binarize@{folder.name}`"
    for name, sha256 in dataset.info["sha256"].items():
        with content_of(folder / name, "an array of numpy", remedy):
            actual = sha256_file(folder / name)
        if actual != sha256:
            raise UserError(f"{folder / name}: damaged: its SHA-256 is not the one in {INFO}; {remedy}")
    return dataset


def _open(path: Path, shape: tuple[int, ...], remedy: str) -> NDArray[np.uint8]:
    with content_of(path, "an array of numpy", f"delete it and {remedy}"):
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; {remedy}") from error
        except (EOFError, ValueError, zipfile.BadZipFile) as error:
            # numpy's own text advises to load it as a pickle, which a stranger's file must never be.
            raise ValueError("it does not begin as one" if "pickle" in str(error) else str(error)) from error
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of arrays")
    if array.dtype != np.uint8 or array.shape != shape:
        content = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{path}: holds {content}, but {INFO} says uint8 {list(shape)}; delete it and {remedy}")
    return array
