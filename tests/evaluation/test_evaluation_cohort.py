"""Evaluating a cohort: what is computed, that it is computed once, and what becomes of diverged or damaged runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.device import Machine
from pipeline.errors import UserError
from pipeline.evaluation.cohort import Finished, evaluate_cohort, finished_runs, result_of
from pipeline.evaluation.evaluate import evaluate_weights
from pipeline.files import read_json, write_json
from pipeline.results import load_results, save_results
from pipeline.spec import CohortSpec, EvaluationSpec, Stage
from pipeline.store import cohort_jobs, copy_finished
from pipeline.training.state import HISTORY, HISTORY_COLUMNS, WEIGHTS, read_weights
from pipeline.training.train import train
from tests.conftest import make_run, write_dataset

SPEC = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=10, train_images=5, pruned=False)
MACHINE = Machine(torch.device("cpu"), 2, 1e9)
CALM, WILD = ("iwae-M1-K5-s0", "vae-M5-K1-s0"), "wild"


@dataclass(frozen=True)
class Trained:
    """A trained cohort: two calm runs, and a wild one between them that diverged."""

    cohort: CohortSpec
    data: Path
    training: Path
    store: Path

    def runs(self, spec: EvaluationSpec = SPEC) -> list[Finished]:
        return finished_runs(self.cohort, self.training, self.store, spec)

    def evaluate(self, spec: EvaluationSpec = SPEC) -> list[str]:
        """The names of the runs that were computed."""
        seen: list[str] = []
        evaluate_cohort(self.runs(spec), self.data, self.store, MACHINE, spec, {"command": "x"}, seen.append)
        return sorted(seen)


@pytest.fixture
def trained(grey_images: NDArray[np.uint8], tmp_path: Path) -> Trained:
    write_dataset(tmp_path / "mnist", grey_images)
    iwae, vae = make_run(max_steps=5), make_run("vae", 5, 1, max_steps=5)
    wild = replace(iwae, name=WILD, schedule=(Stage(1, 1e30),))
    cohort = CohortSpec("tiny", "first", "first-mnist-1L-T5", (iwae, wild, vae))
    jobs = cohort_jobs(cohort, "data", tmp_path / "store", tmp_path)
    train(jobs, torch.from_numpy(grey_images[:500]), {"git_revision": "abc"}, lambda _: None, lambda: False, 1e9)
    copy_finished(jobs, tmp_path / "training")
    return Trained(cohort, tmp_path / "mnist", tmp_path / "training", tmp_path / "store")


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
    bits = (grey_images[500:] > 127).astype(np.uint8)
    metrics, arrays = evaluate_weights(weights, trained.cohort.runs[0], SPEC, grey_images[:500], bits)
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
    copy_finished(cohort_jobs(second, "data", trained.store, trained.store), copies)
    evaluated = finished_runs(second, copies, trained.store, SPEC)
    evaluate_cohort(evaluated, trained.data, trained.store, MACHINE, SPEC, {}, lambda _: None)
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
    write_json(trained.data / "dataset.json", info | {"sha256": {"test_labels.npy": ""}})
    with pytest.raises(UserError, match="no training labels"):
        trained.evaluate(spec)
    write_json(trained.data / "dataset.json", info | {"sha256": {"test_labels.npy": "", "train_labels.npy": ""}})
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


@pytest.mark.filterwarnings("ignore:.*input contained no data")
@pytest.mark.parametrize("content", [b"", b"step,epoch\n", b"step\nx,y\n", b"step,epoch\n1,2\n", b"\xff\xfe\n\xff"])
def test_a_damaged_history_is_named(content: bytes, trained: Trained) -> None:
    run = trained.runs()[1]
    (run.folder / HISTORY).write_bytes(content)
    with pytest.raises(UserError, match=rf"{WILD}/history\.csv: not a training history \(.*\); train the run again"):
        result_of(trained.cohort, run)


def test_a_missing_history_is_named(trained: Trained) -> None:
    run = trained.runs()[1]
    (run.folder / HISTORY).unlink()
    with pytest.raises(UserError, match=rf"{WILD}/history\.csv: not a training history"):
        result_of(trained.cohort, run)


def test_damaged_weights_spare_the_other_runs(trained: Trained) -> None:
    weights = trained.training / CALM[0] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{CALM[0]}/weights\.safetensors: not the weights of this network"):
        trained.evaluate()
    done = {run.spec.name: run.target.with_suffix(".json").exists() for run in trained.runs()}
    assert done == {CALM[0]: False, WILD: False, CALM[1]: True}


def test_evaluation_that_was_not_made_is_named(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"evaluation-[0-9a-f]{16}\.json: missing"):
        result_of(trained.cohort, trained.runs()[0])
