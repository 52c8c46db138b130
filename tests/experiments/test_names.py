"""Names of cohorts and cells, as text and back."""

from __future__ import annotations

import pytest

from pipeline.experiments.names import CellName, CohortKey


def test_names_travel_as_text() -> None:
    cell = CellName.of("quick/burda-table1-mnist-1L-T50/iwae-M1-K50-s0")
    assert cell == CellName(CohortKey("quick", "burda-table1-mnist-1L-T50"), "iwae-M1-K50-s0")
    assert str(cell) == "quick/burda-table1-mnist-1L-T50/iwae-M1-K50-s0"
    assert cell.within_scale == "burda-table1-mnist-1L-T50/iwae-M1-K50-s0"
    assert CohortKey.of(str(cell.cohort)) == cell.cohort


@pytest.mark.parametrize("text", ["", "quick", "quick/", "/name", "a/b/c"])
def test_what_is_no_cohort_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SCALE/COHORT"):
        CohortKey.of(text)


@pytest.mark.parametrize("text", ["", "a/b", "a/b/", "a//c", "a/b/c/d"])
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SCALE/COHORT/RUN"):
        CellName.of(text)
