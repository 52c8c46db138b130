"""The weights of a finished run, wherever they are: where it was trained, else shipped with the reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohort
from pipeline.experiments.spec import CohortSpec, RunSpec
from pipeline.paths import Paths
from pipeline.records.results import load_result
from pipeline.records.run_folder import RUN_JSON, WEIGHTS, read_run
from pipeline.records.shipped import shipped_cells, shipped_weights
from pipeline.records.status import Status
from pipeline.records.store import training_folder


@dataclass(frozen=True)
class Trained:
    """A finished run's weights, as it was specified when it was trained."""

    spec: RunSpec
    digest: str
    weights: Path


def named_run(cohort: str, run: str, paths: Paths) -> tuple[CohortSpec, RunSpec]:
    """Raises: UserError naming what there is when there is no such cohort or run."""
    known = load_cohort(paths.cohorts, cohort)
    for one in known.runs:
        if one.name == run:
            return known, one
    raise UserError(f"{known.key} has no run {run!r}; choose one of {', '.join(one.name for one in known.runs)}")


def trained(cohort: CohortSpec, run: RunSpec, paths: Paths) -> Trained | None:
    """From `runs/`, else from the weights that are shipped with the reports; None where it is in neither.

    Raises: UserError when it diverged, or when its files are not what was written.
    """
    folder = training_folder(paths.runs, cohort.key) / run.name
    if (folder / RUN_JSON).exists():
        content = read_run(folder)
        if not Status.of(content["status"]).is_finished:
            raise UserError(f"{cohort.key}/{run.name} {content['status']}; nothing measured of it means anything")
        return Trained(RunSpec.from_json(content["spec"]), content["digest"], folder / WEIGHTS)
    if f"{cohort.key}/{run.name}" in shipped_cells(paths):
        result = load_result(paths.cohort_results(cohort.key), run.name)
        return Trained(result.spec, result.digest, shipped_weights(result, paths))
    return None


def trained_run(cohort: str, run: str, paths: Paths) -> Trained:
    """The same of a run by its name.

    Raises: UserError also when there is no such cohort or run, or its weights are nowhere here.
    """
    known, spec = named_run(cohort, run, paths)
    model = trained(known, spec, paths)
    if model is None:
        advice = f"run `dvc repro evaluate@{known.key}`"
        raise UserError(f"{known.key}/{spec.name}: not trained yet, and its weights are not shipped; {advice}")
    return model
