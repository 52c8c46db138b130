"""From scale to scale along the same trajectories: nothing is trained twice, whatever happens on the way."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.data.datasets import load_dataset
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import ASIDE
from pipeline.launch.archive import pack, unpack
from pipeline.launch.cores import run
from pipeline.launch.launcher import Project, cut
from pipeline.launch.plan import DONE
from pipeline.paths import HERE
from pipeline.records.results import ARRAYS, METRICS, RUNS, WAYPOINTS, load_results, load_under_way
from pipeline.records.run_folder import (
    HISTORY,
    HISTORY_COLUMNS,
    OPTIMIZER,
    WEIGHTS,
    Job,
    checkpoint_step,
    is_thinned,
    read_run,
    stored_waypoints,
)
from pipeline.training.train import train
from pipeline.work import interruption
from pipeline.work.interruption import Interrupted
from pipeline.work.machine import Machine
from tests.conftest import ROOT, make_images, make_run, write_dataset

EARLIER = EvaluationSpec(seed=1, num_samples=20, bound_samples=10, test_images=4, train_images=0, pruned_images=0)
LAST = replace(EARLIER, test_images=8, earlier=EARLIER)
NAME = "first-mnist-1L-T5"


def grid(overnight: int, quick: int = 25, paper: int | None = 400) -> dict[str, CohortSpec]:
    """Three scales of one trajectory, whose stages end after 10, 40, 130, 400 updates, and one that continues it."""
    cohorts = {}
    for scale, depth in (("quick", quick), ("overnight", overnight), ("paper", paper)):
        first = CohortSpec(scale, "first", NAME, (make_run(max_steps=depth),))
        then = make_run("vae", 5, 1, max_steps=15, continues=f"{scale}/{NAME}/iwae-M1-K5-s0")
        cohorts |= {first.key: first, f"{scale}/then": CohortSpec(scale, "then", "then", (then,))}
    return cohorts


def project(cohorts: dict[str, CohortSpec], scale: str, store: Path = Path(".store")) -> Project:
    chosen = tuple(cohort for cohort in cohorts.values() if cohort.scale == scale)
    return Project(cohorts, dict.fromkeys(cohorts, LAST), chosen, store, Machine(torch.device("cpu"), 2, 1e9))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data/binarized/mnist", make_images())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELBO_STORE", raising=False)


def take(cohorts: dict[str, CohortSpec], scale: str, store: Path = Path(".store")) -> Project:
    interruption.clear()
    taken = project(cohorts, scale, store)
    assert run(taken, None) == 0
    assert {item.need for item in taken.standings()} == {DONE}
    return taken


def stretches(taken: Project, key: str) -> list[tuple[int, int]]:
    """From which update to which the run of a cohort was trained at a time."""
    (job,) = taken.jobs(taken.cohorts[key])
    training = read_run(job.finished)["training"]
    return [(part["from"], part["to"]) for part in training["stretches"]]


def assert_same_runs(ours: Project, theirs: Project) -> None:
    for cohort in ours.chosen:
        for job, other in zip(ours.jobs(cohort), theirs.jobs(cohort), strict=True):
            assert job.digest == other.digest
            for name in (WEIGHTS, OPTIMIZER):
                one, two = load_file(job.finished / name), load_file(other.finished / name)
                assert one.keys() == two.keys()
                assert all(np.array_equal(one[key], two[key]) for key in one), name
            tables = [np.loadtxt(each.finished / HISTORY, delimiter=",", skiprows=1) for each in (job, other)]
            seconds = HISTORY_COLUMNS.index("seconds")
            assert np.array_equal(*(np.delete(table, seconds, axis=1) for table in tables))


def lasting(scale: str) -> dict[str, bytes]:
    """The results that are the same whenever they are made."""
    return {
        f"{key}/{name}": (HERE.cohort_results(f"{scale}/{key}") / name).read_bytes()
        for key in (NAME, "then")
        for name in (RUNS, METRICS, WAYPOINTS, ARRAYS)
    }


def test_each_scale_goes_on_from_the_last_and_ends_as_one_that_was_never_stopped() -> None:
    cohorts = grid(overnight=40)
    quick = take(cohorts, "quick")
    assert stretches(quick, f"quick/{NAME}") == [(0, 25)]
    take(cohorts, "overnight")
    # One edit: a stage more.
    cohorts = grid(overnight=130)
    overnight = take(cohorts, "overnight")
    (job,) = overnight.jobs(overnight.cohorts[f"overnight/{NAME}"])
    assert stored_waypoints(job.folder) == [130, 40, 25, 10]
    assert sum(until - start for start, until in stretches(overnight, f"overnight/{NAME}")) == 130
    results = lasting("overnight")
    shutil.rmtree("reports")
    undisturbed = take(grid(overnight=130), "overnight", Path("another-store"))
    assert stretches(undisturbed, f"overnight/{NAME}") == [(0, 130)]
    assert_same_runs(overnight, undisturbed)
    assert lasting("overnight") == results
    # What continues the run starts from its depth at the same scale.
    digests = {
        scale: project(cohorts, scale).jobs(cohorts[f"{scale}/then"])[0].digest for scale in ("quick", "overnight")
    }
    assert len(set(digests.values())) == 2


def test_waypoints_are_evaluated_as_they_are_reached_and_an_unfinished_run_shows_its_deepest() -> None:
    cohorts = grid(overnight=130)
    interruption.clear()
    overnight = project(cohorts, "overnight")
    # 200 images are 10 updates an epoch: to 40 of 130 updates.
    assert run(cut(replace(overnight, chosen=overnight.chosen[:1]), 4), None) == 0
    (under_way,) = load_under_way(Path("reports/overnight/results"))
    assert load_results(Path("reports/overnight/results")) == []
    assert (under_way.spec.total_steps, under_way.planned_steps, under_way.epochs) == (40, 130, 4)
    assert under_way.metrics["test_images"] == 4
    assert [waypoint.steps for waypoint in under_way.waypoints] == [10]
    take(cohorts, "overnight")
    assert load_under_way(Path("reports/overnight/results")) == []
    first, _ = load_results(Path("reports/overnight/results"))
    assert first.metrics["test_images"] == 8
    assert [(waypoint.steps, waypoint.metrics["test_images"]) for waypoint in first.waypoints] == [(10, 4), (40, 4)]
    assert first.waypoints[0].arrays["log_p_hat"].shape == (4,)


def go_on_a_little(job: Job) -> None:
    """Train from the deepest state until a checkpoint beyond it is there."""
    data, asked = load_dataset(HERE.binarized("mnist")), itertools.count()
    with pytest.raises(Interrupted):
        train(
            [job],
            torch.from_numpy(data.train_images),
            {"data": data.info},
            lambda _: None,
            lambda: next(asked) > 2,
            1e9,
        )


def test_a_light_archive_holds_all_that_a_begun_run_needs_to_go_on() -> None:
    """The end is that of a run that never moved, with the evaluations of waypoints that did not come along whole."""
    cohorts, key = grid(overnight=130), f"overnight/{NAME}"
    begun = project(cohorts, "overnight")
    interruption.clear()
    assert run(cut(replace(begun, chosen=begun.chosen[:1]), 4), None) == 0
    (job,) = begun.jobs(cohorts[key])
    go_on_a_little(job)
    checkpoint = checkpoint_step(job.checkpoints[0])
    assert 40 < checkpoint < 130
    whole, light = Path("whole.tar"), Path("light.tar")
    for target, evaluations in ((whole, None), (light, begun.evaluations)):
        pack(target, begun.chosen, cohorts, begun.store, HERE, evaluations)
    assert light.stat().st_size < 0.4 * whole.stat().st_size
    elsewhere = Path("elsewhere")
    assert "0 finished runs and 1 begun ones" in unpack(light, elsewhere)
    (moved,) = project(cohorts, "overnight", elsewhere).jobs(cohorts[key])
    assert [is_thinned(moved.waypoint(steps), moved.digest) for steps in (10, 40)] == [True, True]
    assert moved.steps_done == checkpoint
    shutil.rmtree("reports")
    there = take(cohorts, "overnight", elsewhere)
    assert stretches(there, key)[-1] == (checkpoint, 130)
    assert sum(until - start for start, until in stretches(there, key)) == 130
    # What is whole takes the place of what is not, and not the other way.
    unpack(whole, elsewhere)
    assert not is_thinned(moved.waypoint(40))
    assert "1 were here already" in unpack(light, elsewhere)
    assert not is_thinned(moved.waypoint(40))
    results = lasting("overnight")
    shutil.rmtree("reports")
    undisturbed = take(cohorts, "overnight", Path("another-store"))
    assert_same_runs(there, undisturbed)
    assert lasting("overnight") == results


def test_a_waypoint_without_its_state_that_was_not_evaluated_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on all the same; its results lack what nobody can measure any more."""
    cohorts = grid(overnight=130)
    begun = replace(project(cohorts, "overnight"), chosen=(cohorts[f"overnight/{NAME}"],))
    interruption.clear()
    assert run(cut(begun, 4), None) == 0
    (job,) = begun.jobs(begun.chosen[0])
    for name in (WEIGHTS, OPTIMIZER):
        (job.waypoint(10) / name).unlink()
    for path in job.folder.glob("evaluation-*"):
        path.unlink()
    interruption.clear()
    assert run(begun, None) == 0
    assert "from update 40 to 130" in capsys.readouterr().out
    (result,) = load_results(Path("reports/overnight/results"))
    assert [waypoint.steps for waypoint in result.waypoints] == [40]


def test_a_waypoint_without_its_state_is_not_called_damaged(capfd: pytest.CaptureFixture[str]) -> None:
    """Elsewhere a grid ends at a waypoint that came without its state: it is made again, and nothing is set aside."""
    cohorts = grid(overnight=130)
    begun = project(cohorts, "overnight")
    interruption.clear()
    assert run(replace(begun, chosen=begun.chosen[:1]), None) == 0
    pack(Path("light.tar"), begun.chosen, cohorts, begun.store, HERE, begun.evaluations)
    elsewhere, shallower = Path("elsewhere"), grid(overnight=40)
    unpack(Path("light.tar"), elsewhere)
    (moved,) = project(shallower, "overnight", elsewhere).jobs(shallower[f"overnight/{NAME}"])
    assert is_thinned(moved.finished, moved.digest)
    capfd.readouterr()
    there = take(shallower, "overnight", elsewhere)
    assert "warning" not in capfd.readouterr().err
    assert not list(elsewhere.rglob(ASIDE))
    shutil.rmtree("reports")
    assert_same_runs(there, take(shallower, "overnight", Path("another-store")))


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.launch.test_depths import grid, project, run
sys.exit(run(project(grid(overnight={depth}), "overnight"), None))
"""


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_it_ends_the_same(seed: int) -> None:
    chance = random.Random(seed)
    for depth in (40, 400):
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT.format(root=str(ROOT), depth=depth)],
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            time.sleep(chance.uniform(2, 8))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ours = take(grid(overnight=400), "overnight")
    results = lasting("overnight")
    shutil.rmtree("reports")
    assert_same_runs(ours, take(grid(overnight=400), "overnight", Path("another-store")))
    assert lasting("overnight") == results
