"""The names by which reports know experiments are those of params.yaml."""

from __future__ import annotations

from pipeline.data.catalogue import DATASETS
from pipeline.experiments.known import BURDA_FROM_SCRATCH, BURDA_TABLE2, KNOWN
from pipeline.experiments.params import load_params
from pipeline.published import BURDA_TABLES, burda_experiment, published_values
from tests.conftest import ROOT


def test_params_yaml_has_every_experiment_that_reports_know() -> None:
    assert set(KNOWN) == set(load_params(ROOT / "params.yaml").experiments)
    assert len(set(KNOWN)) == len(KNOWN)


def test_published_numbers_stand_at_known_experiments() -> None:
    assert set(BURDA_TABLES) == {*BURDA_FROM_SCRATCH, BURDA_TABLE2} <= set(KNOWN)
    assert {place.experiment for place, _ in published_values()} <= set(KNOWN)


def test_each_dataset_stands_in_the_table_that_prints_it() -> None:
    printed = {
        place.dataset: place.experiment for place, _ in published_values() if place.experiment in BURDA_FROM_SCRATCH
    }
    assert {dataset: burda_experiment(dataset) for dataset in DATASETS} == printed
