"""Runs beside a reference: differences in NLL and active units, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from pipeline.published import published_at
from pipeline.reporting.evidence.cells import Cell, estimate
from pipeline.reporting.evidence.claims import Term, contrast

METRICS = ("nll", "active_units")


@dataclass(frozen=True)
class Compared:
    """A cell beside the one that it is compared with."""

    group: str
    label: str
    cell: Cell
    reference: Cell | None
    """None for the reference itself, and where it was not run."""


@dataclass(frozen=True)
class Difference:
    """Cell minus reference, and the half widths of its 95 % intervals."""

    value: float
    images: float
    whole: float


def difference(compared: Compared, metric: str) -> Difference | None:
    """None where there is no reference, or one of the two has no finished run."""
    cell, reference = compared.cell, compared.reference
    if reference is None:
        return None
    # Runs of one seed share their initial weights, images and noise.
    effect = contrast((Term(1, cell.place, cell), Term(-1, reference.place, reference)), metric, paired=True)
    if effect is None:
        return None
    seeds = float(scipy.stats.t.ppf(0.975, effect.seed_df)) * effect.seed_se
    images = 1.96 * effect.image_se
    return Difference(effect.value, images, float(np.hypot(images, seeds)))


def effects_data(compared: Sequence[Compared]) -> pd.DataFrame:
    """One row per cell: what it is, its NLL and active units, and their differences to the reference with intervals."""
    rows = []
    for one in compared:
        place, setting = one.cell.place, one.cell.place.setting
        nll, paper = estimate(one.cell, "nll"), published_at(place, "nll")
        row: dict[str, Any] = {
            "group": one.group,
            "label": one.label,
            "experiment": place.experiment,
            "dataset": place.dataset,
            "layers": place.layers,
            "objective": setting.objective,
            "M": setting.M,
            "K": setting.K,
            "parameter": setting.parameter,
            "protocol": one.cell.protocol,
            "seeds": len(one.cell.finished),
            "nll_se": nll.se if nll else None,
            "nll_paper": paper.value if paper else None,
            "source": paper.source if paper else None,
        }
        for metric in METRICS:
            known, effect = estimate(one.cell, metric), difference(one, metric)
            row |= {
                metric: known.value if known else None,
                f"{metric}_effect": effect.value if effect else None,
                f"{metric}_half_width_images": effect.images if effect else None,
                f"{metric}_half_width": effect.whole if effect else None,
            }
        rows.append(row)
    data = pd.DataFrame(rows)
    numbers = [column for column in data if str(column).startswith(METRICS)]
    return data.astype(dict.fromkeys(numbers, float))
