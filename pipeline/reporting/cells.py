"""Runs that differ only in their seed, as one cell of a table: its mean, its errors, its verdict and its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.published import BURDA_TABLES, Place, Published, Setting
from pipeline.results import RunResult

TOLERANCE = 0.25
"""Nats within which a number counts as reproduced where the paper states no error."""
STANDARD_ERRORS = 2.0
"""Combined standard errors within which it does where the paper states one."""
PUBLISHED_RUNS = 4
"""Runs over which Rainforth's standard deviations are taken."""
ONE_SEED_NATS = 0.10
"""Standard deviation between runs that is assumed where there is one seed: Burda's code against itself."""
JUDGED_PROTOCOL = "published-code"
"""The protocol that Burda's numbers came from; Rainforth et al. used a code of their own."""
HIGHER_IS_BETTER = {"nll": False, "log_p_hat": True, "iwae_64": True, "kl_q_p": True}
PAPER_SCALE = "paper"
NOT_RUN, DIVERGED, NOT_COMPARABLE = "not run", "diverged", "not comparable"
REPRODUCED, BETTER, WORSE = "reproduced", "better", "worse"
NO_PUBLISHED, NOT_JUDGED, OTHER_PROTOCOL = "no published value", "not judged", "other protocol"

SPLITS = ((2, 32), (4, 16), (8, 8), (16, 4), (32, 2))
"""The interior (M, K) of Rainforth's sweep with M * K = 64."""
BETAS = (0.05, 0.25, 0.5, 0.75)
RAINFORTH_METRICS = ("iwae_64", "log_p_hat", "kl_q_p")

METRIC_NAMES = {"nll": "NLL", "log_p_hat": "log p̂", "iwae_64": "IWAE-64", "kl_q_p": "−KL(Q‖P)"}
DATASET_NAMES = {"mnist": "MNIST", "omniglot": "OMNIGLOT", "fixed-mnist": "MNIST, fixed binarization"}
OBJECTIVE_NAMES = {"stl": "STL", "dreg": "IWAE-DReG", "rws-dreg": "RWS-DReG", "vr": "VR", "vr-max": "VR-max"}
PARAMETER_NAMES = {"ciwae": "β", "vr": "α"}


@dataclass(frozen=True)
class Cell:
    """The runs of one place under one protocol, one a seed; diverged ones among them."""

    place: Place
    protocol: str
    runs: tuple[RunResult, ...]

    @property
    def finished(self) -> tuple[RunResult, ...]:
        return tuple(run for run in self.runs if run.status == "finished")


Cells = Mapping[Place, tuple[Cell, ...]]
"""Place -> its cells, one a protocol."""


@dataclass(frozen=True)
class Estimate:
    """A number of a cell: mean over seeds, standard error over test images, standard deviation over seeds (n > 1)."""

    value: float
    se: float | None
    seed_sd: float | None
    seeds: int


def gather(results: list[RunResult]) -> dict[Place, tuple[Cell, ...]]:
    """Group runs into cells; within a place the protocols keep the order in which they are met."""
    groups: dict[tuple[Place, str, object], list[RunResult]] = {}
    for result in results:
        key = (Place.of(result), result.spec.protocol_name, result.spec.protocol)
        groups.setdefault(key, []).append(result)
    cells: dict[Place, tuple[Cell, ...]] = {}
    for (place, protocol, _), runs in groups.items():
        ordered = tuple(sorted(runs, key=lambda run: run.spec.seed))
        cells[place] = (*cells.get(place, ()), Cell(place, protocol, ordered))
    return cells


def find(cells: Cells, place: Place) -> Cell | None:
    """The cell at a place, the first protocol's where there are several."""
    found = cells.get(place, ())
    return found[0] if found else None


def first_stage(cells: Cells, second: Cell | None, place: Place) -> Cell | None:
    """The runs that a second stage's runs continue; before it was run, whatever stands at the first stage's place."""
    continued = {run.spec.continues for run in second.runs} if second else set()
    for cell in cells.get(place, ()):
        runs = tuple(run for run in cell.runs if run.cell in continued)
        if runs:
            return Cell(cell.place, cell.protocol, runs)
    return find(cells, place)


def metric_of(run: RunResult, metric: str) -> float | None:
    """One number of a run, in nats or units; -KL(Q||P) is taken as IWAE-64 minus log p_hat. None where absent."""
    if metric == "kl_q_p":
        bound, likelihood = metric_of(run, "iwae_64"), metric_of(run, "log_p_hat")
        return None if bound is None or likelihood is None else bound - likelihood
    if metric == "active_units":
        layers = [metric_of(run, f"active_units_{layer}") for layer in range(1, run.spec.layers + 1)]
        known = [count for count in layers if count is not None]
        return sum(known) if len(known) == len(layers) else None
    value = run.metrics.get(metric)
    if value is None and metric in ("nll", "log_p_hat"):
        mirrored = run.metrics.get("log_p_hat" if metric == "nll" else "nll")
        value = None if mirrored is None else -mirrored
    return None if value is None or not np.isfinite(value) else float(value)


def run_images(run: RunResult, metric: str) -> NDArray[np.float64] | None:
    """Per-image values [test images] of a metric in nats, or None where the run has none."""
    if metric == "kl_q_p":
        bound, likelihood = run_images(run, "iwae_64"), run_images(run, "log_p_hat")
        paired = bound is not None and likelihood is not None and bound.shape == likelihood.shape
        return bound - likelihood if paired and bound is not None and likelihood is not None else None
    array = run.arrays.get("log_p_hat" if metric == "nll" else metric)
    if array is None or metric.startswith("active_units"):
        return None
    return np.asarray(-array if metric == "nll" else array, dtype=np.float64)


def images(cell: Cell, metric: str) -> NDArray[np.float64] | None:
    """Per-image values [test images] averaged over seeds; None when a seed has none or their counts disagree."""
    arrays = [array for run in cell.finished if (array := run_images(run, metric)) is not None]
    if not arrays or len(arrays) != len(cell.finished) or len({array.shape for array in arrays}) != 1:
        return None
    return np.asarray(np.mean(arrays, axis=0))


def standard_error(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def estimate(cell: Cell | None, metric: str) -> Estimate | None:
    """The cell's number over its finished seeds; None when it was not run, diverged or lacks the metric."""
    if cell is None:
        return None
    values = [value for run in cell.finished if (value := metric_of(run, metric)) is not None]
    if not values:
        return None
    per_image = images(cell, metric)
    if per_image is not None:
        se: float | None = standard_error(per_image)
    elif metric in ("nll", "log_p_hat"):
        errors = [run.metrics["nll_se"] for run in cell.finished if "nll_se" in run.metrics]
        # Seeds share their test images, so the error over images does not shrink with their number.
        se = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
    else:
        se = None
    seed_sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), se, seed_sd, len(values))


def seed_error(known: Estimate) -> float:
    """The standard error of a mean over seeds, nats; images have no part in it, since the papers used the same ones."""
    return ONE_SEED_NATS if known.seed_sd is None else float(known.seed_sd / np.sqrt(known.seeds))


def tolerance(ours: Estimate, published: Published) -> float:
    """How far ours may be from the paper's, nats: two combined standard errors where it states one, else 0.25."""
    if published.sd is None:
        return TOLERANCE
    return STANDARD_ERRORS * float(np.hypot(published.sd / np.sqrt(PUBLISHED_RUNS), seed_error(ours)))


def verdict(cell: Cell | None, metric: str, published: Published | None, scale: str) -> str:
    """Ours against the paper's: reproduced within the `tolerance`, better or worse.

    Judged at scale `paper` alone, and Burda's tables under their code's protocol alone.
    """
    ours = estimate(cell, metric)
    if cell is None:
        return NOT_RUN
    if ours is None:
        return NOT_RUN if cell.finished else DIVERGED
    if scale != PAPER_SCALE:
        return NOT_COMPARABLE
    if published is None:
        return NO_PUBLISHED
    if not published.judged:
        return NOT_JUDGED
    if cell.place.experiment in BURDA_TABLES and cell.protocol != JUDGED_PROTOCOL:
        return OTHER_PROTOCOL
    # Rounded so that a difference of exactly 0.25 in the papers' two decimals is inside.
    difference = round(ours.value - published.value, 9)
    if abs(difference) <= tolerance(ours, published):
        return REPRODUCED
    return BETTER if (difference > 0) == HIGHER_IS_BETTER[metric] else WORSE


def objective_name(objective: str) -> str:
    """The papers' name of an objective; an unknown one in capitals."""
    return OBJECTIVE_NAMES.get(objective, objective.upper())


def dataset_name(dataset: str) -> str:
    return DATASET_NAMES.get(dataset, dataset)


def layers_name(layers: int) -> str:
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def with_parameter(setting: Setting) -> str:
    """`CIWAE(β=0.5)`; the bare name where there is no parameter."""
    name = objective_name(setting.objective)
    if setting.parameter is None:
        return name
    symbol = PARAMETER_NAMES.get(setting.objective)
    return f"{name}({symbol}={setting.parameter:g})" if symbol else f"{name}({setting.parameter:g})"


def setting_name(setting: Setting) -> str:
    """`MIWAE(8, 8)`, M before K; `CIWAE(β=0.5)`, which is always one group of T samples."""
    if setting.parameter is not None and setting.M == 1:
        return with_parameter(setting)
    return f"{with_parameter(setting)}({setting.M}, {setting.K})"
