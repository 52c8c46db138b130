"""Training: stacked against solo, interrupted against unbroken, continued, diverged."""

from __future__ import annotations

import itertools
import os
import re
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
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import EvaluationSpec, RunSpec, digest, origin_of
from pipeline.objectives import OBJECTIVES
from pipeline.records.run_folder import (
    CHECKPOINT,
    HISTORY,
    HISTORY_COLUMNS,
    OPTIMIZER,
    RUN_JSON,
    WEIGHTS,
    Job,
    checkpoint_step,
    load_checkpoint,
    read_run,
    read_weights,
    stored_waypoints,
    waypoint_name,
)
from pipeline.training.train import Progress, run_lock, train
from pipeline.work.interruption import Interrupted
from pipeline.work.locks import Busy
from tests.conftest import make_run, material_of


def job_for(run: RunSpec, store: Path, continues: Path | None = None) -> Job:
    run_digest = digest(run, "data")
    return Job(run, run_digest, store / run_digest, continues)


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
    """Six samples per image, every objective, both protocols, two seeds."""
    latent = (50,) if layers == 1 else (100, 50)
    splits = {"vae": (6, 1), "miwae": (2, 3), "piwae": (3, 2)}
    runs = []
    for i, name in enumerate(OBJECTIVES):
        M, K = splits.get(name, (1, 6))
        protocol = ("published-code", "paper-text")[i % 2]
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
    spec = EvaluationSpec(seed=1, num_samples=500, bound_samples=64, test_images=40, train_images=0, pruned_images=0)
    material = material_of(grey_images, start=200)
    runs = [make_run("iwae", 1, 6), make_run("vae", 6, 1), make_run("piwae", 2, 3, seed=1)]
    runs = [replace(run, max_steps=150) for run in runs]
    stacked = [job_for(run, tmp_path / "stacked") for run in runs]
    run_all(stacked, grey_images)
    for job in stacked:
        solo = job_for(job.spec, tmp_path / "solo")
        run_all([solo], grey_images)
        ours, alone = (evaluate_weights(final_weights(j), j.spec, spec, material).metrics for j in (job, solo))
        other_noise, _ = evaluate_weights(final_weights(job), job.spec, replace(spec, seed=2), material)
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
    # 200 images are 10 updates an epoch: stages end after 10 and 40, and the run after 60.
    assert [path.name for path in sorted(broken.folder.iterdir())] == [waypoint_name(steps) for steps in (10, 40, 60)]
    for steps in (10, 40, 60):
        for name in (WEIGHTS, OPTIMIZER):
            ours, theirs = (load_file(job.waypoint(steps) / name) for job in (broken, unbroken))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_kill_while_a_waypoint_is_made_loses_nothing(
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
    assert {path.name for path in broken.finished.iterdir()} == {WEIGHTS, OPTIMIZER, HISTORY, RUN_JSON}
    assert {path.name for path in broken.folder.iterdir()} == {path.name for path in unbroken.folder.iterdir()}
    assert torch.equal(final_weights(broken), final_weights(unbroken))


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
    with pytest.raises(UserError, match=r"missing/run\.json: missing"):
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


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another run's", "emptied"])
def test_a_damaged_checkpoint_is_set_aside_and_training_goes_on_from_what_is_sound(
    damage: str, grey_images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken, job, other = (
        job_for(make_run(seed=seed, max_steps=30), tmp_path / name)
        for seed, name in ((0, "unbroken"), (0, "broken"), (1, "broken"))
    )
    run_all([unbroken], grey_images)
    for begun in (job, other):
        asked = itertools.count()
        with pytest.raises(Interrupted):
            run_all([begun], grey_images, lambda asked=asked: next(asked) == 15)  # type: ignore[misc]
    path = job.folder / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "another run's":
        content = bytearray((other.folder / CHECKPOINT).read_bytes())
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-100], "emptied": b""}.get(damage, content))
    assert stored_waypoints(job.folder) == [10]
    run_all([job], grey_images)
    assert torch.equal(final_weights(job), final_weights(unbroken))
    assert np.array_equal(history(job), history(unbroken))
    (warning,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"warning: {path}: (damaged|belongs to run).*; set aside as .*, and computed again", warning)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, HISTORY, RUN_JSON])
def test_a_damaged_waypoint_is_set_aside_and_made_again(
    name: str, grey_images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_for(make_run(max_steps=30), tmp_path)
    run_all([job], grey_images)
    before = final_weights(job)
    path = job.finished / name
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    run_all([job], grey_images)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: damaged")
    assert torch.equal(final_weights(job), before)
    assert (job.folder / "aside" / f"{job.finished.name}.1" / name).read_bytes() == content


def test_deeper_goes_on_from_shallower_bit_for_bit(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    """Depths of 25, 60 and 90 updates are one trajectory, whose every waypoint stays."""
    whole = job_for(make_run(max_steps=90), tmp_path / "whole")
    run_all([whole], grey_images)
    begun = []
    for depth in (25, 60, 90):
        job = job_for(make_run(max_steps=depth), tmp_path / "parts")
        begun.append(run_all([job], grey_images)[0].step)
        assert job.is_finished
    assert begun == [0, 25, 60]
    assert job.digest == whole.digest
    assert stored_waypoints(job.folder) == [90, 60, 40, 25, 10]
    for steps in (10, 40, 90):
        for name in (WEIGHTS, OPTIMIZER):
            ours, theirs = (load_file(each.waypoint(steps) / name) for each in (job, whole))
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), (steps, name)
    assert np.array_equal(history(job), history(whole))


def test_a_mark_of_another_depth_is_kept_on_the_way(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    deep = replace(job_for(make_run(max_steps=45), tmp_path), marks=(25, 45, 700))
    run_all([deep], grey_images)
    assert stored_waypoints(deep.folder) == [45, 40, 25, 10]
    shallow = job_for(make_run(max_steps=25), tmp_path)
    assert shallow.is_finished
    assert run_all([shallow], grey_images) == []


def test_a_shallower_depth_without_its_waypoint_is_trained_and_leaves_the_deeper_checkpoint(
    grey_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    deep, shallow = (job_for(make_run(max_steps=depth), tmp_path) for depth in (90, 25))
    asked = itertools.count()
    with pytest.raises(Interrupted):
        run_all([deep], grey_images, lambda: next(asked) == 40)
    ahead = checkpoint_step(deep.folder / CHECKPOINT)
    assert ahead > 25
    # From the waypoint at 10, itself interrupted once.
    asked = itertools.count()
    with pytest.raises(Interrupted):
        run_all([shallow], grey_images, lambda: next(asked) == 3)
    assert run_all([shallow], grey_images)[0].step > 10
    assert shallow.is_finished
    assert checkpoint_step(deep.folder / CHECKPOINT) == ahead
    assert run_all([deep], grey_images)[0].step == ahead


def test_a_run_is_trained_by_one_process(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    job, other = job_for(make_run(), tmp_path), job_for(make_run(seed=1), tmp_path)
    with run_lock(job, 0), pytest.raises(Busy, match=rf"{job.digest}.*: process {os.getpid()} is working on it"):
        run_all([job, other], grey_images)
    assert other.is_finished
    assert not job.is_finished
    run_all([job], grey_images)
    assert job.is_finished


def test_another_state_at_the_start_of_a_continued_run_is_refused(
    grey_images: NDArray[np.uint8], tmp_path: Path
) -> None:
    first = job_for(make_run(), tmp_path)
    run_all([first], grey_images)
    second = Job(make_run(continues="a/b"), "x", tmp_path / "x", first.finished, origin_of("0123", 20))
    with pytest.raises(UserError, match=rf"holds {first.digest}@20, but .* continues 0123@20"):
        run_all([second], grey_images)


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

    monkeypatch.setattr(Path, "write_bytes", full)
    job = job_for(make_run(), tmp_path)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); free some space"):
        run_all([job], grey_images)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []
