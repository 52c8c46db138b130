"""Curves of training as MLflow gets them: at most some hundred points, the same whether logged live or afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow.entities import Metric

LOGGED_CURVES = ("bound", "elbo", "iwae", "reconstruction")
LOGGED_POINTS = 200


def thin_rows(
    rows: Iterable[Mapping[str, float]], total_steps: int, after_step: float = -1
) -> list[Mapping[str, float]]:
    """The first row in each of `LOGGED_POINTS` equal stretches of the schedule, and its last step.

    Which rows are taken depends on their steps alone, so that a curve logged piece by piece equals one logged whole;
    `after_step` is the step of the row taken last.
    """
    taken = []
    last = math.floor(after_step * LOGGED_POINTS / total_steps)
    for row in rows:
        stretch = math.floor(row["step"] * LOGGED_POINTS / total_steps)
        if stretch > last:
            taken.append(row)
            last = stretch
    return taken


def saved_rows(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, float]]:
    """The arrays `history/*` as the rows that a `LiveTracker` gets."""
    columns = {name.removeprefix("history/"): array for name, array in arrays.items() if name.startswith("history/")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*(a.tolist() for a in columns.values()), strict=True)]


def curve_metrics(rows: Iterable[Mapping[str, float]], started: int) -> list[Metric]:
    """MLflow's metrics `train/<name>` of points of a curve; values that are not finite are left out.

    `rows`: one a point, with `step` (updates), `seconds` (since training began) and the columns of
    `LOGGED_CURVES`. `started`: when training began, milliseconds since 1970, from which the metrics' times count.
    """
    from mlflow.entities import Metric

    return [
        Metric(f"train/{name}", row[name], started + int(1000 * row["seconds"]), int(row["step"]))
        for row in rows
        for name in LOGGED_CURVES
        if math.isfinite(row[name])
    ]
