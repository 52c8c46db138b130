"""A finished project, whose state tests damage in copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.data.catalogue import DATASETS, Form, RawFile, Source, Variant
from pipeline.data.sources import MIRROR_VARIABLE
from pipeline.experiments import grid
from stages import ais, binarize, download, toy, train
from tests.faults.finished import AIS, PARAMS, Numbers, Silent, call, numbers, provenance, run_all, stage
from tests.test_new_dataset import NAME, TEST, TRAIN, mirror


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A labelled dataset of 500 and 100 images, whose files lie in a mirror, in place of MNIST."""
    folder = tmp_path_factory.mktemp("mirror")
    sums = mirror(folder)
    files = tuple(
        RawFile((Form(name, {"sha256": sha256}),), (Source("mirror", f"{NAME}/{name}.gz"),))
        for name, sha256 in sums.items()
    )
    with pytest.MonkeyPatch.context() as patch:
        counts = {"train_images": TRAIN, "test_images": TEST, "train_images_burda": TRAIN}
        small = replace(DATASETS["mnist"], **counts, variants=(Variant("IDX files", files),))
        patch.setitem(DATASETS, "mnist", small)
        patch.setattr(train, "LiveTracker", Silent)
        patch.delenv("ELBO_STORE", raising=False)
        patch.setenv("ELBO_LOCK_SECONDS", "0.5")
        patch.setenv(MIRROR_VARIABLE, str(folder))
        yield


@pytest.fixture(scope="module")
def finished(patched: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Numbers]:
    """A project whose runs are trained, evaluated, shipped and looked at by AIS, and its numbers."""
    root = tmp_path_factory.mktemp("finished")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        call(grid.main)
        stage(download.main, "mnist")
        stage(binarize.main, "mnist")
        run_all()
        stage(toy.main, "small")
        stage(ais.main, *AIS)
        return root, numbers() | {"provenance": provenance()}
