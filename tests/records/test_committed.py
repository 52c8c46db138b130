"""Results on disk beside those of the last commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.paths import Paths
from pipeline.records.committed import ChangedNll, Reproduced, compare_with_commit, comparison_lines

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


def write(paths: Paths, cohort: str, metrics: dict[str, Any]) -> None:
    folder = paths.results("quick") / cohort
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Four NLLs of two cohorts, a diverged run and the toy's numbers, in a commit."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    paths = Paths(tmp_path)
    write(paths, "a", {"x": {"nll": 86.76000000001}, "y": {"nll": 84.78}})
    write(paths, "b", {"z": {"nll": 1.0}, "w": {"nll": 2.0}, "diverged": {}})
    write(paths, "gaussian-toy", {"slope": 0.5})
    for words in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "results"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return paths


def test_equal_numbers_are_reproduced(committed: Paths) -> None:
    comparison = compare_with_commit(committed, "quick")
    assert comparison == Reproduced(4, ())
    assert comparison_lines(comparison) == ["4 of 4 committed NLLs reproduced bit for bit"]


def test_what_differs_is_named(committed: Paths) -> None:
    write(committed, "a", {"x": {"nll": 86.76000000002}, "y": {"nll": 84.5}})
    write(committed, "b", {"z": {"nll": 1.0}})
    comparison = compare_with_commit(committed, "quick")
    assert comparison is not None
    assert comparison.differing == (
        ChangedNll("quick/a/x", 86.76000000001, 86.76000000002),
        ChangedNll("quick/a/y", 84.78, 84.5),
        ChangedNll("quick/b/w", 2.0, None),
    )
    first, *others = comparison_lines(comparison, shown=2)
    assert first.startswith("1 of 4 committed NLLs reproduced bit for bit; 2 differ by at most 0.28 nats")
    assert first.endswith("; 1 are not there now")
    assert others[1:] == ["  quick/a/y: 84.7800 committed, 84.5000 now", "  and 1 more"]


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"x": 1}'])
def test_damaged_metrics_are_named(text: str, committed: Paths) -> None:
    path = committed.results("quick") / "a" / "metrics.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"quick/results/a/metrics\.json: [^\n]*; delete it and run the stage"):
        compare_with_commit(committed, "quick")
    if text != '{"x": 1}':
        command = ["git", *IDENTITY, "commit", "-q", "-a", "-m", "damaged"]
        subprocess.run(command, cwd=committed.root, check=True)
        path.write_text("{}")
        with pytest.raises(UserError, match=r"^HEAD:reports/quick/results/a/metrics\.json: not a cohort's metrics"):
            compare_with_commit(committed, "quick")


def test_without_a_commit_there_is_nothing_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    paths = Paths(tmp_path)
    write(paths, "a", {"x": {"nll": 1.0}})
    assert compare_with_commit(paths, "quick") is None
    monkeypatch.setenv("PATH", "")
    comparison = compare_with_commit(paths, "quick")
    assert "nothing" not in comparison_lines(comparison)[0]
    assert "no committed results" in comparison_lines(comparison)[0]
