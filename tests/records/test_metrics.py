"""The table of metrics, and what is made of other metrics."""

from __future__ import annotations

import math

import pytest

from pipeline.records.metrics import METRIC_TABLE, as_markdown, improves, value_of
from tests.conftest import ROOT


def test_a_metric_is_found_made_or_absent() -> None:
    metrics = {"nll": 90.0, "iwae_64": -91.0, "active_units_1": 40.0, "active_units_2": 7.0, "nll_pruned": 90.5}
    assert value_of(metrics, "nll") == 90
    assert value_of(metrics, "log_p_hat") == -90
    assert value_of({"log_p_hat": -90.0}, "nll") == 90
    assert value_of(metrics, "kl_q_p") == -1
    assert value_of(metrics, "active_units") == 47
    assert value_of({"active_units_1": 40.0}, "active_units") == 40
    assert value_of(metrics, "pruned_minus_full") == 0.5
    assert value_of(metrics, "test_minus_train") is None
    assert value_of(metrics, "elbo") is None
    assert value_of({}, "active_units") is None
    assert value_of({"nll": math.nan}, "nll") is None
    with pytest.raises(KeyError):
        value_of(metrics, "no such metric")


def test_directions() -> None:
    assert improves("nll", -0.1)
    assert not improves("nll", 0.1)
    assert improves("iwae_64", 0.1)
    with pytest.raises(ValueError, match="nll_se"):
        improves("nll_se", 0.1)


def test_whatever_is_made_of_others_is_made_of_known_ones() -> None:
    for metric in METRIC_TABLE.values():
        others = (*metric.sum_of, *(metric.difference_of or ()), *([metric.minus] if metric.minus else []))
        assert set(others) <= set(METRIC_TABLE)


def test_every_metric_says_what_it_is() -> None:
    titles = [metric.title for metric in METRIC_TABLE.values()]
    assert len(set(titles)) == len(titles)
    for metric in METRIC_TABLE.values():
        assert metric.meaning.endswith(".")
        assert metric.unit


def test_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert as_markdown() in text, "docs/metrics.md: put in what `python -m pipeline.records.metrics` prints"
