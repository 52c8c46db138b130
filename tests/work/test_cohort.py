"""What the console says of the whole while a cohort trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.experiments.spec import CohortSpec
from pipeline.files import sha256_file
from pipeline.records.run_folder import LISTED, RUN_JSON, Job
from pipeline.records.sealed import write_sealed_json
from pipeline.training.cohort import relative_cost
from pipeline.work.cohort import whole_scale
from tests.conftest import make_run


def cohort(name: str, scale: str = "quick") -> CohortSpec:
    runs = tuple(replace(make_run(K=K), name=f"iwae-M1-K{K}-s0") for K in (5, 50))
    return CohortSpec(scale, "burda-table1", name, runs)


def finish(folder: Path, digest: str = "") -> None:
    folder.mkdir(parents=True)
    for name in LISTED:
        (folder / name).touch()
    files = {name: {"bytes": 0, "sha256": sha256_file(folder / name)} for name in LISTED}
    content = {"spec": {}, "digest": digest, "steps": 20, "status": "finished", "training": {}, "files": files}
    write_sealed_json(folder / RUN_JSON, content)


def test_the_whole_counts_the_scales_runs_and_what_is_left_of_them(tmp_path: Path) -> None:
    current, begun, untouched = (cohort(name) for name in ("current", "begun", "untouched"))
    foreign = cohort("current", "paper")
    runs = tmp_path / "runs"
    finish(runs / "quick/begun/training" / begun.runs[0].name)
    finish(runs / "paper/current/training" / foreign.runs[0].name)
    jobs = [Job(run, run.name, tmp_path / "store" / run.name, None) for run in current.runs]
    finish(jobs[1].finished, jobs[1].digest)
    whole = whole_scale(jobs, current, [current, begun, untouched, foreign], runs)
    assert (whole.name, whole.runs, whole.done) == ("quick", 6, 2)
    left = [begun.runs[1], *untouched.runs]
    assert whole.effort_after == pytest.approx(sum(relative_cost(run) for run in left))
