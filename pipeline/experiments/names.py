"""The names of cohorts and cells, put together and taken apart in one place. They travel as text.

cohort key    quick/burda-table1-mnist-1L-T50                     scale / cohort
cell          quick/burda-table1-mnist-1L-T50/iwae-M1-K50-s0      scale / cohort / run
"""

from __future__ import annotations

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
