"""The reader of digits: that it learns, is a function of its data, and survives being kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.data.datasets import Dataset
from pipeline.errors import UserError
from pipeline.evaluation.classifier import DigitReader, has_reader, load_reader, reader_path, save_reader, train_reader

CPU = torch.device("cpu")


def make_digits(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grey images [count, 784] whose digit is told by which of ten bands of pixels is bright."""
    labels = np.random.default_rng(seed).integers(0, 10, count).astype(np.uint8)
    images = np.full((count, 10, 78), 30, np.uint8)
    images[np.arange(count), labels] = 180
    return np.pad(images.reshape(count, 780), ((0, 0), (0, 4))), labels


def make_dataset(labelled: bool = True) -> Dataset:
    train, train_labels = make_digits(2000, 0)
    test, test_labels = make_digits(200, 1)
    bits = (test > 100).astype(np.uint8)
    return Dataset(
        "mnist", train, test, bits, train_labels if labelled else None, test_labels, "0123456789abcdef01", {}
    )


def train_on(dataset: Dataset) -> DigitReader:
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    return train_reader(dataset.train_images, dataset.train_labels, dataset.test_bits, dataset.test_labels, CPU)


def test_it_learns_and_its_accuracy_is_measured_on_the_test_bits() -> None:
    dataset = make_dataset()
    reader = train_on(dataset)
    assert dataset.test_labels is not None
    seen = reader.read(torch.from_numpy(dataset.test_bits).float()).numpy()
    assert reader.accuracy == (seen == dataset.test_labels).mean() > 0.95
    # Any leading shape, and grey images as well as bits.
    grid = torch.from_numpy(dataset.test_images[:6]).float() / 255
    assert torch.equal(reader.read(grid.view(2, 3, 784)).view(6), reader.read(grid))


def test_shuffled_labels_cannot_be_learnt() -> None:
    dataset = make_dataset()
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    wrong = np.random.default_rng(2).permutation(dataset.train_labels)
    reader = train_reader(dataset.train_images, wrong, dataset.test_bits, dataset.test_labels, CPU)
    assert reader.accuracy < 0.5


def test_it_is_a_function_of_the_data_and_survives_being_kept(tmp_path: Path) -> None:
    dataset = make_dataset()
    path = reader_path(tmp_path, dataset.digest)
    save_reader(path, dataset, CPU)
    kept, again = load_reader(path), train_on(dataset)
    assert kept.accuracy == again.accuracy
    for name, tensor in again.weights.items():
        assert torch.equal(kept.weights[name], tensor)


def test_missing_training_labels_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no training labels.*dvc repro --force --single-item binarize@mnist"):
        save_reader(tmp_path / "reader", make_dataset(labelled=False), CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_an_unreadable_reader_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"reader\.safetensors: (damaged, or not a file of this project's|missing)"):
        load_reader(path)
    assert not has_reader(path)
    assert not path.exists()
    save_reader(path, make_dataset(), CPU)
    assert has_reader(path)
