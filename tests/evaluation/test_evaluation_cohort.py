"""Evaluating a cohort: what is computed, that it is computed once, and what becomes of diverged or damaged runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.cohort import (
    Finished,
    earlier_waypoints,
    evaluate_cohort,
    finished_run,
    finished_runs,
    heal_evaluations,
    provenance_folder,
    result_of,
)
from pipeline.evaluation.evaluate import evaluate_weights
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, Stage
from pipeline.files import read_json, sha256_file, write_json
from pipeline.records.results import load_results, save_results
from pipeline.records.run_folder import HISTORY, HISTORY_COLUMNS, WEIGHTS, Job, read_weights
from pipeline.records.store import cohort_jobs, copy_finished
from pipeline.training.train import train
from pipeline.work.machine import Machine
from tests.conftest import make_run, material_of, write_dataset

SPEC = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=10, train_images=5, pruned_images=0)
MACHINE = Machine(torch.device("cpu"), 2, 1e9)
CALM, WILD = ("iwae-M1-K5-s0", "vae-M5-K1-s0"), "wild"


@dataclass(frozen=True)
class Trained:
    """A trained cohort: two calm runs, and a wild one between them that diverged."""

    cohort: CohortSpec
    data: Path
    training: Path
    store: Path
    digests: dict[str, set[str]]

    def runs(self, spec: EvaluationSpec = SPEC) -> list[Finished]:
        return finished_runs(self.cohort, self.training, self.store, spec, self.digests)

    def evaluate(self, spec: EvaluationSpec = SPEC) -> list[str]:
        """The names of the runs that were computed."""
        seen: list[str] = []
        evaluate_cohort(self.runs(spec), self.data, self.store, MACHINE, {"command": "x"}, seen.append)
        return sorted(seen)


def digests_of(jobs: list[Job]) -> dict[str, set[str]]:
    return {job.spec.name: {job.digest} for job in jobs}


@pytest.fixture
def trained(grey_images: NDArray[np.uint8], tmp_path: Path) -> Trained:
    write_dataset(tmp_path / "mnist", grey_images)
    iwae, vae = make_run(max_steps=5), make_run("vae", 5, 1, max_steps=5)
    wild = replace(iwae, name=WILD, schedule=(Stage(1, 1e30),))
    cohort = CohortSpec("tiny", "first", "first-mnist-1L-T5", (iwae, wild, vae))
    jobs = cohort_jobs(cohort, {cohort.key: cohort}, "data", tmp_path / "store", tmp_path, "cpu")
    train(jobs, torch.from_numpy(grey_images[:500]), {"git_revision": "abc"}, lambda _: None, lambda: False, 1e9)
    copy_finished(jobs, tmp_path / "training")
    return Trained(cohort, tmp_path / "mnist", tmp_path / "training", tmp_path / "store", digests_of(jobs))


def written(run: Finished) -> list[int]:
    return [run.target.with_suffix(suffix).stat().st_mtime_ns for suffix in (".json", ".npz")]


def test_runs_are_found_in_the_cohorts_order(trained: Trained) -> None:
    runs = trained.runs()
    assert [run.spec for run in runs] == list(trained.cohort.runs)
    assert [run.diverged for run in runs] == [False, True, False]
    for run in runs:
        assert run.folder == trained.training / run.spec.name
        assert run.target.parent == trained.store / run.content["digest"]
        assert run.target.name == f"evaluation-{run.evaluation_digest}"


def test_a_run_that_was_not_trained_is_named(trained: Trained) -> None:
    (trained.training / CALM[0]).rename(trained.training / "elsewhere")
    with pytest.raises(UserError, match=rf"{CALM[0]}/run\.json: missing"):
        trained.runs()


def test_results_are_those_of_the_weights_and_survive_saving(trained: Trained, grey_images: NDArray[np.uint8]) -> None:
    assert trained.evaluate() == sorted(CALM)
    results = [result_of(trained.cohort, run) for run in trained.runs()]
    first = results[0]
    weights = read_weights(trained.training / CALM[0] / WEIGHTS, (50,))
    metrics, arrays = evaluate_weights(weights, trained.cohort.runs[0], SPEC, material_of(grey_images))
    assert first.metrics == pytest.approx(metrics, rel=1e-6)
    assert first.arrays.keys() == arrays.keys() | {f"history/{name}" for name in HISTORY_COLUMNS}
    np.testing.assert_allclose(first.arrays["log_p_hat"], arrays["log_p_hat"], rtol=1e-5)
    assert first.arrays["history/step"].tolist() == [1, 2, 3, 4, 5]
    assert (first.cell, first.experiment, first.status) == (f"tiny/first-mnist-1L-T5/{CALM[0]}", "first", "finished")
    assert (first.training["git_revision"], first.training["steps"]) == ("abc", 5)
    assert first.evaluation["num_samples"] == 130
    assert first.evaluation["digest"] == trained.runs()[0].evaluation_digest
    folder = trained.store.parent / "results" / trained.cohort.name
    save_results(folder, results)
    assert {result.spec.name: result.metrics for result in load_results(folder.parent)} == {
        result.spec.name: result.metrics for result in results
    }


def test_a_run_that_cohorts_share_bears_in_each_the_name_that_it_has_there(trained: Trained) -> None:
    """Else two runs of a cohort, one of them first trained under the other's name, are one in its results."""
    first, _, other = trained.cohort.runs
    runs = (replace(other, name=first.name), replace(first, name="again"))
    second = CohortSpec("tiny", "second", "second-mnist-1L-T5", runs)
    copies = trained.store.parent / "second"
    jobs = cohort_jobs(second, {second.key: second}, "data", trained.store, trained.store, "cpu")
    copy_finished(jobs, copies)
    evaluated = finished_runs(second, copies, trained.store, SPEC, digests_of(jobs))
    evaluate_cohort(evaluated, trained.data, trained.store, MACHINE, {}, lambda _: None)
    results = [result_of(second, run) for run in evaluated]
    assert [result.spec for result in results] == list(runs)
    mine = {run.spec.name: result_of(trained.cohort, run).digest for run in trained.runs()}
    assert [result.digest for result in results] == [mine[other.name], mine[first.name]]
    folder = trained.store.parent / "results" / second.name
    save_results(folder, results)
    assert {result.spec.name for result in load_results(folder.parent)} == {first.name, "again"}


def test_nothing_is_computed_twice(trained: Trained) -> None:
    trained.evaluate()
    calm = [run for run in trained.runs() if not run.diverged]
    before = [written(run) for run in calm]
    assert trained.evaluate() == []
    # What one run lacks is computed for it alone.
    calm[0].target.with_suffix(".json").unlink()
    assert trained.evaluate() == [CALM[0]]
    assert written(calm[0]) != before[0]
    assert written(calm[1]) == before[1]


def test_digits_are_read_by_one_reader_of_the_dataset(trained: Trained, grey_images: NDArray[np.uint8]) -> None:
    info = read_json(trained.data / "dataset.json")
    for split, count in (("train", 500), ("test", 100)):
        np.save(trained.data / f"{split}_labels.npy", (np.arange(count) % 10).astype(np.uint8))
    spec = replace(SPEC, diagnostic_images=10)
    # Labels of the test set alone cannot teach a reader.
    sha256 = {path.name: sha256_file(path) for path in trained.data.glob("*_labels.npy")}
    only_test = {name: value for name, value in sha256.items() if "test" in name}
    write_json(trained.data / "dataset.json", info | {"sha256": only_test})
    with pytest.raises(UserError, match="no training labels"):
        trained.evaluate(spec)
    write_json(trained.data / "dataset.json", info | {"sha256": sha256})
    assert trained.evaluate(spec) == sorted(CALM)
    (reader,) = trained.store.glob("digit-reader-*.safetensors")
    written = reader.stat().st_mtime_ns
    assert result_of(trained.cohort, trained.runs(spec)[0]).arrays["digits/decoded"].shape == (10, 20)
    assert trained.evaluate(replace(spec, seed=7)) == sorted(CALM)
    assert reader.stat().st_mtime_ns == written


def test_other_settings_are_another_evaluation(trained: Trained) -> None:
    trained.evaluate()
    other = replace(SPEC, test_images=7, train_images=0)
    assert trained.evaluate(other) == sorted(CALM)
    counts = {spec: result_of(trained.cohort, trained.runs(spec)[0]).metrics["test_images"] for spec in (SPEC, other)}
    assert counts == {SPEC: 10, other: 7}


def test_a_diverged_run_has_a_status_and_no_metrics(trained: Trained) -> None:
    assert WILD not in trained.evaluate()
    run = trained.runs()[1]
    assert not run.target.with_suffix(".json").exists()
    result = result_of(trained.cohort, run)
    assert result.metrics == {}
    assert result.status.startswith("diverged at step ")
    assert result.arrays.keys() == {f"history/{name}" for name in HISTORY_COLUMNS}
    assert result.evaluation == {"digest": run.evaluation_digest}


@pytest.mark.parametrize("content", [b"", b"step,epoch\n", b"step\nx,y\n", b"step,epoch\n1,2\n", b"\xff\xfe\n\xff"])
def test_a_damaged_history_is_named(content: bytes, trained: Trained) -> None:
    run = trained.runs()[1]
    shutil.rmtree(provenance_folder(run))
    (run.folder / HISTORY).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{WILD}/history\.csv: not a training history( of this revision)?; train the run again$"
    ):
        result_of(trained.cohort, run)


def test_a_missing_history_is_named(trained: Trained) -> None:
    run = trained.runs()[1]
    shutil.rmtree(provenance_folder(run))
    (run.folder / HISTORY).unlink()
    with pytest.raises(UserError, match=rf"{WILD}/history\.csv: missing; train the run again$"):
        result_of(trained.cohort, run)


def test_how_a_run_was_trained_is_told_by_the_store_and_unknown_without(trained: Trained) -> None:
    run = trained.runs()[1]
    told = result_of(trained.cohort, run)
    assert told.training["wall_s"] > 0
    assert told.arrays["history/seconds"].max() > 0
    shutil.rmtree(provenance_folder(run))
    alone = result_of(trained.cohort, run)
    assert alone.training.keys() == {"steps", "epochs"}
    np.testing.assert_array_equal(alone.arrays["history/bound"], told.arrays["history/bound"])


def test_damaged_weights_spare_the_other_runs(trained: Trained) -> None:
    weights = trained.training / CALM[0] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{CALM[0]}/weights\.safetensors: damaged"):
        trained.evaluate()
    done = {run.spec.name: run.target.with_suffix(".json").exists() for run in trained.runs()}
    assert done == {CALM[0]: False, WILD: False, CALM[1]: True}


def test_evaluation_that_was_not_made_is_named(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"evaluation-[0-9a-f]{16}\.json: missing"):
        result_of(trained.cohort, trained.runs()[0])


def test_the_run_of_another_spec_is_not_evaluated(trained: Trained) -> None:
    """After an edit of params.yaml the weights that lie there are another run's."""
    edited = replace(trained.cohort, runs=tuple(replace(run, seed=7) for run in trained.cohort.runs))
    jobs = cohort_jobs(edited, {edited.key: edited}, "data", trained.store, trained.store, "cpu")
    with pytest.raises(
        UserError, match=rf"run\.json: belongs to run .*; train it first: .* {edited.key}, or dvc repro"
    ):
        finished_runs(edited, trained.training, trained.store, SPEC, digests_of(jobs))
    deeper = replace(trained.cohort, runs=tuple(replace(run, max_steps=9) for run in trained.cohort.runs))
    with pytest.raises(UserError, match="holds iwae-M1-K5-s0 after 5 updates, not after 9; train it first"):
        finished_runs(deeper, trained.training, trained.store, SPEC, trained.digests)


def test_two_runs_in_each_others_place_are_not_evaluated(trained: Trained) -> None:
    first, other = (trained.training / name for name in CALM)
    first.rename(trained.training / "third")
    other.rename(first)
    (trained.training / "third").rename(other)
    with pytest.raises(UserError, match=rf"{CALM[0]}/run\.json: belongs to run"):
        trained.runs()
    # Nor is one file.
    for name in CALM:
        (trained.training / name).rename(trained.training / f"{name}.old")
    for name, there in zip(CALM, reversed(CALM), strict=True):
        (trained.training / f"{there}.old").rename(trained.training / name)
    one, two = (trained.training / name / WEIGHTS for name in CALM)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: belongs to run"):
        trained.evaluate()


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_evaluation_is_set_aside_and_made_again(
    suffix: str, damage: str, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.evaluate()
    run = trained.runs()[0]
    before = result_of(trained.cohort, run).metrics
    path = run.target.with_suffix(suffix)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"truncated": content[:-20], "emptied": b""}.get(damage, content))
    heal_evaluations(trained.runs())
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: damaged")
    assert trained.evaluate() == [CALM[0]]
    assert result_of(trained.cohort, trained.runs()[0]).metrics == before


def test_earlier_waypoints_are_evaluated_as_their_own_spec_says(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    write_dataset(tmp_path / "mnist", grey_images)
    cohort = CohortSpec("tiny", "first", "first-mnist-1L-T5", (make_run(max_steps=45),))
    jobs = cohort_jobs(cohort, {cohort.key: cohort}, "data", tmp_path / "store", tmp_path, "cpu")
    train(jobs, torch.from_numpy(grey_images[:500]), {}, lambda _: None, lambda: False, 1e9)
    copy_finished(jobs, tmp_path / "training")
    spec = replace(SPEC, earlier=replace(SPEC, test_images=4, train_images=0))
    (run,) = finished_runs(cohort, tmp_path / "training", tmp_path / "store", spec, digests_of(jobs))
    # Stages end after 10 and 40 updates; in the store and in the copy they are the same.
    stored = finished_run(jobs[0].finished, cohort.runs[0], tmp_path / "store", spec)
    both = [earlier_waypoints(finished, tmp_path / "store") for finished in (run, stored)]
    assert [[waypoint.spec.total_steps for waypoint in earlier] for earlier in both] == [[10, 40], [10, 40]]
    assert [waypoint.target for waypoint in both[0]] == [waypoint.target for waypoint in both[1]]
    evaluate_cohort([*both[0], run], tmp_path / "mnist", tmp_path / "store", MACHINE, {}, lambda _: None)
    result = result_of(cohort, run, both[0])
    told = [(waypoint.steps, waypoint.epochs, waypoint.metrics["test_images"]) for waypoint in result.waypoints]
    assert told == [(10, 1, 4), (40, 4, 4)]
    assert (result.epochs, result.metrics["test_images"]) == (4.5, 10)
    weights = read_weights(jobs[0].waypoint(40) / WEIGHTS, (50,))
    assert spec.earlier is not None
    metrics, arrays = evaluate_weights(weights, cohort.runs[0], spec.earlier, material_of(grey_images))
    assert result.waypoints[1].metrics == pytest.approx(metrics, rel=1e-6)
    np.testing.assert_allclose(result.waypoints[1].arrays["log_p_hat"], arrays["log_p_hat"], rtol=1e-5)
