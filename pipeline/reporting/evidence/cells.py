"""Runs that differ only in their seed, as one cell of a table: its mean, its errors and its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.data.catalogue import DATASETS
from pipeline.experiments.known import RAINFORTH_TABLE1
from pipeline.published import BURDA_TABLES, Place, Setting
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.statistics import Spread

ONE_SEED_NATS = 0.10
"""Standard deviation between runs that is assumed where there is one seed, nats."""
ONE_SEED_UNITS = 1.0
"""As `ONE_SEED_NATS`, for active units of all layers together."""
IN_NATS = Spread(ONE_SEED_NATS, 18)
"""Six standard deviations over four runs each (Rainforth et al., log p-hat) pool to 0.104 [0.078, 0.153]."""
IN_UNITS = Spread(ONE_SEED_UNITS, 11)
"""Burda's ten MNIST cells, counted in Tables 1 and 3, and the OMNIGLOT cell that stands twice in Table 1, give 0.85."""
IN_KL = Spread(0.13, 15)
"""As `IN_NATS`, for −KL(Q‖P): the five standard deviations of Rainforth et al. that are quoted pool to 0.128."""
ASSUMED_SPREAD: dict[str, Spread | None] = {
    "active_units": IN_UNITS,
    "kl_q_p": IN_KL,
    "log_q_sd": None,
    "decoded_sd": None,
    "digit_changes": None,
    "ess_64": None,
}
"""Metric -> spread between seeds where a cell has one (None: nothing is known to assume); any other: `IN_NATS`."""
LEAST_SPREAD = {"active_units": 0.5}
"""Metric -> smallest standard deviation that counts as measured: equal counts are no proof that counts do not vary, and
one unit that the bits switch on or off has half a unit."""
REFUTED = 0.05
"""Level of the test by which a report's own seeds refute the assumed spread."""
NOTHING_SHOWN: Mapping[str, Spread] = {}
PAPERS_TABLES = (*BURDA_TABLES, RAINFORTH_TABLE1)
DECIDED_METRICS = ("log_p_hat", "iwae_64", "kl_q_p", "active_units", "test_minus_train")
"""Metrics of claims for which a spread is assumed where a cell has one seed."""
PAPER_SCALE = "paper"
NOT_RUN, DIVERGED = "not run", "diverged"

SPLITS = ((2, 32), (4, 16), (8, 8), (16, 4), (32, 2))
"""The interior (M, K) of Rainforth's sweep with M * K = 64."""
SPLIT_OBJECTIVES = ("miwae", "piwae")
"""Objectives whose samples may be split into M groups of K in any way."""
BETAS = (0.05, 0.25, 0.5, 0.75)
RAINFORTH_METRICS = ("iwae_64", "log_p_hat", "kl_q_p")

DATASET_NAMES = {name: info.title for name, info in DATASETS.items()}
OBJECTIVE_NAMES = {"iwae-dreg": "IWAE-DReG", "rws-dreg": "RWS-DReG", "dreg": "DReG", "vr-max": "VR-max"}
PARAMETER_NAMES = {"ciwae": "β", "dreg": "α", "vr": "α"}


@dataclass(frozen=True)
class Cell:
    """The runs of one place under one protocol, one a seed; diverged ones among them."""

    place: Place
    protocol: str
    runs: tuple[RunResult, ...]

    @property
    def finished(self) -> tuple[RunResult, ...]:
        return tuple(run for run in self.runs if run.is_finished)


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
    place_cells = cells.get(place, ())
    return place_cells[0] if place_cells else None


def first_stage(cells: Cells, second: Cell | None, place: Place) -> Cell | None:
    """The runs that a second stage's runs continue; before it was run, whatever stands at the first stage's place."""
    continued = {run.spec.continues for run in second.runs} if second else set()
    for cell in cells.get(place, ()):
        runs = tuple(run for run in cell.runs if run.cell in continued)
        if runs:
            return Cell(cell.place, cell.protocol, runs)
    return find(cells, place)


def run_images(run: RunResult, metric: str) -> NDArray[np.float64] | None:
    """Per-image values [images] of a metric in its unit, or None where the run has none."""
    if metric == "kl_q_p":
        bound, likelihood = run_images(run, "iwae_64"), run_images(run, "log_p_hat")
        paired = bound is not None and likelihood is not None and bound.shape == likelihood.shape
        return bound - likelihood if paired and bound is not None and likelihood is not None else None
    if metric == "digit_changes":
        return digit_changes(run)
    if metric in ("log_q_sd", "decoded_sd"):
        metric = f"spread/{metric}"
    array = run.arrays.get("log_p_hat" if metric == "nll" else metric)
    if array is None or metric.startswith("active_units"):
        return None
    return np.asarray(-array if metric == "nll" else array, dtype=np.float64)


def digit_changes(run: RunResult) -> NDArray[np.float64] | None:
    """Share of an image's decoded samples that show another digit, of images that the reader reads rightly."""
    if "digits/decoded" not in run.arrays:
        return None
    image, decoded = run.arrays["digits/image"], run.arrays["digits/decoded"]
    right = image == run.arrays["digits/label"]
    if not right.any():
        return None
    return np.asarray((decoded[right] != image[right, None]).mean(1), dtype=np.float64)


def images(cell: Cell, metric: str) -> NDArray[np.float64] | None:
    """Per-image values [test images] averaged over seeds; None when a seed has none or their counts disagree."""
    arrays = [array for run in cell.finished if (array := run_images(run, metric)) is not None]
    if not arrays or len(arrays) != len(cell.finished) or len({array.shape for array in arrays}) != 1:
        return None
    return np.asarray(np.mean(arrays, axis=0))


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean of `values` [images]; NaN for fewer than two, which show no spread."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def estimate(cell: Cell | None, metric: str) -> Estimate | None:
    """The cell's number over its finished seeds; None when it was not run, diverged or lacks the metric."""
    if cell is None:
        return None
    values = [value for run in cell.finished if (value := value_of(run.metrics, metric)) is not None]
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


def seed_spread(
    known: Estimate, metric: str, shown: Mapping[str, Spread] = NOTHING_SHOWN
) -> tuple[Spread | None, bool]:
    """The spread between the seeds of an estimate, and whether it is assumed for want of a second seed.

    None where there is one seed and nothing to assume. `shown`: what `spreads_shown` gives, in place of the assumption.
    """
    if known.seed_sd is None:
        return shown.get(metric, ASSUMED_SPREAD.get(metric, IN_NATS)), True
    return Spread(max(known.seed_sd, LEAST_SPREAD.get(metric, 0.0)), known.seeds - 1), False


def spreads_shown(cells: Cells) -> dict[str, Spread]:
    """Metric -> the spread that cells with several seeds show together, of metrics whose assumed one they refute.

    What is assumed rests on runs at the end of the papers' schedule; seeds of runs that stop before it differ more.
    Refuted: larger than the assumed spread by an F-test at `REFUTED`, over two cells or more, since one may be odd.
    Cells of the papers' tables count: other networks and protocols under which training fails have their own spread.
    """
    shown = {}
    in_tables = [cell for place, there in cells.items() if place.experiment in PAPERS_TABLES for cell in there]
    for metric in DECIDED_METRICS:
        assumed = ASSUMED_SPREAD.get(metric, IN_NATS)
        of_cells = [estimate(cell, metric) for cell in in_tables]
        several = [(one.seed_sd, one.seeds - 1) for one in of_cells if one is not None and one.seed_sd is not None]
        df = sum(own for _, own in several)
        if assumed is None or len(several) < 2:
            continue
        variance = sum(own * sd**2 for sd, own in several) / df
        if stats.f.sf(variance / assumed.sd**2, df, assumed.df) < REFUTED:
            shown[metric] = Spread(float(np.sqrt(variance)), df)
    return shown


def objective_name(objective: str) -> str:
    """The papers' name of an objective; an unknown one in capitals."""
    return OBJECTIVE_NAMES.get(objective, objective.upper())


def dataset_name(dataset: str) -> str:
    """The title of a dataset, `fixed-mnist` -> `MNIST, fixed binarization`; an unknown one as it is written."""
    return DATASET_NAMES.get(dataset, dataset)


def layers_name(layers: int) -> str:
    """`1 layer`, `2 layers`: how many stochastic layers a network has."""
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
