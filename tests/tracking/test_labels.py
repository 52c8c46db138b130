"""Names, params and numbers of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.experiments.spec import Stage
from pipeline.tracking.labels import description, final_metrics, run_params, run_title, schedule
from tests.tracking.example import make_spec, two_cohorts


@pytest.mark.parametrize(
    ("objective", "parameter", "beta", "alpha"),
    [
        ("vae", None, "1", None),
        ("iwae", None, "0", None),
        ("piwae", None, "0", None),
        ("ciwae", 0.05, "0.05", None),
        ("vr", 0.5, None, "0.5"),
    ],
)
def test_objectives_share_the_axis_of_beta(
    objective: str, parameter: float | None, beta: str | None, alpha: str | None
) -> None:
    params = run_params(make_spec("x", objective, 1, 1, parameter=parameter))
    assert (params.get("beta"), params.get("alpha")) == (beta, alpha)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "iwae-M1-K50-1L-s0, burda-table1, 4 epochs"),
        ({"latent": (100, 50)}, "iwae-M1-K50-2L-s0, burda-table1, 4 epochs"),
        (
            {"continues": "paper/burda-table1-mnist-1L-T1/vae-M1-K1-s0"},
            "iwae-M1-K50-1L-s0 after vae-M1-K1, burda-table1, 4 epochs",
        ),
    ],
)
def test_run_names(changes: dict[str, Any], expected: str) -> None:
    assert run_title(make_spec("iwae-M1-K50-s0", "iwae", 1, 50, **changes), "burda-table1") == expected


@pytest.mark.parametrize(
    ("objective", "name"), [("ciwae", "beta"), ("dreg", "alpha"), ("vr", "alpha"), ("removed since", "parameter")]
)
def test_a_parameter_has_the_name_that_its_estimator_gives_it(objective: str, name: str) -> None:
    params = run_params(make_spec("a", objective, 1, 5, parameter=0.25))
    assert params[name] == "0.25"
    assert name in run_params(make_spec("a", objective, 1, 5, parameter=0.0))
    assert name not in run_params(make_spec("a", objective, 1, 5))


def test_active_units_are_summed_over_layers() -> None:
    result = replace(two_cohorts()[0], metrics={"active_units_1": 20.0, "active_units_2": 6.0})
    assert final_metrics(result, None)["test/active_units"] == 26


@pytest.mark.parametrize(
    ("max_steps", "expected", "rate"),
    [
        (None, "4 epochs", "0.00072"),
        (50, "1 epoch", "0.001"),
        (40, "40 updates", "0.001"),
        (60, "60 updates", "0.00072"),
    ],
)
def test_the_schedule_in_words_and_its_rates(max_steps: int | None, expected: str, rate: str) -> None:
    """50 updates are an epoch of 1000 images; stages of 1 and 3 epochs."""
    spec = make_spec("a", "iwae", 1, 5, max_steps=max_steps)
    assert schedule(spec) == expected
    params = run_params(spec)
    assert (params["learning_rate_first"], params["learning_rate_last"]) == ("0.001", rate)


def test_runs_of_several_experiments_and_schedules_have_names_of_their_own() -> None:
    short, long = (make_spec("a", "iwae", 1, 5, schedule=(Stage(epochs, 1e-3),)) for epochs in (1, 3))
    names = [run_title(spec, experiment) for spec in (short, long) for experiment in ("x", "y")]
    assert len(set(names)) == 4


def test_params_have_what_one_filters_by() -> None:
    params = run_params(make_spec("a", "iwae", 1, 5, latent=(100, 50)))
    expected = {"batch_size": "20", "latent": "100+50", "hidden": "200+100", "adam_beta1": "0.99", "gradient": "sum"}
    assert {name: params[name] for name in expected} == expected


def test_the_experiments_note_says_which_runs_compare_with_the_paper() -> None:
    assert "`paper/delta`: ours minus the paper's, which compares only after the papers' 3280 epochs" in description(
        "overnight", "mnist"
    )
