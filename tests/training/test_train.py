"""Training: stacked against solo, interrupted against unbroken, continued, diverged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate_weights
from pipeline.objectives import OBJECTIVES
from pipeline.protocol import PROTOCOLS
from pipeline.spec import EvaluationSpec, RunSpec, digest
from pipeline.training.state import (
    CHECKPOINT,
    HISTORY,
    HISTORY_COLUMNS,
    OPTIMIZER,
    WEIGHTS,
    Job,
    load_checkpoint,
    read_run,
    read_weights,
)
from pipeline.training.train import Interrupted, Progress, train
from tests.conftest import make_run


def job_for(run: RunSpec, store: Path, continues: Path | None = None) -> Job:
    own = digest(run, "data")
    return Job(run, own, store / own, continues)


def run_all(jobs: list[Job], images: NDArray[np.uint8], stop: Callable[[], bool] = lambda: False) -> list[Progress]:
    seen: list[Progress] = []
    train(jobs, torch.from_numpy(images), {}, seen.append, stop, checkpoint_seconds=1e9)
    return seen


def final_weights(job: Job) -> torch.Tensor:
    return read_weights(job.finished / WEIGHTS, job.spec.latent)


def history(job: Job) -> NDArray[np.float64]:
    table = np.loadtxt(job.finished / HISTORY, delimiter=",", skiprows=1, ndmin=2)
    seconds = HISTORY_COLUMNS.index("seconds")
    return np.delete(table, seconds, axis=1)


def mixed_runs(layers: int, precision: str) -> list[RunSpec]:
    """Six samples an image, every objective, both protocols, two seeds."""
    latent = (50,) if layers == 1 else (100, 50)
    splits = {"vae": (6, 1), "miwae": (2, 3), "piwae": (3, 2)}
    runs = []
    for i, name in enumerate(OBJECTIVES):
        M, K = splits.get(name, (1, 6))
        protocol = ("published-code", "paper")[i % 2]
        run = make_run(name, M, K, latent=latent, precision=precision, protocol_name=protocol, seed=i % 3)
        runs.append(replace(run, name=f"{name}-{i}"))
    return runs


@pytest.mark.parametrize("layers", [1, 2])
def test_stacked_equals_solo_in_double_precision(layers: int, grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    stacked = [job_for(run, tmp_path / "stacked") for run in mixed_runs(layers, "float64")]
    run_all(stacked, grey_images)
    for job in stacked:
        solo = job_for(job.spec, tmp_path / "solo")
        run_all([solo], grey_images)
        torch.testing.assert_close(final_weights(job), final_weights(solo), rtol=0, atol=1e-10)
        np.testing.assert_allclose(history(job), history(solo), rtol=1e-7)


def test_stacked_equals_solo_in_single_precision_up_to_its_rounding(
    grey_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The likelihoods after a short training agree far within the Monte Carlo error of 500 samples."""
    spec = EvaluationSpec(seed=1, num_samples=500, bound_samples=64, test_images=40, train_images=0, pruned=False)
    bits = (grey_images[200:] > 127).astype(np.uint8)
    runs = [make_run("iwae", 1, 6), make_run("vae", 6, 1), make_run("piwae", 2, 3, seed=1)]
    runs = [replace(run, max_steps=150) for run in runs]
    stacked = [job_for(run, tmp_path / "stacked") for run in runs]
    run_all(stacked, grey_images)
    for job in stacked:
        solo = job_for(job.spec, tmp_path / "solo")
        run_all([solo], grey_images)
        ours, alone = (evaluate_weights(final_weights(j), j.spec, spec, grey_images, bits)[0] for j in (job, solo))
        other_noise, _ = evaluate_weights(final_weights(job), job.spec, replace(spec, seed=2), grey_images, bits)
        monte_carlo = abs(ours["nll"] - other_noise["nll"])
        assert abs(ours["nll"] - alone["nll"]) < max(0.02, monte_carlo)


def test_same_seed_twice_is_bit_identical(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    first, second = (job_for(make_run(), tmp_path / name) for name in ("first", "second"))
    other = job_for(make_run(seed=1), tmp_path / "first")
    for job in (first, second, other):
        run_all([job], grey_images)
    assert torch.equal(final_weights(first), final_weights(second))
    assert not torch.equal(final_weights(first), final_weights(other))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_interrupted_and_resumed_is_bit_identical(
    protocol: str, grey_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    run = make_run("miwae", 2, 3, protocol_name=protocol, max_steps=60)
    unbroken, broken = job_for(run, tmp_path / "unbroken"), job_for(run, tmp_path / "broken")
    run_all([unbroken], grey_images)
    for _ in range(2):
        checks = iter([False, True])
        with pytest.raises(Interrupted):
            run_all([broken], grey_images, lambda checks=checks: next(checks))  # type: ignore[misc]
        assert not broken.is_finished
    saved = load_checkpoint(broken.folder / CHECKPOINT)
    assert saved is not None
    assert 0 < saved.step < 60
    run_all([broken], grey_images)
    assert torch.equal(final_weights(broken), final_weights(unbroken))
    assert np.array_equal(history(broken), history(unbroken))
    for name in (WEIGHTS, OPTIMIZER, "stage-0.safetensors", "stage-1.safetensors"):
        ours, theirs = (
            load_file(job.finished / name) if (job.finished / name).exists() else {} for job in (broken, unbroken)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert (broken.finished / "stage-1.safetensors").exists()
    assert not (broken.folder / CHECKPOINT).exists()


def test_a_kill_while_the_run_directory_is_made_loses_nothing(
    grey_images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken, broken = (job_for(make_run(max_steps=45), tmp_path / name) for name in ("unbroken", "broken"))
    run_all([unbroken], grey_images)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all([broken], grey_images)
    assert not broken.is_finished
    run_all([broken], grey_images)
    names = {path.name for path in unbroken.finished.iterdir()}
    assert {path.name for path in broken.finished.iterdir()} == names >= {"stage-0.safetensors", "stage-1.safetensors"}
    assert [path.name for path in broken.folder.iterdir()] == ["run"]


def test_runs_at_different_steps_meet_again(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    """A kill between two checkpoints of one stack leaves its runs apart."""
    runs = [make_run(precision="float64", max_steps=40), make_run("vae", 5, 1, precision="float64", max_steps=30)]
    jobs = [job_for(run, tmp_path / "apart") for run in runs]
    checks = iter([False, True])
    with pytest.raises(Interrupted):
        run_all(jobs[:1], grey_images, lambda: next(checks))
    run_all(jobs, grey_images)
    for run, job in zip(runs, jobs, strict=True):
        solo = job_for(run, tmp_path / "solo")
        run_all([solo], grey_images)
        torch.testing.assert_close(final_weights(job), final_weights(solo), rtol=0, atol=1e-10)


def test_continued_run_starts_from_weights_and_adam_state(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    """20 steps and 20 more of the same objective are the 40 steps of one run."""
    constant = {"schedule": (replace(make_run().schedule[0], epochs=100),), "precision": "float64"}
    whole = job_for(make_run(max_steps=40, **constant), tmp_path / "whole")
    first = job_for(make_run(max_steps=20, **constant), tmp_path / "parts")
    run_all([whole], grey_images)
    run_all([first], grey_images)
    second = Job(make_run(max_steps=20, continues="a/b", **constant), "second", tmp_path / "second", first.finished)
    run_all([second], grey_images)
    torch.testing.assert_close(final_weights(second), final_weights(whole), rtol=0, atol=1e-12)


def test_continuing_without_weights_names_the_file(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    job = Job(make_run(continues="a/b"), "x", tmp_path / "x", tmp_path / "missing")
    with pytest.raises(UserError, match=r"missing/weights\.safetensors: missing"):
        run_all([job], grey_images)


def test_diverged_run_is_reported_and_spares_its_neighbours(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    schedule = make_run().schedule
    wild = make_run(schedule=(replace(schedule[0], learning_rate=1e30),), precision="float64", max_steps=30)
    calm = make_run("vae", 5, 1, precision="float64", max_steps=30)
    jobs = [job_for(run, tmp_path / "stack") for run in (wild, calm)]
    run_all(jobs, grey_images)
    assert read_run(jobs[0].finished)["status"].startswith("diverged at step ")
    assert read_run(jobs[1].finished)["status"] == "finished"
    solo = job_for(calm, tmp_path / "solo")
    run_all([solo], grey_images)
    torch.testing.assert_close(final_weights(jobs[1]), final_weights(solo), rtol=0, atol=1e-10)


def test_damaged_checkpoint_is_named(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    job = job_for(make_run(), tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: not a readable checkpoint .* delete it"):
        run_all([job], grey_images)


def test_history_averages_and_progress(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    job = job_for(make_run("piwae", 2, 3), tmp_path)
    progress = run_all([job], grey_images)
    rows = history(job)
    columns = [name for name in HISTORY_COLUMNS if name != "seconds"]
    table = {name: rows[:, i] for i, name in enumerate(columns)}
    assert table["step"][-1] == 20
    assert (table["elbo"] <= table["iwae"]).all()
    # PIWAE's decoder climbs the bound over all T samples.
    np.testing.assert_allclose(table["bound"], table["iwae"])
    assert progress[-1].finished
    assert sum(len(p.rows) for p in progress) == len(rows)


def test_nothing_half_written_when_the_disk_is_full(
    grey_images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.training.state.save_file", full)
    job = job_for(make_run(), tmp_path)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free some space"):
        run_all([job], grey_images)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
