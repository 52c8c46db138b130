"""Specs as JSON, and the digest that names a run's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.experiments.protocol import PROTOCOLS, Protocol
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, RunSpec, Stage, as_computed, digest, origin_of
from pipeline.objectives import OBJECTIVES, Weights, fingerprint
from tests.conftest import make_run

CHANGES: dict[str, Any] = {
    "objective": "stl",
    "M": 2,
    "K": 6,
    "seed": 1,
    "latent": (100, 50),
    "train_images": 220,
    "protocol": PROTOCOLS["paper-text"],
    "schedule": (Stage(1, 0.5),),
    "precision": "float64",
    "algorithm_version": 3,
}
"""Another value of every field that numbers depend on; `continues` is named by the state that is continued."""
LABELS: dict[str, Any] = {
    "name": "another label",
    "objective": "miwae",
    "dataset": "fixed-mnist",
    "protocol_name": "another label",
    "max_steps": None,
    "continues": "paper/c/d",
}
"""What leaves the numbers as they are: the depth, a name of the data, of which the digest is taken in, and of an
estimator that computes the same (MIWAE with one group is IWAE)."""


def through_json(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "run",
    [
        make_run(),
        make_run("ciwae", 1, 5, latent=(100, 50), max_steps=None, continues="quick/a-mnist-2L-T5/x", precision="tf32"),
        make_run("miwae", 2, 3, protocol_name="paper-text", schedule=(Stage(2187, 1e-4),)),
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


def test_evaluation_round_trip() -> None:
    earlier = EvaluationSpec(1, 50, 10, test_images=20, train_images=0, pruned_images=0)
    for spec in (earlier, replace(earlier, test_images=None, earlier=earlier)):
        assert EvaluationSpec.from_json(through_json(asdict(spec))) == spec


def test_derived_numbers() -> None:
    run = make_run("miwae", 4, 16, latent=(100, 50), train_images=59_600, max_steps=None)
    assert (run.T, run.layers, run.steps_per_epoch) == (64, 2, 2_980)
    assert run.total_steps == 2_980 * 3_280
    shallow = replace(run, max_steps=1_000)
    assert (shallow.total_steps, shallow.scheduled_steps) == (1_000, 2_980 * 3_280)
    assert shallow.epochs == pytest.approx(1_000 / 2_980)
    assert replace(run, max_steps=10**9).total_steps == 2_980 * 3_280
    # Leftover images make no batch.
    assert replace(run, train_images=24_345).steps_per_epoch == 1_217


def test_digest_changes_with_every_field_that_numbers_depend_on() -> None:
    run = make_run("iwae")
    run_digest = digest(run, "data")
    assert len(run_digest) == 16
    # A parameter is one of an estimator that has one.
    assert {field.name for field in fields(RunSpec)} == CHANGES.keys() | LABELS.keys() | {"parameter"}
    digests = {run_digest, digest(make_run("ciwae"), "data"), digest(make_run("ciwae", parameter=0.25), "data")}
    for name, value in CHANGES.items():
        assert getattr(run, name) != value, name
        digests.add(digest(replace(run, **{name: value}), "data"))
    assert len(digests) == len(CHANGES) + 3
    for name, value in LABELS.items():
        assert getattr(run, name) != value, name
        assert digest(replace(run, **{name: value}), "data") == run_digest, name


def test_tf32_is_float32_on_a_cpu() -> None:
    run = make_run(precision="tf32")
    assert as_computed(run, "cpu") == make_run()
    assert as_computed(run, "cuda") == run
    assert as_computed(make_run(precision="bfloat16"), "cpu").precision == "bfloat16"


def test_a_corrected_estimator_is_another_run_and_a_tidied_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    run_digest = digest(make_run(), "data")
    iwae = OBJECTIVES["iwae"]

    def changed(**parts: Any) -> str:
        with monkeypatch.context() as context:
            context.setitem(OBJECTIVES, "iwae", replace(iwae, **parts))
            fingerprint.cache_clear()
            new_digest = digest(make_run(), "data")
        fingerprint.cache_clear()
        return new_digest

    def tidied(log_w: Tensor) -> Weights:
        w = torch.exp(log_w - torch.logsumexp(log_w, 1, keepdim=True)) / len(log_w)
        return Weights(w, w.clone(), w.clone())

    def corrected(part: str) -> Callable[[Tensor], Weights]:
        return lambda log_w: iwae.weights(log_w)._replace(**{part: 1.001 * getattr(iwae.weights(log_w), part)})

    assert changed(weights=tidied, source="elsewhere") == run_digest
    others = [changed(weights=corrected(part)) for part in Weights._fields]
    others.append(changed(bound=lambda log_w: iwae.bound(log_w) + 1e-4))
    assert len({run_digest, *others}) == 5


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
    # The state that is continued is a run at a depth.
    assert origin_of("x", 10) != origin_of("x", 20)


def test_digest_is_the_same_tomorrow() -> None:
    """A finished run is found under its digest: when this fails, every stored run is lost."""
    assert digest(make_run(), "data") == "a8cf5394422606fe"
