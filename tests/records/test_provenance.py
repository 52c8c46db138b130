"""The revision that results name: git's, or what `git archive` or the user wrote where there is no git."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.records.provenance import code_revision, this_command
from tests.conftest import ROOT

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *IDENTITY, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the project's own REVISION file and attributes."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("REVISION", ".gitattributes"):
        (folder / name).write_text((ROOT / name).read_text())
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.delenv("ELBO_REVISION", raising=False)
    # A repository above the temporary folder is none of ours.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def test_in_a_checkout(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert code_revision(checkout) == head
    (checkout / "REVISION").write_text("changed\n")
    assert code_revision(checkout) == f"{head}-dirty"


def test_what_stages_write_makes_no_revision_dirty(checkout: Path) -> None:
    for name in ("dvc.lock", "README.md", "reports/quick/index.html", "reports/quick/results/x/metrics.json"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("written")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "results")
    head = git(checkout, "rev-parse", "HEAD").strip()
    for name in ("dvc.lock", "README.md", "reports/quick/index.html"):
        (checkout / name).write_text("written again")
    assert code_revision(checkout) == head
    (checkout / "REVISION").write_text("changed\n")
    assert code_revision(checkout) == f"{head}-dirty"


def test_in_an_archive(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    bare = tmp_path / "bare"
    bare.mkdir()
    git(checkout, "archive", "--format=tar", "-o", str(tmp_path / "carry.tar"), "HEAD", "REVISION")
    subprocess.run(["tar", "xf", str(tmp_path / "carry.tar")], cwd=bare, check=True)
    assert code_revision(bare) == head
    # Where git is not installed either.
    monkeypatch.setenv("PATH", "")
    assert code_revision(bare) == head


def test_unknown_unless_named(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_revision(tmp_path) is None
    # Copied by hand: the placeholder is no revision.
    (tmp_path / "REVISION").write_text((checkout / "REVISION").read_text())
    assert code_revision(tmp_path) is None
    monkeypatch.setenv("ELBO_REVISION", "abc123")
    assert code_revision(tmp_path) == "abc123"


def test_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/launch.py", "run", "--only", "burda-table1*"])
    assert this_command("pipeline.launch") == "python -m pipeline.launch run --only 'burda-table1*'"
