"""Where the best M lies, as a table: for MIWAE and PIWAE, on each of the three metrics."""

from __future__ import annotations

import pandas as pd

from pipeline.records.metrics import METRIC_TABLE
from pipeline.reporting.evidence.cells import RAINFORTH_METRICS, SPLIT_OBJECTIVES, Cells, objective_name
from pipeline.reporting.evidence.optimum import optimum, papers_best, sweep_points
from pipeline.reporting.evidence.statistics import RESAMPLES
from pipeline.reporting.forms.numbers import DASH
from pipeline.reporting.forms.tables import Table

CAPTION = (
    "Best M with its interval: where it holds only M between the ends, the optimum is in the interior.\n"
    f"MNIST, 1 layer, M × K = 64. The interval holds the best M in 95 % of {RESAMPLES} resamples, in which test images "
    "are drawn anew, the same for all cells, and every cell gets an error over seeds (assumed where there is one "
    "seed). Interior: the share of resamples in which the best M is neither end of the sweep. The paper's best is that "
    "of the few values that are known of its table."
)


def optimum_table(cells: Cells) -> Table | None:
    """One row per sweep and metric; None before a whole sweep was run."""
    rows, shown, groups = [], [], []
    for objective in SPLIT_OBJECTIVES:
        for metric in RAINFORTH_METRICS:
            points = sweep_points(cells, objective, metric)
            if points is None:
                continue
            ours, paper = optimum(points, metric), papers_best(objective, metric)
            rows.append(
                {
                    "objective": objective,
                    "metric": metric,
                    "best_M": ours.best,
                    "low": ours.low,
                    "high": ours.high,
                    "interior": ours.interior,
                    "assumed_spread": ours.assumed,
                    "paper_best_M": paper,
                    **{f"share_M{M}": share for M, share in ours.shares},
                }
            )
            shown.append(
                {
                    "metric": METRIC_TABLE[metric].title,
                    "best M": str(ours.best),
                    "95 % interval": f"{ours.low} to {ours.high}",
                    "within noise of the best": ", ".join(map(str, ours.within_noise)),
                    "interior": f"{ours.interior:.0%}",
                    "paper's best M": DASH if paper is None else str(paper),
                }
            )
            groups.append(objective_name(objective))
    if not rows:
        return None
    return Table("best_m", "How sure is the best M?", CAPTION, pd.DataFrame(rows), pd.DataFrame(shown), tuple(groups))
