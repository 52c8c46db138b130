"""A small project, worked on in this process: its parameters, its stages, and all its numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.experiments import grid
from pipeline.experiments.params import load_params
from pipeline.paths import HERE, Paths
from pipeline.records.results import cohort_results
from pipeline.records.run_folder import read_weights
from pipeline.records.shipped import shipped_weights
from pipeline.reporting.evidence.toy import load_toy
from pipeline.reporting.sections.ais import opinions
from stages import evaluate, train, weights
from tests.experiments.test_params import SMALL

COHORT, RUN = "small/first-mnist-1L", "iwae-M1-K4-s0"
AIS = (COHORT, RUN, "--images", "2", "--steps", "2", "--chains", "2")
PARAMS: dict[str, Any] = {
    **SMALL,
    "workers": 1,
    "experiments": {
        "first": {
            "T": [1, 4],
            "one_cohort": True,
            "settings": [{"objective": "vae"}, {"objective": "iwae", "K": 4}],
        }
    },
    "scales": {
        "small": {
            **SMALL["scales"]["small"],
            "toy": {"seed": 0, "samples": [1, 2, 4], "gradients": 16},
            "experiments": {"first": {"datasets": ["mnist"], "layers": [1]}},
        },
    },
}

Numbers = dict[str, Any]


class Silent:
    """In place of MLflow while runs train."""

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


def call(main: Callable[[], None], *words: str) -> None:
    before, sys.argv = sys.argv, ["stage", *words]
    try:
        main()
    finally:
        sys.argv = before


def stage(main: Callable[[Paths], None], *words: str) -> None:
    call(partial(main, HERE), *words)


def run_all() -> None:
    """What `dvc repro` and `make weights` do for a cohort, in this process; of its data what is named is done anew."""
    grid.check_in_step(load_params(HERE.params), HERE.cohorts)
    stage(train.main, COHORT)
    stage(evaluate.main, COHORT)
    stage(weights.main, "small")


def numbers() -> Numbers:
    """All that reports, MLflow and `make verify-results` are made from."""
    outcome: Numbers = {}
    for result in cohort_results(HERE.cohort_results(COHORT)):
        shipped = read_weights(shipped_weights(result, HERE), result.spec.latent)
        waypoints = [(waypoint.steps, waypoint.metrics) for waypoint in result.waypoints]
        outcome[result.spec.name] = (result.metrics, result.arrays["log_p_hat"].tolist(), waypoints, shipped.tolist())
    outcome["toy"] = load_toy(HERE.results("small")).metrics
    looked_at = opinions(HERE.results("small"))
    outcome["ais"] = [(one["run"], one["digest"], one["summary"], one["images"]) for one in looked_at]
    return outcome


def provenance() -> list[dict[str, Any]]:
    """How the runs were made. A run that is trained again has other times."""
    return [result.training | result.evaluation for result in cohort_results(HERE.cohort_results(COHORT))]
