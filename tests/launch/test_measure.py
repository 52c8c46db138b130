"""Timing the stacks of a cohort: what is found is kept as the launcher keeps speeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec
from pipeline.launch import measure as own
from pipeline.launch.plan import remembered
from pipeline.paths import HERE
from pipeline.work.machine import Machine
from tests.conftest import make_images, make_run, write_dataset

MACHINE = Machine(torch.device("cpu"), 1, 1e9)
COHORT = CohortSpec("tiny", "x", "x-mnist-1L", (make_run("vae", 1, 1), make_run(), make_run(K=5, seed=1)))
SHAPE = "1L T1-5 R3 float32"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / HERE.binarized("mnist"), make_images())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "MEASURED_SECONDS", 0.1)


def test_a_cohort_is_timed_alone_and_beside_copies() -> None:
    speeds = own.measure(COHORT, HERE.binarized("mnist"), MACHINE, (2,))
    assert speeds.shape == SHAPE
    # Torch alone takes more than a tenth of a GiB, and a step of these runs between a tenth of a millisecond and 1 s.
    assert 2**27 < speeds.peak_bytes < 2**33
    assert 1 < speeds.rate < 1e4
    assert set(speeds.together) == {2}
    assert speeds.together[2] > 0.2
    own.keep(Path("store"), MACHINE, speeds)
    assert own.kept(Path("store"), MACHINE, SHAPE, (2, 4)) == speeds
    assert own.kept(Path("store"), MACHINE, "2L T1 R1 float32") is None
    assert remembered(Path("store"), MACHINE, f"train {SHAPE}") == speeds.rate


def test_the_time_is_that_of_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample count's step time, times the updates of all of its runs, over the processes."""
    monkeypatch.setattr(own, "run_parallel", lambda task, items, workers, message, name: message(0, (0.5, 7)))
    assert own.train_steps(COHORT, Path(), MACHINE, 1) == own.CohortTiming(0.5 * 3 * 20, 7)
    assert own.train_steps(COHORT, Path(), Machine(torch.device("cpu"), 2, 1e9), 1).seconds == 15


def test_a_number_of_copies_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def parallel(task: object, items: list[object], workers: int, message: object, name: object) -> None:
        if len(items) > 1:
            raise UserError("torch.OutOfMemoryError: CUDA out of memory")
        message(0, (0.5, 7))  # type: ignore[operator]

    monkeypatch.setattr(own, "run_parallel", parallel)
    assert own.measure(COHORT, Path(), MACHINE, (2, 4)).together == {}


def test_a_cohort_whose_data_is_here_stands_for_its_shape() -> None:
    missing = CohortSpec("tiny", "y", "y-omniglot-1L", tuple(make_run("vae", 1, 1, dataset="omniglot") for _ in "ab"))
    present = CohortSpec("tiny", "z", "z-mnist-1L", tuple(make_run("vae", 1, 1) for _ in "ab"))
    alone = CohortSpec("tiny", "w", "w-omniglot-1L", (make_run("vae", 1, 1, dataset="omniglot"),))
    lines = list(own.measure_shapes([missing, present, alone], MACHINE, Path("store"), HERE))
    assert len(lines) == 2
    assert "1L T1 R2 float32: " in lines[0]
    assert "updates a second of all runs" in lines[0]
    assert lines[1] == "1L T1 R1 float32: not measured; none of its datasets is here"
