"""Names of cohorts, cells and protocols, as text and back."""

from __future__ import annotations

import pytest

from pipeline.experiments.names import CellName, CohortKey, ProtocolName


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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("published-code", ProtocolName("published-code")),
        ("published-code, shuffle = true", ProtocolName("published-code", (("shuffle", "true"),))),
        (
            "paper-text, adam_beta1 = 0.99, gradient = sum",
            ProtocolName("paper-text", (("adam_beta1", "0.99"), ("gradient", "sum"))),
        ),
    ],
)
def test_protocols_travel_as_text(text: str, name: ProtocolName) -> None:
    assert str(name) == text
    assert ProtocolName.of(text) == name


def test_a_protocol_with_switched_fields_is_named_after_them() -> None:
    name = ProtocolName.switched("published-code", {"adam_beta1": 0.9, "shuffle": True})
    assert str(name) == "published-code, adam_beta1 = 0.9, shuffle = true"
    assert name.in_run_name == "-adam-beta1-0.9-shuffle-true"
    assert ProtocolName("paper-text").in_run_name == ""


@pytest.mark.parametrize("text", ["", ", shuffle = true", "published-code, shuffle", "published-code, shuffle = "])
def test_what_is_no_protocol_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME, FIELD = VALUE"):
        ProtocolName.of(text)
