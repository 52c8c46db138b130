"""MLflow's store follows the results: nothing twice, nothing stale, nothing lost, and never in the way of training."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.protocol import PROTOCOLS
from pipeline.results import RunResult, save_results
from pipeline.spec import CohortSpec, RunSpec, Stage
from pipeline.tracking import (
    CURVE_POINTS,
    CURVES,
    STORE,
    VIEW,
    Counts,
    LiveTracker,
    final_metrics,
    history_rows,
    locked_store,
    publish,
    run_name,
    run_params,
    sample_grid,
    thin_rows,
)
from stages.track import marker
from stages.ui import free_port

ONE, TWO = "quick/burda-table1-mnist-1L-T50", "quick/burda-table1-mnist-1L-T5"
POINTS = 7
UI = [sys.executable, "-m", "stages.ui"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def make_spec(name: str, objective: str, M: int, K: int, **changes: Any) -> RunSpec:
    spec = RunSpec(
        name=name,
        objective=objective,
        M=M,
        K=K,
        parameter=None,
        seed=0,
        dataset="mnist",
        latent=(50,),
        train_images=1000,
        protocol_name="published-code",
        protocol=PROTOCOLS["published-code"],
        schedule=(Stage(1, 1e-3), Stage(3, 7.2e-4)),
        max_steps=None,
        precision="float32",
        continues=None,
        algorithm_version=1,
    )
    return replace(spec, **changes)


def make_result(
    cohort: str, spec: RunSpec, digest: str = "d0", evaluation: str = "e0", points: int = POINTS
) -> RunResult:
    rng = np.random.default_rng(len(spec.name))
    steps = np.linspace(0, spec.total_steps, points).astype(int)
    history = {name: -100 + rng.standard_normal(points) for name in CURVES}
    return RunResult(
        cohort=cohort,
        experiment="burda-table1",
        spec=spec,
        digest=digest,
        status="finished",
        training={
            "started": "2030-01-02T03:00:00+00:00",
            "finished": "2030-01-02T03:10:00+00:00",
            "git_revision": "abc123",
            "data": {"digest": "f00d"},
        },
        evaluation={"digest": evaluation},
        metrics={"nll": 86.5, "nll_se": 0.1, "iwae_64": -87.0, "active_units_1": 19, "ess_64": 0.2},
        arrays={
            "unit_variance_1": rng.gamma(0.3, 1.0, 50),
            "samples": rng.random((100, 784)),
            "history/step": steps,
            "history/epoch": steps / spec.steps_per_epoch,
            "history/learning_rate": np.full(points, 1e-3),
            "history/seconds": steps / 10,
            **{f"history/{name}": values for name, values in history.items()},
        },
    )


def two_cohorts() -> list[RunResult]:
    return [
        make_result(ONE, make_spec("vae-M50-K1-s0", "vae", 50, 1)),
        make_result(ONE, make_spec("iwae-M1-K50-s0", "iwae", 1, 50)),
        make_result(TWO, make_spec("iwae-M1-K5-s0", "iwae", 1, 5)),
    ]


def paper(result: RunResult) -> float | None:
    return 84.78 if result.spec.K == 50 else None


def publish_all(root: Path, results: list[RunResult], lookup: Callable[[RunResult], float | None] = paper) -> Counts:
    return publish(root, results, lookup, {result.cell for result in results})


def stored_runs(root: Path) -> list[Any]:
    with locked_store(root) as client:
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(ids))


def content(root: Path) -> dict[str, Any]:
    """All that a reader of the store can see, without the ids."""
    seen = {}
    for run in stored_runs(root):
        with locked_store(root) as client:
            history = {
                key: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key))
                for key in run.data.metrics
            }
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        artifacts = {file.name: file.read_bytes() for file in folder.glob("*")}
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.loggedImages"}
        times = (run.info.status, run.info.start_time, run.info.end_time)
        inputs = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        seen[run.data.tags["cell"]] = (run.info.run_name, run.data.params, tags, times, history, artifacts, inputs)
    return seen


def cohort_of(results: list[RunResult], key: str) -> CohortSpec:
    runs = tuple(result.spec for result in results if result.cohort == key)
    return CohortSpec("quick", "burda-table1", key.partition("/")[2], runs)


def train_live(root: Path, results: list[RunResult], key: str, finish: bool) -> LiveTracker:
    """Log the runs of a cohort as their training would, in two pieces, or the first piece only."""
    own = [result for result in results if result.cohort == key]
    tracker = LiveTracker(root, cohort_of(results, key), {r.spec.name: r.digest for r in own}, "train@x", "abc123")
    for result in own:
        rows = history_rows(result.arrays)
        tracker.log(result.spec.name, rows[:3])
        if finish:
            tracker.log(result.spec.name, rows[3:])
            tracker.finish(result.spec.name, result.status)
    return tracker


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


def test_a_published_run_carries_what_a_reader_looks_for(root: Path) -> None:
    assert publish_all(root, two_cohorts()) == Counts(3, 0, 0)
    with locked_store(root) as client:
        names = [experiment.name for experiment in client.search_experiments()]
    assert names == ["quick/mnist"]
    name, params, tags, times, history, artifacts, inputs = content(root)[f"{ONE}/iwae-M1-K50-s0"]
    assert name == "iwae-M1-K50-1L-s0"
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
    assert times[0] == "FINISHED"
    assert times[2] - times[1] == 600_000
    assert {step for step, _, _ in history["train/bound"]} == {0, 33, 66, 100, 133, 166, 200}
    assert history["test/nll"][0][2] == 86.5
    assert history["paper/delta"][0][2] == pytest.approx(1.72)
    assert history["test/active_units"][0][2] == 19
    assert set(artifacts) == {"result.json", "samples.png", "unit_variance.png"}
    assert inputs == [("mnist", "f00d")]


def test_the_experiment_has_a_description_and_a_view_that_compares(root: Path) -> None:
    publish_all(root, two_cohorts())
    with locked_store(root) as client:
        (experiment,) = client.search_experiments()
        tags = experiment.tags
        # A store of an earlier version gets today's.
        client.set_experiment_tag(experiment.experiment_id, f"mlflow.sharedViewState.{VIEW}", "old")
    assert tags["mlflow.note.content"].splitlines()[0].startswith("mnist at scale quick: ")
    view = json.loads(tags[f"mlflow.sharedViewState.{VIEW}"])
    assert view["name"] in tags["mlflow.note.content"]
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    run = content(root)[f"{ONE}/iwae-M1-K50-s0"]
    charts = state["compareRunCharts"]
    (parallel,) = [chart for chart in charts if chart["type"] == "PARALLEL"]
    assert set(parallel["selectedParams"]) <= set(run[1])
    shown = {chart["metricKey"] for chart in charts if "metricKey" in chart} | set(parallel["selectedMetrics"])
    assert shown - {"test/kl_q_p"} <= set(run[4])
    assert {chart["metricSectionId"] for chart in charts} == {part["uuid"] for part in state["compareRunSections"]}
    assert publish_all(root, two_cohorts()) == Counts(0, 3, 0)
    with locked_store(root) as client:
        assert client.get_experiment(experiment.experiment_id).tags == tags


@pytest.mark.parametrize(
    ("objective", "parameter", "beta", "alpha"),
    [
        ("vae", None, "1", None),
        ("iwae", None, "0", None),
        ("piwae", None, "0", None),
        ("ciwae", 0.05, "0.05", None),
        ("vr", 0.5, None, "0.5"),
    ],
)
def test_objectives_share_the_axis_of_beta(
    objective: str, parameter: float | None, beta: str | None, alpha: str | None
) -> None:
    params = run_params(make_spec("x", objective, 1, 1, parameter=parameter))
    assert (params.get("beta"), params.get("alpha")) == (beta, alpha)


def test_publishing_twice_changes_nothing(root: Path) -> None:
    publish_all(root, two_cohorts())
    before = content(root)
    assert publish_all(root, two_cohorts()) == Counts(0, 3, 0)
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
    assert publish_all(root, results, lambda result: 80.0 if result.spec.K == 50 else None) == Counts(3, 0, 3)
    seen = content(root)
    assert len(stored_runs(root)) == 3
    assert seen[first.cell][2]["digest"] == "d1"
    assert [value for *_, value in seen[third.cell][4]["test/nll"]] == [85.0]
    assert [value for *_, value in seen[second.cell][4]["paper/nll"]] == [80.0]


def test_a_run_that_left_the_results_is_deleted(root: Path) -> None:
    publish_all(root, two_cohorts())
    in_grid = {result.cell for result in two_cohorts()}
    assert publish(root, two_cohorts()[1:], paper, in_grid) == Counts(0, 2, 1)
    assert set(content(root)) == {result.cell for result in two_cohorts()[1:]}


def test_a_deleted_store_is_restored(root: Path) -> None:
    results = root / "results"
    for cohort in (ONE, TWO):
        save_results(results / cohort.partition("/")[2], [r for r in two_cohorts() if r.cohort == cohort])
    publish_all(root, two_cohorts())
    before = content(root)
    shutil.rmtree(root / STORE)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.results import load_results; from pipeline.tracking import publish\n"
        "paper = lambda result: 84.78 if result.spec.K == 50 else None\n"
        "print(publish(Path(sys.argv[1]), load_results(Path(sys.argv[2])), paper, set()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(results)], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (str(Counts(3, 0, 0)), "")
    # MLflow keeps a deleted database open; a copy is read afresh.
    shutil.copytree(root / STORE, root / "copy" / STORE)
    assert content(root / "copy") == before


def test_an_interrupted_publication_is_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.tracking._complete", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_all(root, two_cohorts())
    assert len(stored_runs(root)) == 1
    assert publish_all(root, two_cohorts()) == Counts(3, 0, 1)
    assert len(stored_runs(root)) == 3


def test_a_live_run_is_completed_in_place(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=True).close()
    live = {run.data.tags["cell"]: run for run in stored_runs(root)}
    assert {run.info.status for run in live.values()} == {"FINISHED"}
    assert publish_all(root, results) == Counts(3, 0, 0)
    after = {run.data.tags["cell"]: run for run in stored_runs(root)}
    assert all(after[cell].info.run_id == live[cell].info.run_id for cell in live)
    assert all(after[cell].info.start_time == live[cell].info.start_time for cell in live)
    seen = content(root)[results[0].cell]
    rows = history_rows(results[0].arrays)
    assert [(step, value) for step, _, value in seen[4]["train/bound"]] == [(row["step"], row["bound"]) for row in rows]
    assert seen[4]["test/nll"][0][2] == 86.5
    assert publish_all(root, results) == Counts(0, 3, 0)


def test_live_runs_that_began_after_training_are_replaced(root: Path) -> None:
    """A finished run taken from the checkpoint store shows its real times."""
    training = {"started": "2020-01-02T03:00:00+00:00", "finished": "2020-01-02T03:10:00+00:00"}
    results = [replace(result, training={**result.training, **training}) for result in two_cohorts()]
    train_live(root, results, ONE, finish=True)
    assert publish_all(root, results) == Counts(3, 0, 2)
    assert {run.info.end_time - run.info.start_time for run in stored_runs(root)} == {600_000}


def test_a_live_run_killed_midway_is_replaced(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=False)
    assert {run.info.status for run in stored_runs(root)} == {"RUNNING"}
    assert publish_all(root, results) == Counts(3, 0, 2)
    assert len(content(root)[results[0].cell][4]["train/bound"]) == POINTS


def test_a_killed_live_run_starts_again_and_a_complete_one_does_not(root: Path) -> None:
    results = two_cohorts()
    train_live(root, results, ONE, finish=False).close()
    assert {run.info.status for run in stored_runs(root)} == {"KILLED"}
    train_live(root, results, ONE, finish=True)
    runs = stored_runs(root)
    assert len(runs) == 2
    train_live(root, results, ONE, finish=True)
    assert {run.info.run_id for run in stored_runs(root)} == {run.info.run_id for run in runs}
    assert {len(seen[4]["train/elbo"]) for seen in content(root).values()} == {POINTS}
    publish_all(root, results)
    train_live(root, results, ONE, finish=True)
    assert len(stored_runs(root)) == 3


def test_live_tracking_leaves_runs_alone_that_are_not_trained(root: Path) -> None:
    results = two_cohorts()
    tracker = LiveTracker(root, cohort_of(results, ONE), {"vae-M50-K1-s0": "d0"}, None, None)
    tracker.log("iwae-M1-K50-s0", history_rows(results[1].arrays))
    tracker.finish("iwae-M1-K50-s0", "finished")
    assert [run.data.tags["cell"] for run in stored_runs(root)] == [results[0].cell]


def test_live_runs_of_a_cohort_without_results_survive_while_in_the_grid(root: Path) -> None:
    results = two_cohorts()
    tracker = train_live(root, results, TWO, finish=False)
    known = {result.cell for result in results}
    assert publish(root, results[:2], paper, known) == Counts(2, 0, 0)
    tracker.log("iwae-M1-K5-s0", history_rows(results[2].arrays)[3:])
    tracker.finish("iwae-M1-K5-s0", "finished")
    assert len(content(root)[results[2].cell][4]["train/bound"]) == POINTS
    assert publish(root, results[:2], paper, known - {results[2].cell}) == Counts(0, 2, 1)


def test_a_diverged_run_is_marked_as_failed(root: Path) -> None:
    diverged = replace(two_cohorts()[0], status="diverged at step 40", metrics={}, evaluation={})
    diverged.arrays["history/bound"][3:] = np.nan
    assert publish_all(root, [diverged]) == Counts(1, 0, 0)
    (run,) = stored_runs(root)
    assert run.info.status == "FAILED"
    assert run.data.tags["status"] == "diverged at step 40"
    assert len(content(root)[diverged.cell][4]["train/bound"]) == 3
    assert publish_all(root, [diverged]) == Counts(0, 1, 0)


def test_a_store_that_was_moved_is_refused(root: Path, tmp_path: Path) -> None:
    publish_all(root, two_cohorts())
    moved = tmp_path / "elsewhere"
    shutil.copytree(root / STORE, moved / STORE)
    with pytest.raises(UserError, match="made in another place"):
        publish_all(moved, two_cohorts())


def test_two_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking import locked_store, _experiment_id\n"
        "root = Path(sys.argv[1])\n"
        "with locked_store(root) as client: print(_experiment_id(client, root, 'quick', 'mnist'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert {errors for _, errors in outputs} == {""}


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
        tracker.log(result.spec.name, history_rows(result.arrays)[3:])
        tracker.finish(result.spec.name, "finished")
    tracker.close()
    assert capsys.readouterr().err.count("training goes on") == 1


def test_a_curve_logged_in_pieces_equals_one_logged_whole() -> None:
    rows = [{"step": float(step)} for step in range(0, 5001)]
    whole = thin_rows(rows, 5000)
    assert whole[0]["step"] == 0
    assert whole[-1]["step"] == 5000
    assert len(whole) == CURVE_POINTS + 1
    pieces = thin_rows(rows[:1234], 5000)
    pieces += thin_rows(rows[1234:], 5000, pieces[-1]["step"])
    assert pieces == whole


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "iwae-M1-K50-1L-s0"),
        ({"latent": (100, 50)}, "iwae-M1-K50-2L-s0"),
        ({"continues": "paper/burda-table1-mnist-1L-T1/vae-M1-K1-s0"}, "iwae-M1-K50-1L-s0 after vae-M1-K1"),
    ],
)
def test_run_names(changes: dict[str, Any], expected: str) -> None:
    assert run_name(make_spec("iwae-M1-K50-s0", "iwae", 1, 50, **changes)) == expected


@pytest.mark.parametrize(
    ("objective", "name"), [("ciwae", "beta"), ("dreg", "alpha"), ("vr", "alpha"), ("removed since", "parameter")]
)
def test_a_parameter_has_the_name_that_its_estimator_gives_it(objective: str, name: str) -> None:
    params = run_params(make_spec("a", objective, 1, 5, parameter=0.25))
    assert params[name] == "0.25"
    assert name in run_params(make_spec("a", objective, 1, 5, parameter=0.0))
    assert name not in run_params(make_spec("a", objective, 1, 5))


def test_active_units_are_summed_over_layers() -> None:
    result = replace(two_cohorts()[0], metrics={"active_units_1": 20.0, "active_units_2": 6.0})
    assert final_metrics(result, None)["test/active_units"] == 26


def test_samples_fill_the_grid_row_by_row() -> None:
    samples = np.zeros((100, 784))
    samples[12] = 1.0
    pixels = np.asarray(sample_grid(samples))
    assert pixels.shape == (560, 560)
    assert pixels[56:112, 112:168].min() == 255
    assert pixels.sum() == 56 * 56 * 255


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


def test_a_taken_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) > port
    assert free_port(port) == port


def test_the_ui_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(UI, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "make repro" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_ui_serves_the_runs_until_interrupted(root: Path) -> None:
    publish_all(root, two_cohorts())
    command = [*UI, "--port", str(free_port(15000))]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    link = next((line for line in process.stdout if "quick/mnist" in line), "").split()[-1:]
    assert link, process.communicate()[1]
    assert "compareRunsMode=CHART" in link[0]
    address = link[0].partition("/#/")[0]
    assert requests.get(f"{address}/health", timeout=10).ok
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/health", timeout=10)
