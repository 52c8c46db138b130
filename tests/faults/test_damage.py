"""Every file of a finished project, damaged: it heals or is named in one line with a remedy; never another number."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.data.catalogue import DATASETS
from pipeline.data.datasets import INFO, TEST_BITS, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from pipeline.errors import UserError
from pipeline.experiments import grid
from pipeline.experiments.params import load_params
from pipeline.files import write_json
from pipeline.paths import HERE
from pipeline.records.results import cohort_results
from pipeline.work import interruption
from stages import evaluate, train
from tests.conftest import make_images
from tests.experiments.test_params import SMALL

COHORT = "small/first-mnist-1L"
PARAMS: dict[str, Any] = {
    **SMALL,
    "workers": 1,
    "experiments": {
        "first": {
            "T": [1, 4],
            "one_cohort": True,
            "settings": [{"objective": "vae"}, {"objective": "iwae", "K": 4}],
        }
    },
    "scales": {
        "small": {**SMALL["scales"]["small"], "experiments": {"first": {"datasets": ["mnist"], "layers": [1]}}},
    },
}

Damage = Callable[[Path], None]
Numbers = dict[str, tuple[dict[str, float], list[float]]]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES: dict[str, Damage] = {"cut": cut, "flipped": flip, "empty": empty, "a folder": folder}


class Silent:
    """In place of MLflow while runs train."""

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


def write_data(folder: Path) -> None:
    """A labelled dataset of 500 and 100 images, with the sums that the binarize stage writes."""
    folder.mkdir(parents=True)
    images = make_images()
    labels = (np.arange(600) % 10).astype(np.uint8)
    arrays = {
        TRAIN_IMAGES: images[:500],
        TEST_IMAGES: images[500:],
        TEST_BITS: (images[500:] > 127).astype(np.uint8),
        TRAIN_LABELS: labels[:500],
        TEST_LABELS: labels[500:],
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    sums = {f"{name}.npy": hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest() for name in arrays}
    digest = hashlib.sha256("".join(sums[name] for name in sorted(sums)).encode()).hexdigest()
    counts = {"train_images": 500, "test_images": 100}
    write_json(folder / INFO, {"name": "mnist", "digest": digest, "counts": counts, "sha256": sums})


def call(main: Callable[[], None], *words: str) -> None:
    before, sys.argv = sys.argv, ["stage", *words]
    try:
        main()
    finally:
        sys.argv = before


def run_all() -> None:
    """What `dvc repro` does for a cohort, in this process."""
    grid.check_in_step(load_params(HERE.params), HERE.cohorts)
    call(partial(train.main, HERE), COHORT)
    call(partial(evaluate.main, HERE), COHORT)


def numbers() -> Numbers:
    """The numbers that reports and MLflow would show."""
    return {
        result.spec.name: (result.metrics, result.arrays["log_p_hat"].tolist())
        for result in cohort_results(HERE.cohort_results(COHORT))
    }


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small = replace(DATASETS["mnist"], train_images=500, test_images=100, train_images_burda=500)
        patch.setitem(DATASETS, "mnist", small)
        patch.setattr(train, "LiveTracker", Silent)
        patch.delenv("ELBO_STORE", raising=False)
        patch.setenv("ELBO_LOCK_SECONDS", "0.5")
        yield


@pytest.fixture(scope="module")
def finished(patched: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Numbers]:
    """A project whose runs are trained and evaluated, and its numbers."""
    root = tmp_path_factory.mktemp("finished")
    write_data(root / "data/binarized/mnist")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        call(grid.main)
        run_all()
        return root, numbers()


def files_of(root: Path) -> list[str]:
    """Every file but locks, which hold nothing."""
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    return [name for name in names if "/locks/" not in name]


def attempt(action: Callable[[], object], path: Path) -> str | None:
    """None where it went through; else the one line that it ended in, which names the file."""
    interruption.clear()
    try:
        action()
    except UserError as error:
        text = str(error)
        assert "Traceback" not in text, text
        # params.yaml may have several mistakes: a line for each.
        assert "\n" not in text or all(line.startswith("params.yaml: ") for line in text.splitlines()), text
        # Of a file in the place of a whole folder, or the other way round, the folder is named as well.
        assert any(name in text for name in (path.name, path.stem, path.parent.name)), text
        return text
    return None


def mend(root: Path, path: Path, told: str) -> None:
    """Do what the line says: have the stage that is named write the file again, or bring the committed one back."""
    if "pipeline.experiments" in told and path.name != "params.yaml":
        if path.is_dir():
            shutil.rmtree(path)
        call(grid.main)
        return
    assert any(word in told for word in ("dvc repro binarize@mnist", "git checkout", "params.yaml", "move it away"))
    if path.is_dir():
        shutil.rmtree(path)
    original = root / path
    path.write_bytes(original.read_bytes())


def survives(name: str, damage: Damage, root: Path, expected: Numbers) -> str:
    """Damage one file of a copy and work on; returns what became of it.

    Whatever is read on the way is the expected number or a line that says why not.
    """
    path = Path(name)
    damage(path)
    if name.startswith("reports/"):
        told = attempt(lambda: _same(expected), path)
        assert told is None or any(word in told for word in ("stages.evaluate", "git checkout", "move it away"))
    told = attempt(run_all, path)
    outcome = "healed"
    if told is not None:
        outcome = f"named: {told}"
        mend(root, path, told)
        assert attempt(run_all, path) is None, told
    _same(expected)
    return outcome


def _same(expected: Numbers) -> None:
    assert numbers() == expected


def walk(names: list[tuple[str, str]], finished: tuple[Path, Numbers], work: Path) -> dict[str, int]:
    root, expected = finished
    outcomes: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        for number, (name, kind) in enumerate(names):
            copy = work / str(number)
            shutil.copytree(root, copy)
            patch.chdir(copy)
            try:
                outcome = survives(name, DAMAGES[kind], root, expected)
            except AssertionError as error:
                raise AssertionError(f"{name}, {kind}: {error}") from error
            outcomes[outcome.partition(":")[0]] = outcomes.get(outcome.partition(":")[0], 0) + 1
            patch.chdir(work)
            shutil.rmtree(copy)
    return outcomes


def cases(root: Path) -> list[tuple[str, str]]:
    return [(name, kind) for name in files_of(root) for kind in DAMAGES]


def test_a_sample_of_damaged_files(finished: tuple[Path, Numbers], tmp_path: Path) -> None:
    every = cases(finished[0])
    outcomes = walk(every[:: len(every) // 9], finished, tmp_path)
    assert sum(outcomes.values()) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("top", [".store", "cohorts", "data", "params.yaml", "reports", "runs"])
def test_every_file_damaged_in_every_way(top: str, finished: tuple[Path, Numbers], tmp_path: Path) -> None:
    own = [(name, kind) for name, kind in cases(finished[0]) if name.partition("/")[0] == top]
    outcomes = walk(own, finished, tmp_path)
    print(f"{top}: {len(own) // len(DAMAGES)} files, {len(own)} damages: {outcomes}")
    assert sum(outcomes.values()) == len(own) > 0


def test_the_walk_covers_every_folder(finished: tuple[Path, Numbers]) -> None:
    tops = {name.partition("/")[0] for name in files_of(finished[0])}
    assert tops == {".store", "cohorts", "data", "params.yaml", "reports", "runs"}
