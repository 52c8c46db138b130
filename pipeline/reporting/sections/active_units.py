"""Active units by a sweep of the threshold, as a table: a row for each run and layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pipeline.records.metrics import ACTIVE_VARIANCE
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.units import NEAR, THRESHOLDS, counts, doubtful, widest_gap
from pipeline.reporting.forms.numbers import DASH
from pipeline.reporting.forms.tables import Table

CAPTION = (
    "A count that changes little from column to column does not hang on the threshold.\n"
    "Units whose posterior mean varies by more than a threshold over Burda's 500 training images;"
    f" {ACTIVE_VARIANCE:g} is the rule. Near: units within a factor of {NEAR:g} of {ACTIVE_VARIANCE:g}, which other"
    " bits may count otherwise. Gap: the widest one among the variances above which units are clearly active, and how"
    " many lie above it; that number does not hang on the bits."
)


def sweep_table(results: Sequence[RunResult]) -> Table | None:
    """None before any run was evaluated."""
    rows, shown, groups = [], [], []
    for run in results:
        for layer in range(1, run.spec.layers + 1):
            variances = run.arrays.get(f"unit_variance_{layer}")
            if variances is None:
                continue
            above, gap, near = counts(variances), widest_gap(variances), doubtful(variances)
            rows.append(
                {
                    "cohort": run.cohort,
                    "run": run.spec.name,
                    "layer": layer,
                    **{f"above_{threshold:g}": count for threshold, count in above.items()},
                    "near": near,
                    "gap_low": gap.low if gap else None,
                    "gap_high": gap.high if gap else None,
                    "above_gap": gap.above if gap else None,
                }
            )
            shown.append(
                {
                    "run": run.spec.name,
                    "layer": str(layer),
                    **{f"> {threshold:g}": str(above[threshold]) for threshold in THRESHOLDS},
                    "near": str(near),
                    "gap": f"{gap.low:.2g} to {gap.high:.2g}" if gap else DASH,
                    "above the gap": str(gap.above) if gap else DASH,
                }
            )
            groups.append(run.cohort)
    if not rows:
        return None
    title = "Does the count of active units hang on the threshold?"
    return Table("active_units", title, CAPTION, pd.DataFrame(rows), pd.DataFrame(shown), tuple(groups))
