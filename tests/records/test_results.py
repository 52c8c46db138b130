from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.experiments.schedule import history_steps, stage_ends
from pipeline.experiments.spec import CohortSpec
from pipeline.files import read_json, write_json
from pipeline.records.results import (
    COARSE,
    NATS_STEP,
    RunResult,
    Waypoint,
    cohort_results,
    in_grid,
    load_results,
    save_results,
    told_apart,
)
from pipeline.records.run_folder import HISTORY_COLUMNS
from pipeline.records.sums import sealed
from tests.conftest import make_run


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    results = [
        RunResult(
            cohort="quick/burda-table1-mnist-1L-T5",
            experiment="burda-table1",
            spec=make_run(name=name),
            digest=f"digest of {name}",
            status=status,
            training={"wall_s": 1.5, "data": {"digest": "x"}},
            evaluation={"digest": "y"},
            metrics={"nll": 90.25},
            arrays={"log_p_hat": rng.normal(-90, 9, 7).astype(np.float32), "samples": rng.random((100, 784))},
        )
        for name, status in (("b", "finished"), ("a", "diverged at step 3"))
    ]
    save_results(tmp_path / "burda-table1-mnist-1L-T5", results)
    back = {result.spec.name: result for result in load_results(tmp_path)}
    assert set(back) == {"a", "b"}
    for result in results:
        loaded = back[result.spec.name]
        assert (loaded.spec, loaded.digest, loaded.status, loaded.metrics) == (
            result.spec,
            result.digest,
            result.status,
            result.metrics,
        )
        assert loaded.scale == "quick"
        assert loaded.cell == f"quick/burda-table1-mnist-1L-T5/{result.spec.name}"
        np.testing.assert_allclose(loaded.arrays["log_p_hat"], result.arrays["log_p_hat"], atol=0.5 * NATS_STEP + 1e-6)
        np.testing.assert_allclose(loaded.arrays["samples"], result.arrays["samples"], atol=0.5 / 15 + 1e-6)


def result(cohort: str, **changes: Any) -> RunResult:
    return RunResult(cohort, "first", make_run(**changes), "digest", "finished", {}, {}, {}, {})


def test_the_grid_says_whose_results_count() -> None:
    """A cohort that was renamed, a run that was taken out, settings that were changed: none of them is a result."""
    asked = CohortSpec("tiny", "first", "first-mnist-1L-T5", (make_run(name="a"), make_run(name="b")))
    inside = [result(asked.key, name="a"), result(asked.key, name="b")]
    outside = [
        result("tiny/first-mnist-1L-T5-s7", name="a"),
        result(asked.key, name="c"),
        result("other/first-mnist-1L-T5", name="a"),
    ]
    changed = result(asked.key, name="b", max_steps=7)
    assert in_grid([*inside, *outside], [asked]) == (inside, [run.cell for run in outside])
    assert in_grid([inside[0], changed], [asked]) == (inside[:1], [changed.cell])
    under_way = replace(changed, planned_steps=20)
    assert in_grid([under_way], [asked]) == ([under_way], [])
    deeper = result(asked.key, name="b", max_steps=40)
    assert in_grid([deeper], [asked]) == ([], [deeper.cell])
    assert in_grid(inside, []) == ([], [run.cell for run in inside])


def test_what_is_left_out_is_named_up_to_a_few() -> None:
    told = told_apart(Path("results"), [f"tiny/x/{number}" for number in range(7)])
    assert "tiny/x/4 and 2 more; " in told
    assert "tiny/x/5" not in told


def test_no_results_is_an_empty_list(tmp_path: Path) -> None:
    assert load_results(tmp_path / "nowhere") == []


def test_provenance_stays_while_the_numbers_do(tmp_path: Path) -> None:
    """So that the same run, made again elsewhere, leaves the same files."""
    folder = tmp_path / "burda-table1-mnist-1L-T5"
    first = RunResult(
        cohort="quick/burda-table1-mnist-1L-T5",
        experiment="burda-table1",
        spec=make_run(),
        digest="d",
        status="finished",
        training={"wall_s": 1.5, "device": "one"},
        evaluation={"digest": "y", "wall_s": 2.0},
        metrics={"nll": 90.25},
        arrays={"log_p_hat": np.arange(7.0), "history/seconds": np.array([0.5, 1.5])},
    )
    save_results(folder, [first])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    elsewhere = replace(
        first,
        training={"wall_s": 9.0, "device": "another"},
        evaluation={"digest": "y", "wall_s": 7.0},
        arrays=first.arrays | {"history/seconds": np.array([4.5, 9.0])},
    )
    save_results(folder, [elsewhere])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for other in (
        replace(elsewhere, metrics={"nll": 90.26}),
        replace(elsewhere, arrays=elsewhere.arrays | {"log_p_hat": np.arange(7.0) + 1e-2}),
    ):
        save_results(folder, [first])
        save_results(folder, [other])
        (back,) = load_results(tmp_path)
        assert back.training["device"] == "another"
        assert back.arrays["history/seconds"].tolist() == [4.5, 9.0]


def few_results() -> RunResult:
    return RunResult(
        cohort="quick/burda-table1-mnist-1L-T5",
        experiment="burda-table1",
        spec=make_run(),
        digest="d",
        status="finished",
        training={"wall_s": 1.5, "device": "one"},
        evaluation={"digest": "y", "wall_s": 2.0},
        metrics={"nll": 90.25},
        arrays={"log_p_hat": np.arange(7.0)},
    )


def test_provenance_that_was_edited_is_named_and_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "quick/results/burda-table1-mnist-1L-T5"
    save_results(folder, [few_results()])
    path = folder / "provenance.json"
    sound = path.read_text()
    for text in (sound.replace("1.5", "7.5"), sound.replace("wall_s", "wall_5"), sound[:-9], "null", "{}", ""):
        path.write_text(text)
        with pytest.raises(
            UserError, match=r"provenance\.json: .*run `python -m stages\.evaluate quick/burda"
        ) as caught:
            cohort_results(folder)
        assert "\n" not in str(caught.value)
        save_results(folder, [few_results()])
        assert path.read_text() == sound
    path.unlink()
    with pytest.raises(UserError, match=r"provenance\.json: missing; run `python"):
        cohort_results(folder)


ENTRIES: list[Any] = [None, 3, {"training": {}}, {"training": 1, "evaluation": {}}]


# No metrics, as of a run that diverged, and no waypoints are nothing wrong.
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        *[(name, entry) for name in ("runs", "provenance") for entry in (*ENTRIES, [], {})],
        *[("metrics", entry) for entry in (*ENTRIES, [])],
        *[("waypoints", entry) for entry in ENTRIES],
    ],
)
def test_a_wrong_entry_is_blamed_on_the_file_that_has_it(name: str, entry: Any, tmp_path: Path) -> None:
    """Of results without sums, or where sums were written of what is wrong."""
    folder = tmp_path / "quick/results/burda-table1-mnist-1L-T5"
    save_results(folder, [few_results()])
    (folder / "sums.json").unlink()
    path = folder / f"{name}.json"
    content = {few_results().spec.name: entry}
    write_json(path, sealed(content) if name == "provenance" else content)
    with pytest.raises(UserError, match=rf"/{name}\.json: .*run `python -m stages\.evaluate quick/burda") as caught:
        cohort_results(folder)
    assert "\n" not in str(caught.value)


def test_provenance_without_a_sum_is_taken_and_stays_as_it_is(tmp_path: Path) -> None:
    """Results that were committed before it had one."""
    folder = tmp_path / "quick/results/burda-table1-mnist-1L-T5"
    save_results(folder, [few_results()])
    path = folder / "provenance.json"
    told = read_json(path)
    del told["sha256"]
    write_json(path, told)
    before = path.read_bytes()
    assert cohort_results(folder)[0].training["wall_s"] == 1.5
    save_results(folder, [replace(few_results(), training={"wall_s": 3.0, "device": "another"})])
    assert path.read_bytes() == before


def test_a_run_with_everything_that_the_paper_scale_keeps_takes_less_than_150_kilobytes(tmp_path: Path) -> None:
    """MNIST has most test images, and labels, and two layers most units; noise compresses worse than what is
    measured."""
    rng = np.random.default_rng(0)

    def nats(count: int) -> NDArray[np.float32]:
        return rng.normal(-90, 20, count).astype(np.float32)

    spec = make_run(train_images=59_600, max_steps=None)
    points = len(history_steps(spec))
    log_p_hat = nats(10_000)
    units = {f"unit_variance_{layer}": rng.random(count).astype(np.float32) for layer, count in ((1, 100), (2, 50))}
    arrays: dict[str, NDArray[Any]] = {
        "log_p_hat": log_p_hat,
        "iwae_64": log_p_hat - rng.gamma(2, 0.6, 10_000).astype(np.float32),
        "ess_64": rng.random(10_000).astype(np.float32),
        "bound_gaps": rng.random((100, 14)).astype(np.float16),
        "relative_variance": rng.random(100).astype(np.float32),
        **units,
        "samples": rng.random((100, 784)) * (rng.random((100, 784)) < 0.3),
        "spread/log_q_sd": nats(1_000),
        "spread/decoded_sd": nats(1_000),
        "spread/unit_log_q_sd": rng.random((100, 100)).astype(np.float32),
        "digits/decoded": rng.integers(0, 10, (1_000, 20)).astype(np.uint8),
        **{f"history/{name}": np.cumsum(rng.random(points)) for name in HISTORY_COLUMNS},
    }
    series = tuple(
        Waypoint(steps, steps / 2_980, "finished", {"seed": 1}, {"nll": 1.0}, {"log_p_hat": nats(1_000)})
        for steps in stage_ends(spec)[:-1]
    )
    result = RunResult(
        "paper/x", "x", spec, "d", "finished", {"data": {}}, {"digest": "y"}, {"nll": 90.0}, arrays, series
    )
    save_results(tmp_path / "x", [result])
    assert sum(path.stat().st_size for path in (tmp_path / "x").iterdir()) < 150_000
    (back,) = load_results(tmp_path)
    assert [waypoint.steps for waypoint in back.waypoints] == [waypoint.steps for waypoint in series]
    np.testing.assert_allclose(back.waypoints[0].arrays["log_p_hat"], series[0].arrays["log_p_hat"], atol=1e-3)
    np.testing.assert_allclose(back.arrays["log_p_hat"], arrays["log_p_hat"], atol=1e-3)
    np.testing.assert_allclose(back.arrays["iwae_64"], arrays["iwae_64"], atol=1e-3)
    for name in COARSE:
        np.testing.assert_allclose(back.arrays[name], arrays[name], rtol=2**-8 + 2**-11)
    assert back.arrays["history/seconds"].shape == (points,)


@pytest.mark.parametrize("value", [0.0, 65504.0, -65504.0, np.inf, -np.inf, np.nan])
def test_a_coarse_value_is_finite_when_it_was(value: float, tmp_path: Path) -> None:
    result = RunResult(
        "quick/x", "x", make_run(), "d", "finished", {}, {"digest": "y"}, {}, {"ess_64": np.full(2, value)}
    )
    save_results(tmp_path / "x", [result])
    (back,) = load_results(tmp_path)
    assert ("ess_64" in back.arrays) == bool(np.isfinite(value))


def test_values_that_steps_cannot_count_are_kept_as_they_are(tmp_path: Path) -> None:
    """What is no number at all is left out when it is read."""
    odd = np.array([-90.0, -1e30], np.float32)
    arrays = {"log_p_hat": odd, "iwae_64": odd, "ess_64": np.array([0.5, np.nan], np.float32)}
    result = RunResult("quick/x", "x", make_run(), "d", "finished", {}, {"digest": "y"}, {}, arrays)
    save_results(tmp_path / "x", [result])
    (back,) = load_results(tmp_path)
    for name in ("log_p_hat", "iwae_64"):
        np.testing.assert_array_equal(back.arrays[name], odd)
    assert "ess_64" not in back.arrays
