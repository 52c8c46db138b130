"""MLflow's store follows the results: nothing twice, nothing stale, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import write_json
from pipeline.records.results import Waypoint, load_results, save_results
from pipeline.reporting.forms.drawing import colour_of
from pipeline.tracking.publish import Publication, publish
from pipeline.tracking.server import views
from pipeline.tracking.store import STORE, locked_store
from stages.track import marker
from tests.tracking.example import ONE, POINTS, TWO, content, paper, publish_all, stored_runs, two_cohorts


def test_a_published_run_carries_what_a_reader_looks_for(root: Path) -> None:
    assert publish_all(root, two_cohorts()) == Publication(3, 0, 0)
    with locked_store(root) as client:
        names = [experiment.name for experiment in client.search_experiments()]
    assert names == ["quick/mnist"]
    name, params, tags, times, history, artifacts, inputs = content(root)[f"{ONE}/iwae-M1-K50-s0"]
    assert name == "iwae-M1-K50-1L-s0, burda-table1, 4 epochs"
    assert params["K"] == "50"
    assert params["total_steps"] == "200"
    assert params["beta"] == "0"
    assert "alpha" not in params
    note = tags["mlflow.note.content"]
    assert f"dvc repro evaluate@{ONE}" in note
    assert "Test NLL 86.50 ± 0.10 nats; the paper 84.78, ours minus the paper's +1.72." in note
    assert tags["mlflow.source.git.commit"] == "abc123"
    assert tags["dvc.stage"] == f"train@{ONE}"
    assert tags["status"] == "finished"
    assert tags["schedule"] == "4 epochs"
    assert tags["mlflow.runColor"] == colour_of("iwae")
    assert times[0] == "FINISHED"
    assert times[2] - times[1] == 600_250
    assert {step for step, _, _ in history["train/bound"]} == {0, 33, 66, 100, 133, 166, 200}
    assert history["test/nll"][0][2] == 86.5
    assert history["paper/delta"][0][2] == pytest.approx(1.72)
    assert history["test/active_units"][0][2] == 19
    assert set(artifacts) == {"result.json", "samples.png", "unit_variance.png"}
    assert inputs == [("mnist", "f00d")]


def test_publishing_twice_changes_nothing(root: Path) -> None:
    publish_all(root, two_cohorts())
    before = content(root)
    assert publish_all(root, two_cohorts()) == Publication(0, 3, 0)
    assert content(root) == before
    assert len(before) == len(stored_runs(root))
    assert len(before[f"{TWO}/iwae-M1-K5-s0"][4]["train/elbo"]) == POINTS


def test_a_changed_digest_evaluation_or_published_number_replaces_the_run(root: Path) -> None:
    publish_all(root, two_cohorts())
    first, second, third = two_cohorts()
    results = [
        replace(first, digest="d1"),
        second,
        replace(third, evaluation={"digest": "e1"}, metrics={**third.metrics, "nll": 85.0}),
    ]
    assert publish_all(root, results, lambda result: 80.0 if result.spec.K == 50 else None) == Publication(3, 0, 3)
    seen = content(root)
    assert len(stored_runs(root)) == 3
    assert seen[first.cell][2]["digest"] == "d1"
    assert [value for *_, value in seen[third.cell][4]["test/nll"]] == [85.0]
    assert [value for *_, value in seen[second.cell][4]["paper/nll"]] == [80.0]


def test_waypoints_are_curves_and_a_run_under_way_is_replaced_when_it_is_deeper(root: Path) -> None:
    first = two_cohorts()[0]
    early = Waypoint(50, 1.0, "finished", {}, {"nll": 120.0, "active_units_1": 30.0}, {})
    under_way = replace(first, spec=replace(first.spec, max_steps=100), waypoints=(early,), planned_steps=200)
    assert publish_all(root, [under_way], lambda result: None) == Publication(1, 0, 0)
    name, _, tags, _, history, _, _ = content(root)[first.cell]
    assert name.endswith("2 epochs")
    assert tags["status"] == "under way"
    assert [(step, value) for step, _, value in history["waypoint/nll"]] == [(50, 120.0), (100, 86.5)]
    assert [value for *_, value in history["waypoint/active_units"]] == [30.0, 19.0]
    middle = replace(early, steps=100, epochs=2.0, metrics={"nll": 90.0})
    assert publish_all(root, [replace(first, waypoints=(early, middle))], lambda result: None) == Publication(1, 0, 1)
    history = content(root)[first.cell][4]
    assert [(step, value) for step, _, value in history["waypoint/nll"]] == [(50, 120.0), (100, 90.0), (200, 86.5)]


def test_a_run_that_left_the_results_is_deleted(root: Path) -> None:
    publish_all(root, two_cohorts())
    in_grid = {result.cell for result in two_cohorts()}
    assert publish(root, two_cohorts()[1:], paper, in_grid) == Publication(0, 2, 1)
    assert set(content(root)) == {result.cell for result in two_cohorts()[1:]}


def test_a_run_whose_artifacts_are_gone_is_published_again(root: Path) -> None:
    publish_all(root, two_cohorts())
    before = content(root)
    shutil.rmtree(root / STORE / "artifacts")
    assert publish_all(root, two_cohorts()) == Publication(3, 0, 3)
    assert content(root) == before
    # Nothing is left of the runs that were replaced.
    assert len(list((root / STORE / "artifacts").rglob("result.json"))) == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [("result.json", "empty"), ("result.json", "folder"), ("samples.png", "gone"), ("samples.png", "flipped")],
)
def test_a_run_of_which_a_file_is_gone_or_damaged_is_published_again(name: str, damage: str, root: Path) -> None:
    publish_all(root, two_cohorts())
    before = content(root)
    path = next(path for path in sorted((root / STORE / "artifacts").rglob(name)))
    raw = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(b"" if damage == "empty" else raw[:-1] + bytes([raw[-1] ^ 1]))
    assert publish_all(root, two_cohorts()) == Publication(1, 2, 1)
    assert content(root) == before
    # Nothing is left of the run that was replaced.
    assert len([path for path in (root / STORE / "artifacts").rglob("artifacts") if path.is_dir()]) == 3
    assert all(any(path.iterdir()) for path in (root / STORE / "artifacts").rglob("*") if path.is_dir())


def test_a_file_that_somebody_added_to_a_run_stays(root: Path) -> None:
    publish_all(root, two_cohorts())
    path = next((root / STORE / "artifacts").rglob("result.json")).with_name("note.txt")
    path.write_text("mine")
    assert publish_all(root, two_cohorts()) == Publication(0, 3, 0)
    assert path.exists()


def test_a_run_of_somebody_elses_is_left_alone(root: Path) -> None:
    """It has none of the tags that this project's runs have."""
    publish_all(root, two_cohorts())
    with locked_store(root) as client:
        (experiment,) = client.search_experiments()
        client.create_run(experiment.experiment_id, tags={"scale": "quick"}, run_name="mine")
        client.create_run(experiment.experiment_id, tags={"scale": "quick", "schedule": "4 epochs"}, run_name="mine")
    assert publish_all(root, two_cohorts()) == Publication(0, 3, 0)
    assert [run.info.run_name for run in stored_runs(root)].count("mine") == 2
    with locked_store(root) as client:
        assert [view.runs for view in views(client)] == [3]


def test_a_deleted_store_is_restored(root: Path) -> None:
    results = root / "results"
    for cohort in (ONE, TWO):
        save_results(results / cohort.partition("/")[2], [r for r in two_cohorts() if r.cohort == cohort])
    # As read back: what is kept of curves is rounded.
    publish_all(root, load_results(results))
    before = content(root)
    shutil.rmtree(root / STORE)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.records.results import load_results; from pipeline.tracking.publish import publish\n"
        "paper = lambda result: 84.78 if result.spec.K == 50 else None\n"
        "print(publish(Path(sys.argv[1]), load_results(Path(sys.argv[2])), paper, set()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(results)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (str(Publication(3, 0, 0)), "")
    # MLflow keeps a deleted database open; a copy is read afresh.
    shutil.copytree(root / STORE, root / "copy" / STORE)
    assert content(root / "copy") == before


def test_an_interrupted_publication_is_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking.publish.mlflow_status", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_all(root, two_cohorts())
    assert len(stored_runs(root)) == 1
    assert publish_all(root, two_cohorts()) == Publication(3, 0, 0)
    assert len(stored_runs(root)) == 3


def test_a_diverged_run_is_marked_as_failed(root: Path) -> None:
    diverged = replace(two_cohorts()[0], status="diverged at step 40", metrics={}, evaluation={})
    diverged.arrays["history/bound"][3:] = np.nan
    assert publish_all(root, [diverged]) == Publication(1, 0, 0)
    (run,) = stored_runs(root)
    assert run.info.status == "FAILED"
    assert run.data.tags["status"] == "diverged at step 40"
    assert len(content(root)[diverged.cell][4]["train/bound"]) == 3
    assert publish_all(root, [diverged]) == Publication(0, 1, 0)


def test_the_marker_depends_on_cells_and_digests_alone(tmp_path: Path) -> None:
    first, second = two_cohorts(), [replace(result, training={}, metrics={}) for result in reversed(two_cohorts())]
    for name, results in (
        ("first", first),
        ("second", second),
        ("third", [replace(first[0], digest="d1"), *first[1:]]),
    ):
        write_json(tmp_path / name, marker(results))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "third").read_bytes()
