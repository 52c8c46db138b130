"""The papers' numbers, each with its source and a tag that says how far it can be trusted.

    read         in the paper itself, or in the source of its table
    quoted       as two or more independent sources quote the paper
    quoted once  as one source quotes it
    derived      computed from two of the paper's numbers that are quoted
    unverified   not checked against the paper: shown greyed, never judged
    read off a plot   measured in one of the paper's figures: shown likewise, never judged

The values lie beside this file as CSV. What others got who ran the same cell stands in `reruns.csv`. Those read off
Rainforth's figures are in `plots.csv`, and so far few: the sweep over every M and beta is printed as curves alone. A
row more there (with the metric `iwae_64`, `log_p_hat` or `kl_q_p`) stands hollow beside ours in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from pipeline.data.catalogue import DATASETS
from pipeline.experiments.known import BURDA_TABLE1, BURDA_TABLE2, BURDA_TABLE3, LATER_ESTIMATORS, RAINFORTH_TABLE1
from pipeline.experiments.spec import RunSpec
from pipeline.records.results import RunResult

TABLES = Path(__file__).parent
READ, QUOTED, QUOTED_ONCE, DERIVED, UNVERIFIED = "read", "quoted", "quoted once", "derived", "unverified"
READ_OFF = "read off a plot"
TAGS = (READ, QUOTED, QUOTED_ONCE, DERIVED, UNVERIFIED, READ_OFF)
BURDA_TABLES = {
    BURDA_TABLE1: "burda_table1.csv",
    BURDA_TABLE2: "burda_table2.csv",
    BURDA_TABLE3: "burda_table3.csv",
}
"""Experiment -> file. Nats: `nll` (5000 samples, test set); counts: `active_units_1`, `active_units_2`."""
RAINFORTH_TABLE = "rainforth_table1.csv"
RAINFORTH_RUNS = 4
"""Runs behind each number of Rainforth et al."""
LI_TURNER_TABLE = "li_turner.csv"
PLOTS = "plots.csv"
RERUNS = "reruns.csv"


@dataclass(frozen=True)
class Setting:
    """An objective with its sample counts: M groups of K samples, and beta or alpha where there is one."""

    objective: str
    M: int
    K: int
    parameter: float | None = None

    @property
    def T(self) -> int:
        return self.M * self.K

    @staticmethod
    def of(spec: RunSpec) -> Setting:
        return Setting(spec.objective, spec.M, spec.K, spec.parameter)

    @staticmethod
    def burda(objective: str, k: int) -> Setting:
        """Burda's k as (M, K): the VAE averages k one-sample bounds, the IWAE has one bound of k samples."""
        return Setting(objective, k, 1) if objective == "vae" else Setting(objective, 1, k)


@dataclass(frozen=True)
class Place:
    """What a published value belongs to: everything of a run that is not its seed or its protocol."""

    experiment: str
    dataset: str
    layers: int
    setting: Setting

    @staticmethod
    def rainforth(setting: Setting) -> Place:
        """In Rainforth et al., Table 1, whose networks are Burda's with one stochastic layer, on MNIST."""
        return Place(RAINFORTH_TABLE1, "mnist", 1, setting)

    @staticmethod
    def of(result: RunResult) -> Place:
        return Place(result.experiment, result.spec.dataset, result.spec.layers, Setting.of(result.spec))


@dataclass(frozen=True)
class Published:
    """A number of a paper; `sd` is over the paper's `runs` (four in Rainforth; one in Burda, without an error)."""

    value: float
    sd: float | None
    source: str
    tag: str
    runs: int = 1
    quoted_by: str = ""
    """Who quotes a number that was not read in the paper, as far as it is recorded."""

    @property
    def judged(self) -> bool:
        return self.tag not in (UNVERIFIED, READ_OFF)


def burda_experiment(dataset: str) -> str:
    """The experiment with Burda's VAE and IWAE on a dataset: Table 3 is Table 1 on the fixed binarization."""
    return BURDA_TABLE3 if DATASETS[dataset].fixed else BURDA_TABLE1


def burda_table(experiment: str) -> pd.DataFrame:
    """One row per cell: dataset, layers, k, objective, nll, active_units_1, active_units_2, source, tag.

    `burda-table2` has also first_objective and first_k: what was trained before (missing in the first stage).
    """
    counts = {"active_units_1": "Int64", "active_units_2": "Int64"}
    return pd.read_csv(TABLES / BURDA_TABLES[experiment], dtype=counts)


def rainforth_table() -> pd.DataFrame:
    """One row per number: objective, M, K, parameter, metric, value, sd (nats; over 4 runs), source, tag, quoted_by."""
    return pd.read_csv(TABLES / RAINFORTH_TABLE, keep_default_na=False, na_values={"parameter": "", "sd": ""})


def rainforth_plots() -> pd.DataFrame:
    """One row a number read off a figure: objective, M, K, parameter, metric, value (in its unit), source, tag."""
    return pd.read_csv(TABLES / PLOTS)


def li_turner_table() -> pd.DataFrame:
    """VR-max in Burda's setting: dataset, layers, k, nll (nats), source, tag."""
    return pd.read_csv(TABLES / LI_TURNER_TABLE)


@dataclass(frozen=True)
class Rerun:
    """What somebody else got for a published cell."""

    value: float | None
    """The metric's value, nats; None where only the distance is recorded."""
    distance: float
    """From the published number, nats, without a sign."""
    by: str


@lru_cache(maxsize=1)
def _reruns() -> dict[tuple[Place, str], tuple[Rerun, ...]]:
    reruns: dict[tuple[Place, str], tuple[Rerun, ...]] = {}
    for row in pd.read_csv(TABLES / RERUNS).to_dict("records"):
        parameter = None if pd.isna(row["parameter"]) else row["parameter"]
        setting = Setting(row["objective"], row["M"], row["K"], parameter)
        place = Place(row["experiment"], row["dataset"], row["layers"], setting)
        published = published_values()[place, row["metric"]]
        value = None if pd.isna(row["value"]) else float(row["value"])
        distance = float(row["distance"]) if value is None else abs(value - published.value)
        key = (place, row["metric"])
        reruns[key] = (*reruns.get(key, ()), Rerun(value, distance, row["by"]))
    return reruns


def reruns_of(place: Place, metric: str) -> tuple[Rerun, ...]:
    """What others got at a place; empty where nothing is known."""
    return _reruns().get((place, metric), ())


@lru_cache(maxsize=1)
def published_values() -> dict[tuple[Place, str], Published]:
    """Every published number by place and metric (the keys of `RunResult.metrics`).

    `nll` and `log_p_hat` (its negative) are both there, whichever the paper prints. Burda's Table 2 is entered
    under its second stage; its first stage is Table 1's.
    """
    values: dict[tuple[Place, str], Published] = {}

    def enter(place: Place, metric: str, published: Published) -> None:
        values[place, metric] = published
        mirrored = {"nll": "log_p_hat", "log_p_hat": "nll"}.get(metric)
        if mirrored is not None:
            values[place, mirrored] = replace(published, value=-published.value)

    for experiment in BURDA_TABLES:
        for row in burda_table(experiment).to_dict("records"):
            if experiment == BURDA_TABLE2 and pd.isna(row["first_objective"]):
                continue
            place = Place(experiment, row["dataset"], row["layers"], Setting.burda(row["objective"], row["k"]))
            for metric in ("nll", "active_units_1", "active_units_2"):
                if not pd.isna(row[metric]):
                    enter(place, metric, Published(float(row[metric]), None, row["source"], row["tag"]))
    for row in rainforth_plots().to_dict("records"):
        parameter = None if pd.isna(row["parameter"]) else row["parameter"]
        place = Place.rainforth(Setting(row["objective"], row["M"], row["K"], parameter))
        enter(place, row["metric"], Published(row["value"], None, row["source"], row["tag"], RAINFORTH_RUNS))
    # After the figures, whose numbers a table's are better than.
    for row in rainforth_table().to_dict("records"):
        parameter = None if pd.isna(row["parameter"]) else row["parameter"]
        place = Place.rainforth(Setting(row["objective"], row["M"], row["K"], parameter))
        sd = None if pd.isna(row["sd"]) else row["sd"]
        published = Published(row["value"], sd, row["source"], row["tag"], RAINFORTH_RUNS, row["quoted_by"])
        enter(place, row["metric"], published)
    for row in li_turner_table().to_dict("records"):
        place = Place(LATER_ESTIMATORS, row["dataset"], row["layers"], Setting("vr-max", 1, row["k"]))
        enter(place, "nll", Published(row["nll"], None, row["source"], row["tag"]))
    return values


def published_at(place: Place, metric: str) -> Published | None:
    """The paper's number at a place, or None; at k = 1 the VAE and the IWAE each have their own column."""
    return published_values().get((place, metric))


def published_value(result: RunResult, metric: str = "nll") -> Published | None:
    """The paper's number for a run, or None where the papers have none. Seeds and protocols share it."""
    return published_at(Place.of(result), metric)
