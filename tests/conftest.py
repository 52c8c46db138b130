"""What several test folders share: a small run, tiny data, the data mirror."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.datasets import INFO, TEST_BITS, TEST_IMAGES, TRAIN_IMAGES
from pipeline.evaluation.evaluate import Labels, Material
from pipeline.evaluation.images import Images
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import RunSpec
from pipeline.files import write_json
from pipeline.objectives import OBJECTIVES
from pipeline.work import interruption
from pipeline.work.memory import keep_freed_memory

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 900
"""No test says how fast anything is: others may use the machine. So long a condition may take to come true."""

torch.set_num_threads(1)
keep_freed_memory()


def make_run(objective: str = "iwae", M: int = 1, K: int = 5, **changes: Any) -> RunSpec:
    """A full-width run on a few images; any field can be changed."""
    protocol_name = changes.pop("protocol_name", "published-code")
    values: dict[str, Any] = {
        "name": f"{objective}-M{M}-K{K}-s0",
        "objective": objective,
        "M": M,
        "K": K,
        "parameter": 0.5 if OBJECTIVES[objective].parameter else None,
        "seed": 0,
        "dataset": "mnist",
        "latent": (50,),
        "train_images": 200,
        "protocol_name": protocol_name,
        "protocol": PROTOCOLS[protocol_name],
        "schedule": burda_schedule(rounded=True),
        "max_steps": 20,
        "precision": "float32",
        "continues": None,
        "algorithm_version": 2,
    }
    return RunSpec(**{**values, **changes})


def numbered(bits: Tensor) -> Images:
    """Images [N, 784] in {0, 1} as the first N of their set."""
    return Images(bits, torch.arange(len(bits)))


def material_of(images: NDArray[np.uint8], start: int = 500, labels: Labels | None = None) -> Material:
    """All images to train on, and those from `start` to test on."""
    test = images[start:]
    return Material(images, (test > 127).astype(np.uint8), test, labels)


def make_images() -> NDArray[np.uint8]:
    """[600, 784] smooth grey blobs, uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    centers = rng.uniform(8, 20, (600, 2, 1, 1))
    blobs = np.exp(-((y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2) / 12)
    return (255 * blobs).astype(np.uint8).reshape(600, 784)


@pytest.fixture(autouse=True)
def own_signal_handling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Working in parallel takes over this process's handlers; what one test asks to stop must not stop the next."""
    monkeypatch.setattr(interruption, "_requested", None)
    monkeypatch.setattr(interruption, "_parent", None)
    monkeypatch.setattr(interruption, "_deadline", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def in_a_terminal() -> Iterator[None]:
    """What a process inherits that was not started under nohup or in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def grey_images() -> NDArray[np.uint8]:
    return make_images()


def write_dataset(folder: Path, images: NDArray[np.uint8]) -> Path:
    """What the binarize stage writes, of 500 blobs to train and 100 more to test on."""
    folder.mkdir(parents=True)
    test = images[500:]
    arrays = {TRAIN_IMAGES: images[:500], TEST_IMAGES: test, TEST_BITS: (test > 127).astype(np.uint8)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    counts = {"train_images": 500, "test_images": 100}
    write_json(folder / INFO, {"name": "mnist", "digest": "data", "counts": counts, "sha256": {}})
    return folder


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for as long as it takes, on a machine however busy; a test that hangs ends after `PATIENCE_SECONDS`.

    `process`: what is to make the condition true; the wait fails with its output when it has ended.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            pytest.fail(f"ended with {process.returncode}: {process.stdout.read() if process.stdout else ''}")
        if time.monotonic() > until:
            pytest.fail("hangs")
        time.sleep(0.02)


def mirror_folder() -> Path:
    """The offline copies of the datasets; skips the test where there are none."""
    folder = Path(os.environ.get("ELBO_DATA_MIRROR", ROOT.parent / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no data mirror at {folder}; set ELBO_DATA_MIRROR to run this test")
    return folder
