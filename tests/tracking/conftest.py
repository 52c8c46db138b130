"""A store to publish into."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.tracking.store import STORE, locked_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with no runs, to copy: making one takes seconds."""
    root = tmp_path_factory.mktemp("template")
    with locked_store(root):
        pass
    return root


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(empty_store / STORE, tmp_path / STORE)
    return tmp_path
