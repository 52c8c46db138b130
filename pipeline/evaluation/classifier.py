"""A plain classifier of binarized digits: it tells whether a decoded sample still shows its image's digit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.data.datasets import Dataset
from pipeline.draws.streams import Stream
from pipeline.errors import UserError
from pipeline.files import MALFORMED, set_aside
from pipeline.records.sealed import Damaged, load_tensors, save_tensors

VERSION = 2
"""To be raised when training it changes: readers that are in a store are of another version then."""
DIGITS, HIDDEN = 10, 160
EPOCHS, BATCH, LEARNING_RATE = 3, 250, 6e-3
READER_SEED = 123


@dataclass(frozen=True)
class DigitReader:
    """784-160-10 with a rectifier between; trained on training images binarized anew at every visit."""

    weights: dict[str, Tensor]
    accuracy: float
    """Share of the binarized test images that it reads correctly."""

    def to(self, device: torch.device) -> DigitReader:
        return DigitReader({name: tensor.to(device) for name, tensor in self.weights.items()}, self.accuracy)

    def read(self, images: Tensor) -> Tensor:
        """The digit seen in each of `images`, [..., 784] in [0, 1]: [...] int64."""
        return _scores(self.weights, images).argmax(-1)


def _scores(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    hidden = torch.relu(images @ weights["hidden"] + weights["hidden_bias"])
    return hidden @ weights["out"] + weights["out_bias"]


def train_reader(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.uint8],
    test_bits: NDArray[np.uint8],
    test_labels: NDArray[np.uint8],
    device: torch.device,
) -> DigitReader:
    """Train on grey images [N, 784] with Adam, the rate falling to zero.

    Draws: the stream "reader <weights>" has the initial weights at index 0, "reader order" an epoch's order at the
    epoch's number, "reader bits" an update's binarization [images, 784] at the update's number.
    """
    orders, bits_of = Stream(READER_SEED, "reader order", device), Stream(READER_SEED, "reader bits", device)
    images, labels = torch.from_numpy(train_images).to(device), torch.from_numpy(train_labels).to(device).long()
    shapes = {"hidden": (PIXELS, HIDDEN), "hidden_bias": (HIDDEN,), "out": (HIDDEN, DIGITS), "out_bias": (DIGITS,)}
    weights = {
        name: (Stream(READER_SEED, f"reader {name}", device).normal(0, shape) * (2 / shape[0]) ** 0.5)
        if len(shape) == 2
        else torch.zeros(shape, device=device)
        for name, shape in shapes.items()
    }
    for tensor in weights.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=LEARNING_RATE)
    per_epoch = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, EPOCHS * per_epoch)
    for epoch in range(EPOCHS):
        order = orders.permutation(epoch, len(images))
        for number, chosen in enumerate(order[: per_epoch * BATCH].view(per_epoch, BATCH)):
            uniform = bits_of.uniform(epoch * per_epoch + number, (BATCH, PIXELS))
            bits = (255 * uniform < images[chosen]).float()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(_scores(weights, bits), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    reader = DigitReader({name: tensor.detach() for name, tensor in weights.items()}, 0.0)
    seen = reader.read(torch.from_numpy(test_bits).to(device).float()).cpu().numpy()
    return DigitReader(reader.weights, float((seen == test_labels).mean()))


def reader_path(store: Path, data_digest: str) -> Path:
    """Where the store keeps the reader of these data: one for each version of its training."""
    return store / f"digit-reader-{VERSION}-{data_digest[:16]}.safetensors"


def save_reader(path: Path, dataset: Dataset, device: torch.device) -> None:
    """Train a reader on a labelled dataset and keep it.

    Raises: UserError when the training labels are missing.
    """
    if dataset.train_labels is None or dataset.test_labels is None:
        raise UserError(
            f"data/binarized/{dataset.name}: has no training labels (written by an earlier version);"
            f" run `dvc repro --force --single-item binarize@{dataset.name}`"
        )
    reader = train_reader(dataset.train_images, dataset.train_labels, dataset.test_bits, dataset.test_labels, device)
    save_tensors(path, reader.weights, path.stem, {"accuracy": reader.accuracy})


def load_reader(path: Path) -> DigitReader:
    """Raises: Damaged when it is not what `save_reader` wrote there; UserError when it is missing or cannot be read."""
    tensors, content = load_tensors(path, path.stem)
    try:
        return DigitReader(tensors, float(content["accuracy"]))
    except MALFORMED as error:
        raise Damaged(path, "not a digit reader") from error


def has_reader(path: Path) -> bool:
    """Whether a sound reader is kept there; one that is not is set aside, to be trained again."""
    if not path.exists():
        return False
    try:
        load_reader(path)
    except Damaged as damaged:
        set_aside(path, str(damaged))
        return False
    return True
