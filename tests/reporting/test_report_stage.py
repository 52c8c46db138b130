"""`python -m stages.report SCALE` from results on disk."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec
from pipeline.files import write_json
from pipeline.paths import Paths
from pipeline.records.results import RunResult, save_results
from stages import report, track, weights

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
    run, stale = make(nll=123.45), make(nll=678.91, seed=7)
    for result in (run, replace(stale, cohort=f"{stale.cohort}-s7")):
        save_results(project / "reports" / result.cohort.replace("/", "/results/"), [result])
    scale, _, name = run.cohort.partition("/")
    cohort = CohortSpec(scale, run.experiment, name, (run.spec,))
    write_json(project / f"cohorts/{cohort.key}.json", cohort.to_json())
    monkeypatch.setattr(sys, "argv", ["report", "quick"])
    report.main(Paths())
    told = capsys.readouterr()
    assert re.fullmatch(r"quick: 1 run -> reports/quick/index.html, \d+ s\n", told.out)
    assert f"not in the grid of cohorts/, so left out: {cohort.key}-s7/{stale.spec.name};" in told.err
    page = (project / "reports" / "quick" / "index.html").read_text(encoding="utf-8")
    assert "123.45" in page
    assert "678.91" not in page
    assert not [path for path in (project / "reports/quick/metrics").iterdir() if "s7" in path.name]


@pytest.mark.parametrize("stage", [report, track, weights])
def test_an_unknown_scale_is_refused_by_name(stage: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "qick"])
    with pytest.raises(UserError, match=r"qick: no such scale.*quick, .*paper"):
        stage.main(Paths(project))
    assert not (project / "reports").exists()
