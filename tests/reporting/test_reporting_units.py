"""Counts by threshold, and the gap that does not hang on the bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipeline.records.results import RunResult
from pipeline.reporting.evidence.units import counts, doubtful, widest_gap
from pipeline.reporting.sections.active_units import sweep_table

Make = Callable[..., RunResult]


def dying_cluster(seed: int) -> np.ndarray:
    """Twenty live units, eight dying ones at .007 to .02 whose height the bits move by a third, and 22 dead ones."""
    rng = np.random.default_rng(seed)
    live, dying = np.geomspace(0.12, 1.5, 20), np.geomspace(0.0072, 0.0138, 8) * rng.uniform(0.75, 1.35, 8)
    return np.concatenate([live, dying, 10 ** rng.uniform(-6, -4, 22)])


def test_a_dying_cluster_moves_the_count_and_not_the_gap() -> None:
    drawn = [dying_cluster(seed) for seed in range(12)]
    assert {counts(variances)[0.01] for variances in drawn} != {20}
    assert (
        max(counts(variances)[0.01] for variances in drawn) - min(counts(variances)[0.01] for variances in drawn) >= 3
    )
    for variances in drawn:
        gap = widest_gap(variances)
        assert gap is not None
        assert gap.above == 20
        assert gap.high == pytest.approx(0.12)
        assert doubtful(variances) == 8


def test_after_training_the_rule_and_the_gap_agree() -> None:
    trained = np.concatenate([np.geomspace(0.1, 1, 19), np.geomspace(1e-5, 1e-3, 31)])
    gap = widest_gap(trained)
    assert gap is not None
    assert gap.above == counts(trained)[0.01] == 19
    assert (gap.low, gap.high) == (pytest.approx(1e-3), pytest.approx(0.1))
    assert doubtful(trained) == 0


def test_without_a_gap_there_is_none() -> None:
    assert widest_gap(np.geomspace(0.05, 1, 50)) is None
    assert widest_gap(np.full(50, 1e-5)) is None
    assert widest_gap(np.array([0.0, 0.5])) is not None


def test_thresholds_count_strictly_above() -> None:
    assert counts(np.array([0.001, 0.01, 0.011, 0.3])) == {
        0.001: 3,
        0.002: 3,
        0.005: 3,
        0.01: 2,
        0.02: 1,
        0.05: 1,
        0.1: 1,
    }


def test_the_table_has_a_row_a_layer(make: Make) -> None:
    one = replace(make(), arrays={"unit_variance_1": dying_cluster(0)})
    table = sweep_table([one, make("iwae", 1, 5, layers=2), make(status="diverged at step 4")])
    assert table is not None
    assert list(table.display["layer"]) == ["1", "1", "2"]
    assert (table.display.iloc[0]["above the gap"], table.display.iloc[0]["gap"].split(" to ")[1]) == ("20", "0.12")
    assert sweep_table([]) is None
