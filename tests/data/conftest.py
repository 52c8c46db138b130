from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.data.sources import MIRROR_VARIABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def mirror_folder() -> Path:
    folder = Path(os.environ.get(MIRROR_VARIABLE) or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the data mirror: set {MIRROR_VARIABLE}")
    return folder


@pytest.fixture
def mirrored(mirror_folder: Path):
    """Path of a file in the mirror; skips where it is absent."""

    def find(name: str) -> Path:
        path = mirror_folder / name
        if not path.is_file():
            pytest.skip(f"the data mirror lacks {name}")
        return path

    return find
