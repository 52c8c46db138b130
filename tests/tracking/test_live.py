"""Runs are seen in MLflow while they train, and never in the way of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking import live
from pipeline.tracking.curves import saved_rows
from pipeline.tracking.live import LiveTracker
from pipeline.tracking.publish import Publication, publish
from pipeline.tracking.store import STORE
from tests.tracking.example import (
    ONE,
    POINTS,
    TWO,
    cohort_of,
    content,
    paper,
    publish_all,
    stored_runs,
    train_live,
    two_cohorts,
)


def test_a_finished_live_run_is_replaced_by_the_published_one_with_its_true_times(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=True).close()
    assert {run.info.status for run in stored_runs(root)} == {"FINISHED"}
    assert publish_all(root, results) == Publication(3, 0, 0)
    runs = stored_runs(root)
    assert len(runs) == 3
    assert {run.info.end_time - run.info.start_time for run in runs} == {600_250}
    seen = content(root)[results[0].cell]
    rows = saved_rows(results[0].arrays)
    assert [(step, value) for step, _, value in seen[4]["train/bound"]] == [(row["step"], row["bound"]) for row in rows]
    assert seen[4]["test/nll"][0][2] == 86.5
    assert publish_all(root, results) == Publication(0, 3, 0)


def test_a_live_run_begins_when_its_training_began(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when MLflow was ready; a run that waits for its turn is not shown."""
    monkeypatch.setattr(live.time, "time", lambda: 5000.0)
    results = two_cohorts()
    runs = results[:2]
    tracker = LiveTracker(root, cohort_of(results, ONE), {r.spec.name: r.digest for r in runs}, None, None)
    assert stored_runs(root) == []
    rows = saved_rows(runs[0].arrays)
    tracker.log(runs[0].spec.name, rows[:4])
    (run,) = stored_runs(root)
    assert run.data.tags["cell"] == runs[0].cell
    assert run.info.start_time == 1000 * (5000 - rows[3]["seconds"])


def test_a_live_run_killed_midway_is_replaced(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=False)
    assert {run.info.status for run in stored_runs(root)} == {"RUNNING"}
    assert publish_all(root, results) == Publication(3, 0, 0)
    assert len(stored_runs(root)) == 3
    assert len(content(root)[results[0].cell][4]["train/bound"]) == POINTS


def test_a_killed_live_run_starts_again_and_a_published_one_does_not(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=False).close()
    assert {run.info.status for run in stored_runs(root)} == {"KILLED"}
    train_live(root, results, ONE, finish=True)
    assert len(stored_runs(root)) == 2
    # Trained a second time, a run is there once.
    train_live(root, results, ONE, finish=True)
    assert len(stored_runs(root)) == 2
    assert {len(seen[4]["train/elbo"]) for seen in content(root).values()} == {POINTS}
    publish_all(root, results)
    published = {run.info.run_id for run in stored_runs(root)}
    train_live(root, results, ONE, finish=True)
    assert {run.info.run_id for run in stored_runs(root)} == published


def test_live_tracking_leaves_runs_alone_that_are_not_trained(root: Path) -> None:
    results = two_cohorts()
    tracker = LiveTracker(root, cohort_of(results, ONE), {"vae-M50-K1-s0": "d0"}, None, None)
    tracker.log("iwae-M1-K50-s0", saved_rows(results[1].arrays))
    tracker.finish("iwae-M1-K50-s0", "finished")
    assert stored_runs(root) == []
    tracker.log("vae-M50-K1-s0", saved_rows(results[0].arrays))
    assert [run.data.tags["cell"] for run in stored_runs(root)] == [results[0].cell]


def test_live_runs_of_a_cohort_without_results_survive_while_in_the_grid(root: Path) -> None:
    results = two_cohorts()
    tracker = train_live(root, results, TWO, finish=False)
    known = {result.cell for result in results}
    assert publish(root, results[:2], paper, known) == Publication(2, 0, 0)
    tracker.log("iwae-M1-K5-s0", saved_rows(results[2].arrays)[3:])
    tracker.finish("iwae-M1-K5-s0", "finished")
    assert len(content(root)[results[2].cell][4]["train/bound"]) == POINTS
    assert publish(root, results[:2], paper, known - {results[2].cell}) == Publication(0, 2, 0)
    assert len(stored_runs(root)) == 2


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_a_broken_store_only_warns_while_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "folder":
        (tmp_path / STORE).write_text("a file where the folder should be")
    else:
        (tmp_path / STORE).mkdir()
        (tmp_path / STORE / "mlflow.db").write_bytes(b"not a database" * 100)
    train_live(tmp_path, two_cohorts(), ONE, finish=True).close()
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "training goes on" in warning
    with pytest.raises(UserError, match="rebuilt from the results"):
        publish_all(tmp_path, two_cohorts())


def test_a_store_that_breaks_during_training_warns_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = two_cohorts()
    tracker = train_live(root, results, ONE, finish=False)
    (root / STORE / "mlflow.db").write_bytes(b"not a database" * 100)
    for result in results[:2]:
        tracker.log(result.spec.name, saved_rows(result.arrays)[3:])
        tracker.finish(result.spec.name, "finished")
    tracker.close()
    assert capsys.readouterr().err.count("training goes on") == 1
