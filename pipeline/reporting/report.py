"""What every section of a report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.experiments.spec import CohortSpec
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import PAPER_SCALE, Cells
from pipeline.reporting.evidence.claims import ClaimResult
from pipeline.reporting.evidence.toy import ToyResult


@dataclass(frozen=True)
class Report:
    """The results of a scale, gathered and decided once, which every section reads."""

    scale: str
    judged: bool
    """Whether the papers' claims are decided on the scale's numbers."""
    results: list[RunResult]
    """As deep as the scale takes them."""
    under_way: list[RunResult]
    """On their way: as they were where they were last evaluated."""
    cells: Cells
    claims: list[ClaimResult]
    toy: ToyResult | None
    planned: Sequence[CohortSpec]
    """The scale's grid, run or not."""
    results_folder: Path
    """`reports/<scale>/results`"""

    @property
    def comparable(self) -> bool:
        """Whether numbers are judged against the papers'."""
        return self.scale == PAPER_SCALE
