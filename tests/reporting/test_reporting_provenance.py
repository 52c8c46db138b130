"""Time, machines, cells and departures from the papers, from the records of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import CohortSpec
from pipeline.records.results import RunResult
from pipeline.reporting.sections import provenance

Make = Callable[..., RunResult]


def on_gpu(run: RunResult, seconds: float) -> RunResult:
    training = {**run.training, "device": "NVIDIA H200", "wall_s": seconds, "threads": 1}
    return replace(run, training=training, evaluation={"wall_s": 36.0, "device": "NVIDIA H200"})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (754, "12 min 34 s"), (18180, "5 h 03 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert provenance.duration(seconds) == text


def test_wall_time_and_data_of_a_cohort(make: Make) -> None:
    run = make()
    assert provenance.elapsed([run, run]) == 13
    assert provenance.data_sources([run, run]) == [
        ("mnist", "digest", "abc"),
        ("mnist", "sources / train-images", "sha256:0123"),
    ]


def test_stacked_runs_share_their_gpu_and_single_ones_add_up_their_cores(make: Make) -> None:
    runs = [make("vae", 5, 1), make("iwae", 1, 5)]
    assert provenance.device_hours([on_gpu(run, 7200) for run in runs]) == pytest.approx((2 + 72 / 3600, 0))
    two_threads = [replace(run, training={**run.training, "threads": 2}) for run in runs]
    assert provenance.device_hours(two_threads) == pytest.approx((0, 2 * 2 * (12.5 + 3) / 3600))


def test_the_sum_over_cohorts_stands_in_the_caption(make: Make) -> None:
    table = provenance.cohorts([on_gpu(make(), 3564), on_gpu(make("iwae", 1, 5), 7164)])
    assert list(table.display["GPU-hours"]) == ["1.00", "2.00"]
    assert list(table.display["core-hours"]) == ["–", "–"]
    assert table.caption.startswith("In all 3.00 GPU-hours.")


def test_every_cell_run_or_planned_has_its_command(make: Make) -> None:
    done, waiting = make("vae", 5, 1), make("iwae", 1, 5)
    planned = [CohortSpec("quick", "burda-table1", "burda-table1-mnist-1L-T5", (done.spec, waiting.spec))]
    table = provenance.cells([done, make("stl", 1, 50, experiment="gone")], planned)
    shown = {
        (group, row["run"]): row for group, row in zip(table.groups, table.display.to_dict("records"), strict=True)
    }
    assert len(shown) == 3
    assert shown[planned[0].key, done.spec.name]["status"] == "finished"
    assert shown[planned[0].key, waiting.spec.name]["status"] == "not run"
    for (cohort, _), row in shown.items():
        assert row["command"] == f"dvc repro evaluate@{cohort}"


def test_a_cell_says_what_computed_it(make: Make) -> None:
    plain, stacked = make("vae", 5, 1), on_gpu(make("iwae", 1, 5), 1200)
    recorded = {"command": "python -m stages.train a/b", "engine": "graph", "stacked": 4}
    stacked = replace(
        stacked,
        training={**stacked.training, **recorded},
        evaluation={**stacked.evaluation, "command": "python -m stages.evaluate a/b"},
    )
    table = provenance.cells([plain, stacked], [])
    by_run = {row["run"]: row for row in table.display.to_dict("records")}
    row = by_run[stacked.spec.name]
    # 1200 s over four runs.
    assert row["GPU minutes"] == "5.00"
    assert by_run[plain.spec.name]["GPU minutes"] == "–"
    assert (row["trained by"], row["evaluated by"]) == ("python -m stages.train a/b", "python -m stages.evaluate a/b")
    assert (row["engine"], row["digest"], row["revision"]) == ("graph", stacked.digest, "0" * 10)
    assert row["algorithm version"] == str(stacked.spec.algorithm_version)


def test_machines_are_listed_once(make: Make) -> None:
    table = provenance.machines([make(), make("iwae", 1, 5), on_gpu(make("vae", 5, 1), 10)])
    assert list(table.display["device"]) == ["cpu", "NVIDIA H200"]
    assert list(table.display["runs"]) == ["2", "1"]


def test_departures_from_the_papers_are_found_and_only_those(make: Make) -> None:
    data = {"counts": {"test_images": 10_000}}
    quick = replace(make("iwae", 1, 64, experiment="rainforth-table1"), training={"steps": 300, "data": data})
    said = " ".join(provenance.deviations([quick]))
    assert "300 updates in place of 9,774,400 (3,280 epochs)" in said
    assert "NLL over 200 of the 10,000 test images of MNIST." in said
    assert "Protocol published-code differs from the paper's text in: adam beta1, " in said
    assert "Rainforth et al. average 4 runs; here 1 of each setting" in said
    assert "tf32" not in said
    spec = replace(
        quick.spec, max_steps=None, precision="tf32", protocol_name="paper-text", protocol=PROTOCOLS["paper-text"]
    )
    spec = replace(spec, schedule=provenance.burda_schedule(rounded=True))
    runs = [replace(quick, spec=replace(spec, seed=seed), metrics={"test_images": 10_000}) for seed in range(4)]
    assert [sentence.split()[0] for sentence in provenance.deviations(runs)] == ["Matrix", "Random"]
    assert "tf32" in provenance.deviations(runs)[0]


def test_what_the_numbers_rest_on(make: Make) -> None:
    runs = [make(seed=0), make(seed=1), make("iwae", 1, 5, images=100)]
    assert provenance.measured(runs) == (
        "300 updates per run, 100 to 200 test images, 5,000 samples per image, 1 to 2 seeds"
    )
    assert provenance.measured([]) == ""
