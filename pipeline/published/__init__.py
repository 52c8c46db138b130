"""The papers' numbers, each with its source and a tag that says how far it can be trusted.

Tags: `read` (in the paper), `quoted` (as several independent sources quote the paper) and `unverified` (remembered,
not seen: shown greyed, never judged). The values lie beside this file as CSV.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from pipeline.results import RunResult
from pipeline.spec import RunSpec

FOLDER = Path(__file__).parent
UNVERIFIED = "unverified"
BURDA_TABLES = {
    "burda-table1": "burda_table1.csv",
    "burda-table2": "burda_table2.csv",
    "burda-table3": "burda_table3.csv",
}
"""Experiment -> file. Nats: `nll` (5000 samples, test set); counts: `active_units_1`, `active_units_2`."""
RAINFORTH_TABLE = "rainforth_table1.csv"


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
    def of(result: RunResult) -> Place:
        return Place(result.experiment, result.spec.dataset, result.spec.layers, Setting.of(result.spec))


@dataclass(frozen=True)
class Published:
    """A number of a paper; `sd` is over the paper's runs (four in Rainforth, none given in Burda)."""

    value: float
    sd: float | None
    source: str
    tag: str

    @property
    def judged(self) -> bool:
        return self.tag != UNVERIFIED


def burda_table(experiment: str) -> pd.DataFrame:
    """One row a cell: dataset, layers, k, objective, nll, active_units_1, active_units_2, source, tag.

    `burda-table2` has also first_objective and first_k: what was trained before (missing in the first stage).
    """
    counts = {"active_units_1": "Int64", "active_units_2": "Int64"}
    return pd.read_csv(FOLDER / BURDA_TABLES[experiment], dtype=counts)


def rainforth_table() -> pd.DataFrame:
    """One row a number: objective, M, K, parameter, metric, value, sd (nats; over 4 runs), source, tag."""
    return pd.read_csv(FOLDER / RAINFORTH_TABLE)


@lru_cache(maxsize=1)
def published_values() -> dict[tuple[Place, str], Published]:
    """Every published number by place and metric (the keys of `RunResult.metrics`).

    `nll` and `log_p_hat` (its negative) are both there, whichever the paper prints. Burda's Table 2 is entered
    under its second stage; its first stage is Table 1's.
    """
    values: dict[tuple[Place, str], Published] = {}

    def enter(place: Place, metric: str, value: float, sd: float | None, source: str, tag: str) -> None:
        values[place, metric] = Published(value, sd, source, tag)
        mirrored = {"nll": "log_p_hat", "log_p_hat": "nll"}.get(metric)
        if mirrored is not None:
            values[place, mirrored] = Published(-value, sd, source, tag)

    for experiment in BURDA_TABLES:
        for row in burda_table(experiment).to_dict("records"):
            if experiment == "burda-table2" and pd.isna(row["first_objective"]):
                continue
            place = Place(experiment, row["dataset"], row["layers"], Setting.burda(row["objective"], row["k"]))
            for metric in ("nll", "active_units_1", "active_units_2"):
                if not pd.isna(row[metric]):
                    enter(place, metric, float(row[metric]), None, row["source"], row["tag"])
    for row in rainforth_table().to_dict("records"):
        parameter = None if pd.isna(row["parameter"]) else row["parameter"]
        place = Place("rainforth-table1", "mnist", 1, Setting(row["objective"], row["M"], row["K"], parameter))
        sd = None if pd.isna(row["sd"]) else row["sd"]
        enter(place, row["metric"], row["value"], sd, row["source"], row["tag"])
    return values


def published_at(place: Place, metric: str) -> Published | None:
    """The paper's number at a place, or None; at k = 1 the VAE and the IWAE each have their own column."""
    return published_values().get((place, metric))


def published_value(result: RunResult, metric: str = "nll") -> Published | None:
    """The paper's number for a run, or None where the papers have none. Seeds and protocols share it."""
    return published_at(Place.of(result), metric)
