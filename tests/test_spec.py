"""Specs as JSON, and the digest that names a run's result."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from pipeline.protocol import PROTOCOLS, Protocol
from pipeline.spec import CohortSpec, RunSpec, Stage, digest
from tests.conftest import make_run

CHANGES: dict[str, Any] = {
    "objective": "miwae",
    "M": 2,
    "K": 6,
    "parameter": 0.25,
    "seed": 1,
    "dataset": "fixed-mnist",
    "latent": (100, 50),
    "train_images": 220,
    "protocol_name": "paper",
    "protocol": PROTOCOLS["paper"],
    "schedule": (Stage(1, 0.5),),
    "max_steps": None,
    "precision": "float64",
    "algorithm_version": 2,
}
"""Another value of every field that names a run's numbers; `continues` is named by the other run's digest."""


def through_json(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "run",
    [
        make_run(),
        make_run("ciwae", 1, 5, latent=(100, 50), max_steps=None, continues="quick/a-mnist-2L-T5/x", precision="tf32"),
        make_run("miwae", 2, 3, protocol_name="paper", schedule=(Stage(2187, 1e-4),)),
    ],
    ids=lambda run: run.name,
)
def test_run_round_trip(run: RunSpec) -> None:
    back = RunSpec.from_json(through_json(run.to_json()))
    assert back == run
    assert hash(back) == hash(run)
    assert digest(back, "data") == digest(run, "data")


def test_cohort_round_trip() -> None:
    runs = tuple(make_run(*split, continues="quick/b-mnist-1L-T1/c") for split in (("iwae", 1, 6), ("miwae", 2, 3)))
    cohort = CohortSpec("quick", "a", "a-mnist-1L-T6", runs)
    value = through_json(cohort.to_json())
    assert CohortSpec.from_json(value) == cohort
    assert (value["dataset"], value["continues"]) == ("mnist", "quick/b-mnist-1L-T1")
    assert (cohort.key, cohort.layers) == ("quick/a-mnist-1L-T6", 1)


def test_derived_numbers() -> None:
    run = make_run("miwae", 4, 16, latent=(100, 50), train_images=59_600, max_steps=None)
    assert (run.T, run.layers, run.steps_per_epoch) == (64, 2, 2_980)
    assert run.total_steps == 2_980 * 3_280
    assert replace(run, max_steps=1_000).total_steps == 1_000
    assert replace(run, max_steps=10**9).total_steps == 2_980 * 3_280
    # Leftover images make no batch.
    assert replace(run, train_images=24_345).steps_per_epoch == 1_217


def test_digest_changes_with_every_field_but_the_labels() -> None:
    run = make_run("iwae")
    own = digest(run, "data")
    assert len(own) == 16
    assert {field.name for field in fields(RunSpec)} == CHANGES.keys() | {"name", "continues"}
    digests = {own}
    for name, value in CHANGES.items():
        assert getattr(run, name) != value, name
        digests.add(digest(replace(run, **{name: value}), "data"))
    assert len(digests) == len(CHANGES) + 1
    assert digest(replace(run, name="another label"), "data") == own


@pytest.mark.parametrize("name", [field.name for field in fields(Protocol)])
def test_digest_changes_with_every_detail_of_the_protocol(name: str) -> None:
    run = make_run()
    value = getattr(run.protocol, name)
    other: Any = not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else "mean"
    assert other != value
    changed = replace(run, protocol=replace(run.protocol, **{name: other}))
    assert digest(changed, "data") != digest(run, "data")


def test_digest_changes_with_data_and_with_the_continued_run() -> None:
    run = make_run(continues="quick/a-mnist-1L-T1/b")
    digests = {digest(run, "data"), digest(run, "other"), digest(run, "data", "x"), digest(run, "data", "y")}
    assert len(digests) == 4
    # Where the continued run lies does not matter, only what it is.
    assert digest(replace(run, continues="paper/c/d"), "data", "x") == digest(run, "data", "x")


def test_digest_is_the_same_tomorrow() -> None:
    """A finished run is found under its digest: when this fails, every stored run is lost."""
    assert digest(make_run(), "data") == "e4645515cca319b1"
