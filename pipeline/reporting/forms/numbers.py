"""Numbers as readers see them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

DASH = "–"


def minus(text: str) -> str:
    """With a true minus sign for the hyphen."""
    return text.replace("-", "−")


def number(value: float | None, signed: bool = False, decimals: int = 2) -> str:
    """A rounded number with a true minus sign; a dash for nothing."""
    if value is None or pd.isna(value):
        return DASH
    rounded = round(value, decimals) + 0.0
    return minus(f"{rounded:+.{decimals}f}" if signed else f"{rounded:.{decimals}f}")


def span(values: Sequence[float], decimals: int = 1) -> str:
    """`2.5 to 5.7`, or one number where the ends are alike."""
    ends = dict.fromkeys(number(value, decimals=decimals) for value in (min(values), max(values)))
    return " to ".join(ends)
