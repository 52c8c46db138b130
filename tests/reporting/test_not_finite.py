"""A run whose numbers are none takes neither the report down nor a mean with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.records.results import LIKELIHOODS, RunResult, load_results, save_results
from pipeline.reporting.page import build_report
from tests.reporting.conftest import fabricate, fabricate_quick

VALUES = (np.nan, np.inf, -np.inf)


def through_disk(folder: Path, results: list[RunResult]) -> dict[str, RunResult]:
    cohorts: dict[str, list[RunResult]] = {}
    for result in results:
        cohorts.setdefault(result.cohort, []).append(result)
    for cohort, runs in cohorts.items():
        save_results(folder / cohort.partition("/")[2], runs)
    return {result.cell: result for result in load_results(folder)}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("value", VALUES)
def test_a_run_whose_likelihood_is_no_number_has_diverged(name: str, value: float, tmp_path: Path) -> None:
    run = fabricate()
    (loaded,) = through_disk(tmp_path, [replace(run, metrics=run.metrics | {name: value})]).values()
    assert loaded.status == "diverged at step 300"
    assert loaded.metrics == {}
    assert all(key.startswith("history/") for key in loaded.arrays)
    assert len(loaded.arrays["history/bound"]) == len(run.arrays["history/bound"])


@pytest.mark.parametrize("value", VALUES)
def test_what_else_is_no_number_is_left_out(value: float, tmp_path: Path) -> None:
    run = fabricate()
    ess, elbo = run.arrays["ess_64"].copy(), run.arrays["history/elbo"].copy()
    ess[3] = elbo[-2] = value
    changed = replace(
        run, metrics=run.metrics | {"train_nll": value}, arrays=run.arrays | {"ess_64": ess, "history/elbo": elbo}
    )
    (loaded,) = through_disk(tmp_path, [changed]).values()
    assert loaded.status == "finished"
    assert loaded.metrics == {name: number for name, number in run.metrics.items() if name != "train_nll"}
    assert loaded.arrays.keys() == run.arrays.keys() - {"ess_64"}
    # The curves end where one of them stops being one.
    assert {len(array) for name, array in loaded.arrays.items() if name.startswith("history/")} == {len(elbo) - 2}


def test_the_report_survives_any_value_that_is_none(tmp_path: Path) -> None:
    """Each run of the quick scale with another number of its poisoned."""
    results = fabricate_quick()
    metrics = list(dict.fromkeys(name for run in results for name in run.metrics))
    arrays = [name for name in results[-1].arrays if results[-1].arrays[name].dtype.kind == "f"]
    places = itertools.cycle([*(("metric", name) for name in metrics), *(("array", name) for name in arrays)])
    poisoned, blown = [], set()
    for run, (kind, name), value in zip(results, places, itertools.cycle(VALUES), strict=False):
        if kind == "metric":
            poisoned.append(replace(run, metrics=run.metrics | {name: value}))
            blown |= {run.cell} if name in LIKELIHOODS else set()
        elif name in run.arrays:
            array = np.array(run.arrays[name], dtype=np.float64)
            array.flat[-1] = value
            poisoned.append(replace(run, arrays=run.arrays | {name: array}))
        else:
            poisoned.append(run)
    loaded = through_disk(tmp_path / "results", poisoned)
    page = build_report(list(loaded.values()), "quick", tmp_path, [], ("quick",))
    text = page.read_text(encoding="utf-8")
    assert {cell for cell, run in loaded.items() if run.status != "finished"} == blown
    assert "diverged at step 300" in text
    for table in (tmp_path / "tables").glob("*.md"):
        cells = {cell.strip() for line in table.read_text().splitlines() for cell in line.split("|")}
        assert not cells & {"nan", "inf", "-inf", "−inf"}, table.name
