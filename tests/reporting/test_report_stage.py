"""`python -m stages.report SCALE` from results on disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.results import RunResult, save_results
from stages import report

Make = Callable[..., RunResult]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_reports_what_is_on_disk(
    project: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(nll=123.45)
    save_results(project / "reports" / run.cohort.replace("/", "/results/"), [run])
    monkeypatch.setattr(sys, "argv", ["report", "quick"])
    report.main()
    assert re.fullmatch(r"quick: 1 run -> reports/quick/index.html, \d+ s\n", capsys.readouterr().out)
    assert "123.45" in (project / "reports" / "quick" / "index.html").read_text(encoding="utf-8")


def test_an_unknown_scale_is_refused_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "qick"])
    with pytest.raises(UserError, match=r"qick: no such scale.*quick, paper"):
        report.main()
    assert not (project / "reports").exists()
