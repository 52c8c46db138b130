"""Shipped weights: which are chosen, and that the check of an NLL fails when anything is not what it was."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_run
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import read_json, sha256_file, write_json
from pipeline.paths import HERE
from pipeline.records import shipped
from pipeline.records.results import NATS_STEP, RESULT_FILES, RunResult, load_result, load_results
from pipeline.records.sealed import load_tensors, save_tensors
from pipeline.records.shipped import WEIGHTS_INDEX, check_nll, select, ship, shipped_cells, shipped_weights
from pipeline.records.store import cohort_jobs
from pipeline.records.sums import read_sealed, sealed, write_sums
from pipeline.training.train import train
from pipeline.work.cohort import evaluate_waiting
from pipeline.work.machine import Machine
from stages import verify, weights
from tests.conftest import make_run, write_dataset
from tests.reporting.conftest import fabricate

CPU = torch.device("cpu")
COHORT, RUN, OTHER = "tiny/first-mnist-1L-T5", "iwae-M1-K5-s0", "vae-M5-K1-s0"
CELL = f"{COHORT}/{RUN}"
# 50 of 100 test images: blocks of 20, 20 and 10.
SPEC = EvaluationSpec(seed=1, num_samples=130, bound_samples=64, test_images=50, train_images=0, pruned_images=0)
STORE = Path(".store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, their results, and their weights shipped."""
    from tests.conftest import make_images

    folder = tmp_path_factory.mktemp("shipped")
    write_dataset(folder / "data/binarized/mnist", make_images())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cohort = CohortSpec("tiny", "first", "first-mnist-1L-T5", (make_run(), make_run("vae", 5, 1)))
        write_json(Path(f"cohorts/{COHORT}.json"), cohort.to_json())
        data = load_dataset(Path("data/binarized/mnist"))
        jobs = cohort_jobs(cohort, {cohort.key: cohort}, data.digest, STORE, Path("runs"), "cpu")
        train(jobs, torch.from_numpy(data.train_images), {"data": data.info}, lambda _: None, lambda: False, 1e9)
        runs = [finished_run(job.finished, job.spec, STORE, SPEC) for job in jobs]
        assert evaluate_waiting(cohort, runs, STORE, HERE, Machine(CPU, 1, 1e9), {}) == 2
        ship(load_results(Path("reports/tiny/results")), "tiny", STORE, HERE)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder: what a fresh clone with data has."""
    for name in ("data", "reports", "cohorts"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "known_scale", lambda name, paths: name)
    return tmp_path


def result() -> RunResult:
    return load_result(HERE.cohort_results(COHORT), RUN)


def check(images: int = 50) -> shipped.Check:
    return check_nll(result(), shipped_weights(result(), HERE), load_dataset(Path("data/binarized/mnist")), images, CPU)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("asked", "images"), [(1, 1), (20, 20), (21, 21), (50, 50), (1000, 50)])
def test_the_committed_numbers_come_out_again(asked: int, images: int) -> None:
    comparison = check(asked)
    assert (comparison.images, comparison.total) == (images, 50)
    # Committed values are rounded, and rounding is all that is beyond the 1e-4 of another order of sums.
    assert comparison.largest < 0.5 * NATS_STEP + 1e-4
    assert comparison.difference == pytest.approx(0, abs=0.5 * NATS_STEP / np.sqrt(comparison.images) + 1e-4)
    assert comparison.agrees
    if images == 50:
        assert comparison.nll == pytest.approx(result().metrics["nll"], abs=1e-4)


def tampered(path: Path, change: float) -> None:
    tensors, content = load_tensors(path)
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_tensors(path, {**tensors, name: tensors[name] * (1 + change)}, result().digest, content)


def test_tampered_weights_are_refused(here: Path) -> None:
    path = shipped_weights(result(), HERE)
    tampered(path, 1e-6)
    with pytest.raises(UserError, match=r"s0\.safetensors: not the file that was shipped .*`git checkout .* brings"):
        shipped_weights(result(), HERE)
    path.unlink()
    with pytest.raises(UserError, match=r"iwae-M1-K5-s0\.safetensors: missing; `git checkout"):
        shipped_weights(result(), HERE)


def test_tampered_weights_with_a_sum_to_match_do_not_agree(here: Path) -> None:
    path = shipped_weights(result(), HERE)
    tampered(path, 0.02)
    change_index(sha256=sha256_file(path))
    assert not check().agrees


@pytest.mark.usefixtures("here")
def test_other_committed_values_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = result()
    values = committed.arrays["log_p_hat"].copy()
    values[3] += 0.05
    changed = replace(committed, arrays={**committed.arrays, "log_p_hat": values})
    data = load_dataset(Path("data/binarized/mnist"))
    assert not check_nll(changed, shipped_weights(committed, HERE), data, 50, CPU).agrees


@pytest.mark.usefixtures("here")
def test_a_table_that_shows_another_number_does_not_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Edited in metrics.json, with a sum to match: the images one by one are what they were."""
    folder = HERE.cohort_results(COHORT)
    metrics = read_json(folder / "metrics.json")
    metrics[RUN]["nll"] -= 0.5
    write_json(folder / "metrics.json", metrics)
    write_sums(folder, RESULT_FILES)
    assert check().images_agree
    assert not check().agrees
    with pytest.raises(UserError, match=r"iwae-M1-K5-s0: does not agree: the NLL in tables is .*, the mean over"):
        command(monkeypatch, capsys, CELL)


@pytest.mark.usefixtures("here")
def test_images_that_are_not_here_are_made_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, elsewhere = here / "data", here / "elsewhere"
    data.rename(elsewhere)
    asked: list[list[str]] = []

    def dvc(words: list[str], check: bool) -> None:
        asked.append(words[1:])
        elsewhere.rename(data)

    monkeypatch.setattr("stages.verify.subprocess.run", dvc)
    output = command(monkeypatch, capsys, CELL)
    assert "mnist: its images are not here yet" in output
    assert "agrees:" in output
    assert "not here yet" not in command(monkeypatch, capsys, CELL)
    assert asked == [["-m", "dvc", "repro", "--quiet", "binarize@mnist"]]


@pytest.mark.usefixtures("here")
def test_an_evaluation_on_another_device_is_held_to_the_same_numbers() -> None:
    committed = result()
    data = load_dataset(Path("data/binarized/mnist"))
    elsewhere = replace(committed, evaluation={**committed.evaluation, "device": "NVIDIA H200"})
    assert check_nll(elsewhere, shipped_weights(committed, HERE), data, 50, CPU).agrees
    other_noise = replace(committed, evaluation={**committed.evaluation, "seed": 7})
    assert not check_nll(other_noise, shipped_weights(committed, HERE), data, 50, CPU).agrees


def test_other_data_is_refused(here: Path) -> None:
    info = here / "data/binarized/mnist/dataset.json"
    write_json(info, {**read_json(info), "digest": "another"})
    with pytest.raises(UserError, match="mnist here is not the data that it was evaluated on"):
        check()
    shutil.rmtree(here / "data")
    with pytest.raises(UserError, match=r"dataset\.json: missing; run `dvc repro binarize@mnist`"):
        check()


def test_weights_of_another_run_are_refused(here: Path) -> None:
    change_index(digest="0123")
    with pytest.raises(UserError, match="weights of run 0123, results of"):
        shipped_weights(result(), HERE)


@pytest.mark.usefixtures("here")
def test_what_is_shipped_stays_where_the_runs_are_not_there() -> None:
    index = HERE.weights("tiny") / WEIGHTS_INDEX
    before = index.read_bytes()
    assert set(read_sealed(index, "")) == {CELL, f"{COHORT}/{OTHER}"}
    (line,) = ship(load_results(Path("reports/tiny/results")), "tiny", STORE, HERE)
    assert "weights of 2 runs, 3.4 of at most 6 MB" in line
    assert index.read_bytes() == before


@pytest.mark.usefixtures("here")
def test_an_index_without_a_sum_is_taken_and_stays_as_it_is() -> None:
    """Weights that were shipped before the index had one."""
    index = HERE.weights("tiny") / WEIGHTS_INDEX
    write_json(index, read_sealed(index, ""))
    before = index.read_bytes()
    assert shipped_weights(result(), HERE).name == f"{RUN}.safetensors"
    ship(load_results(Path("reports/tiny/results")), "tiny", STORE, HERE)
    assert index.read_bytes() == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", ["", "null", "[]", '{"a": 1}', '{"a": {"file": "x"}}', None])
def test_a_damaged_index_is_named_and_nothing_shipped_is_lost(text: str | None) -> None:
    index = HERE.weights("tiny") / WEIGHTS_INDEX
    sound = index.read_text()
    index.write_text(sound.replace("safetensors", "safetensor5", 1) if text is None else text)
    weights = sorted(index.parent.rglob("*.safetensors"))
    committed = result()
    for read in (
        lambda: shipped_cells(HERE),
        lambda: shipped_weights(committed, HERE),
        lambda: ship([committed], "tiny", STORE, HERE),
    ):
        with pytest.raises(
            UserError, match=r"index\.json: .*; `git checkout reports/tiny/weights/index\.json`"
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert sorted(index.parent.rglob("*.safetensors")) == weights


def change_index(**changes: str) -> None:
    """Edit what the index says of the cell, and its sum with it."""
    index = HERE.weights("tiny") / WEIGHTS_INDEX
    value = read_sealed(index, "")
    write_json(index, sealed({**value, CELL: {**value[CELL], **changes}}))


def test_room_is_kept_to_and_rows_come_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "OTHER_MEGABYTES", 2.0)
    assert ship(load_results(Path("reports/tiny/results")), "tiny", STORE, HERE) == [
        "reports/tiny/weights: weights of 1 runs, 1.7 of at most 2 MB"
    ]
    # One table row: the IWAE stands for it, and the file of the other is gone.
    assert shipped_cells(HERE) == [CELL]
    assert [path.name for path in HERE.weights("tiny").rglob("*.safetensors")] == [f"{RUN}.safetensors"]
    monkeypatch.setattr(shipped, "OTHER_MEGABYTES", 1.0)
    with pytest.raises(UserError, match="tiny: no weights of finished runs"):
        ship(load_results(Path("reports/tiny/results")), "tiny", STORE, HERE)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("listed", [False, True])
def test_rows_without_room_are_counted_and_named_on_request(
    listed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "OTHER_MEGABYTES", 2.0)
    # Each run a table row of its own.
    monkeypatch.setattr(shipped, "_row", lambda result: (result.spec.name,))
    monkeypatch.setattr(sys, "argv", ["weights", "tiny", *(["--list"] if listed else [])])
    weights.main(HERE)
    _, said, *named = capsys.readouterr().out.splitlines()
    assert said.startswith("1 table row has no weights there: no room within 2 MB")
    assert ("--list names it" in said) != listed
    assert named == ([f"  {COHORT}/{OTHER}"] if listed else [])


def test_selection_serves_each_row_and_protocol_before_any_a_second_time() -> None:
    iwae, vae = fabricate("iwae", 1, 5), fabricate("vae", 5, 1)
    other = replace(iwae, spec=replace(iwae.spec, protocol_name="paper-text"))
    omniglot = fabricate("iwae", 1, 5, dataset="omniglot")
    deep = fabricate("iwae", 1, 5, layers=2)
    rainforth = [
        fabricate(name, M, K, experiment="rainforth-table1") for name, M, K in (("miwae", 8, 8), ("vae", 64, 1))
    ]
    wild = fabricate("iwae", 1, 50, status="diverged at step 3")
    order = select([vae, *rainforth, omniglot, iwae, wild, deep, other])
    assert order[:5] == [iwae, other, deep, *rainforth]
    assert order[5:] == [vae, omniglot]


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["verify", *words])
    verify.main(HERE)
    return capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = command(monkeypatch, capsys, "--images", "20")
    assert f"{CELL}: NLL " in output
    assert "recomputed on 20 of 50 test images (130 samples), committed " in output
    assert "agrees: each image may differ by 0.0100 nats" in output
    assert f"choose another: make verify-results CELL=... IMAGES=...; shipped are\n  {CELL}" in output
    assert "choose another" not in command(monkeypatch, capsys, CELL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/first-mnist-1L-T5/piwae-M1-K5-s0"], "has no run 'piwae-M1-K5-s0'; known: iwae-M1-K5-s0, vae-M5-K1-s0"),
        (["tiny/second/x"], "results/second: no results of such a cohort; known beside it: first-mnist-1L-T5"),
        (["nope"], f"'nope' is no cell: one is named SCALE/COHORT/RUN; weights are shipped of: {CELL}"),
        (["--images", "0"], "--images 0: must be at least 1"),
    ],
)
@pytest.mark.usefixtures("here")
def test_command_refuses(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        command(monkeypatch, capsys, *words)
    assert message in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_gpu_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda was asked for, but torch .* sees no CUDA GPU here"):
        command(monkeypatch, capsys, "--device", "cuda")


def test_runs_that_the_grid_does_not_ask_for_are_not_shipped(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here / f"cohorts/{COHORT}.json"
    cohort = read_json(path)
    cohort["runs"] = [run for run in cohort["runs"] if run["name"] != RUN]
    write_json(path, cohort)
    monkeypatch.setattr(sys, "argv", ["weights", "tiny"])
    weights.main(HERE)
    told = capsys.readouterr()
    assert f"not in the grid of cohorts/, so left out: {CELL};" in told.err
    assert "weights of 1 runs" in told.out
    assert shipped_cells(HERE) == [f"{COHORT}/{OTHER}"]


def test_command_without_weights(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(HERE.weights("tiny"))
    monkeypatch.setattr(sys, "argv", ["verify"])
    with pytest.raises(UserError, match="no weights are shipped here; `make weights`"):
        verify.main(HERE)
    monkeypatch.setattr(sys, "argv", ["weights", "tiny"])
    with pytest.raises(UserError, match="tiny: no weights of finished runs"):
        weights.main(HERE)
