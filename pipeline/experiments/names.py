"""The names of cohorts, cells and protocols, put together and taken apart in one place. They travel as text.

cohort key    quick/burda-table1-mnist-1L-T50                     scale / cohort
cell          quick/burda-table1-mnist-1L-T50/iwae-M1-K50-s0      scale / cohort / run
protocol      published-code, shuffle = true                      whole protocol, field = value, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CohortKey:
    """Names a cohort among those of all scales."""

    scale: str
    name: str

    def __str__(self) -> str:
        return f"{self.scale}/{self.name}"

    @staticmethod
    def of(text: str) -> CohortKey:
        """Raises: ValueError when `text` is none."""
        parts = text.split("/")
        if len(parts) != 2 or not all(parts):
            raise ValueError(f"{text!r} is no cohort: one is named SCALE/COHORT")
        return CohortKey(*parts)


@dataclass(frozen=True)
class CellName:
    """Names a run of a cohort: how people talk about a result."""

    cohort: CohortKey
    run: str

    def __str__(self) -> str:
        return f"{self.cohort}/{self.run}"

    @property
    def within_scale(self) -> str:
        """`burda-table1-mnist-1L-T50/iwae-M1-K50-s0`"""
        return f"{self.cohort.name}/{self.run}"

    @staticmethod
    def of(text: str) -> CellName:
        """Raises: ValueError when `text` is none."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} is no cell: one is named SCALE/COHORT/RUN")
        return CellName(CohortKey(*parts[:2]), parts[2])


@dataclass(frozen=True)
class ProtocolName:
    """Names a protocol: a whole one, or one with some of its fields switched."""

    whole: str
    switches: tuple[tuple[str, str], ...] = ()
    """(field, value as it is written in params.yaml), in the order in which they were given."""

    def __str__(self) -> str:
        return ", ".join([self.whole, *self.details])

    @property
    def details(self) -> list[str]:
        """`shuffle = true`, one for each switch."""
        return [f"{field} = {value}" for field, value in self.switches]

    @property
    def in_run_name(self) -> str:
        """`-shuffle-true`; empty for a whole protocol."""
        return "".join(f"-{field}-{value}".replace("_", "-") for field, value in self.switches)

    @staticmethod
    def switched(whole: str, changes: Mapping[str, bool | float | str]) -> ProtocolName:
        """`changes`: the new values by field."""
        return ProtocolName(whole, tuple((field, str(value).lower()) for field, value in changes.items()))

    @staticmethod
    def of(text: str) -> ProtocolName:
        """Raises: ValueError when `text` is none."""
        whole, *details = text.split(", ")
        parts = [detail.partition(" = ") for detail in details]
        if not whole or not all(field and value for field, _, value in parts):
            raise ValueError(f"{text!r} is no protocol: one is named NAME or NAME, FIELD = VALUE")
        return ProtocolName(whole, tuple((field, value) for field, _, value in parts))
