"""The two protocols against what was read in the paper and in the authors' code."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from pipeline.experiments.protocol import PROTOCOLS

READ: dict[str, tuple[Any, Any]] = {
    # field: (paper, published code)
    "adam_beta1": (0.9, 0.99),
    "adam_beta2": (0.999, 0.999),
    "adam_eps": (1e-4, 1e-4),
    "second_moment_start": (0.0, 1.0),
    "adam_lagged": (False, True),
    "adam_eps_uncorrected": (False, True),
    "gradient": ("mean", "sum"),
    "shuffle": (True, False),
    "identical_initial_layers": (False, True),
    "output_bias": (True, True),
    "hold_out": (False, True),
    "rounded_learning_rates": (False, True),
}


@pytest.mark.parametrize(("column", "name"), [(0, "paper-text"), (1, "published-code")])
def test_protocol_is_as_read(column: int, name: str) -> None:
    assert asdict(PROTOCOLS[name]) == {field: values[column] for field, values in READ.items()}


def test_there_are_two() -> None:
    assert set(PROTOCOLS) == {"paper-text", "published-code"}
