"""From params.yaml to runs: experiments -> settings -> runs -> cohorts (the stacks that train together).

    python -m pipeline.grid

writes `cohorts/`, which DVC and training read: one file per cohort, and `index.json` for dvc.yaml.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Experiment, Params, RunReference, Setting, load_params
from pipeline.data.datasets import DATASETS
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.protocol import PROTOCOLS
from pipeline.schedule import burda_schedule
from pipeline.spec import CohortSpec, EvaluationSpec, RunSpec, Stage

PARAMS, COHORTS = Path("params.yaml"), Path("cohorts")
LATENT = {1: (50,), 2: (100, 50)}
"""Units of the stochastic layers, bottom first; Burda section 5."""


def run_name(objective: str, M: int, K: int, parameter: float | None, seed: int) -> str:
    extra = "" if parameter is None else f"-{parameter:g}"
    return f"{objective}-M{M}-K{K}{extra}-s{seed}"


def cohort_name(experiment: str, dataset: str, layers: int, T: int) -> str:
    return f"{experiment}-{dataset}-{layers}L-T{T}"


def _check_objective(where: str, objective: str, M: int, K: int, parameter: float | None) -> None:
    # torch takes seconds to import, which stages that only read finished cohorts should not pay.
    from pipeline.objectives import OBJECTIVES

    if objective not in OBJECTIVES:
        raise UserError(f"{where}.objective: unknown objective {objective!r}; allowed: {', '.join(OBJECTIVES)}")
    entry = OBJECTIVES[objective]
    if entry.single_M and M != 1:
        raise UserError(f"{where}.M: {objective} has one group of samples, so M must be 1, not {M}")
    if entry.single_K and K != 1:
        raise UserError(
            f"{where}.K: {objective} has groups of one sample, so K must be 1, not {K} (put the samples in M)"
        )
    if (parameter is None) != (entry.parameter is None):
        need = f"needs its {entry.parameter}" if entry.parameter else "takes none"
        raise UserError(f"{where}.parameter: {objective} {need}")


def _settings(where: str, experiment: Experiment) -> list[tuple[Setting, int, int, float | None]]:
    """Every (M, K, parameter) of an experiment, checked."""
    found = []
    for index, setting in enumerate(experiment.settings):
        here = f"{where}.settings.{index}"
        parameters: list[float | None] = [None] if setting.parameter is None else [*setting.parameter]
        for M, K, parameter in itertools.product(setting.M, setting.K, parameters):
            _check_objective(here, setting.objective, M, K, parameter)
            if M * K not in experiment.T:
                allowed = ", ".join(map(str, experiment.T))
                raise UserError(
                    f"{here}: M * K = {M} * {K} = {M * K} is not a sample count of the experiment (T: {allowed})"
                )
            found.append((setting, M, K, parameter))
    return found


def build_cohorts(params: Params, source: Path = PARAMS) -> dict[str, CohortSpec]:
    """All cohorts by key (`quick/burda-table1-mnist-1L-T50`), in the order of the file.

    Raises: UserError naming the key of params.yaml at fault.
    """
    cohorts: dict[str, list[RunSpec]] = {}
    owners: dict[str, tuple[str, str, str]] = {}
    for scale_name, scale in params.scales.items():
        for experiment_name, part in scale.experiments.items():
            experiment = params.experiments[experiment_name]
            settings = _settings(f"{source}: experiments.{experiment_name}", experiment)
            protocol_name = part.protocol or scale.protocol
            protocol = PROTOCOLS[protocol_name]
            schedule = burda_schedule(protocol.rounded_learning_rates)[: part.stages or scale.stages]
            own_schedule = tuple(Stage(stage.epochs, stage.learning_rate) for stage in experiment.schedule or ())
            seeds = part.seeds or scale.seeds
            for dataset, layers, (setting, M, K, parameter), seed in itertools.product(
                part.datasets, part.layers, settings, seeds
            ):
                info = DATASETS[dataset]
                name = cohort_name(experiment_name, dataset, layers, M * K)
                key = f"{scale_name}/{name}"
                owners[key] = (scale_name, experiment_name, name)
                cohorts.setdefault(key, []).append(
                    RunSpec(
                        name=run_name(setting.objective, M, K, parameter, seed),
                        objective=setting.objective,
                        M=M,
                        K=K,
                        parameter=parameter,
                        seed=seed,
                        dataset=dataset,
                        latent=LATENT[layers],
                        train_images=info.train_images_burda if protocol.hold_out else info.train_images,
                        protocol_name=protocol_name,
                        protocol=protocol,
                        schedule=own_schedule or schedule,
                        max_steps=part.max_steps or scale.max_steps,
                        precision=scale.precision,
                        continues=_continued(scale_name, dataset, layers, seed, setting.after),
                        algorithm_version=params.algorithm_version,
                    )
                )
    built = {key: CohortSpec(*owners[key], tuple(runs)) for key, runs in cohorts.items()}
    for cohort in built.values():
        _check_cohort(cohort, built, source)
    return built


def _continued(scale: str, dataset: str, layers: int, seed: int, after: RunReference | None) -> str | None:
    if after is None:
        return None
    cohort = cohort_name(after.experiment, dataset, layers, after.M * after.K)
    return f"{scale}/{cohort}/{run_name(after.objective, after.M, after.K, after.parameter, seed)}"


def _check_cohort(cohort: CohortSpec, cohorts: dict[str, CohortSpec], source: Path) -> None:
    where = f"{source}: experiments.{cohort.experiment}"
    names = [run.name for run in cohort.runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where}: {cohort.key} has {', '.join(sorted(twice))} more than once")
    for run in cohort.runs:
        key = None if run.continues is None else run.continues.rpartition("/")[0]
        if key != cohort.continues:
            raise UserError(f"{where}: the runs of {cohort.key} continue runs of different cohorts")
        if key is None:
            continue
        known = [f"{key}/{other.name}" for other in cohorts[key].runs] if key in cohorts else []
        if run.continues not in known:
            raise UserError(f"{where}.settings: after: {run.continues} is no run of this scale")
        if key == cohort.key:
            raise UserError(
                f"{where}.settings: after: {run.continues} is of the same cohort, which cannot continue itself"
            )


def index(params: Params, cohorts: dict[str, CohortSpec]) -> dict[str, Any]:
    """What dvc.yaml reads: `cohorts` from scratch, `continued` ones, and `every` cohort, by key."""

    def entry(cohort: CohortSpec) -> dict[str, str]:
        brief = {"scale": cohort.scale, "experiment": cohort.experiment, "name": cohort.name, "dataset": cohort.dataset}
        return brief if cohort.continues is None else brief | {"continues": cohort.continues}

    every = {key: entry(cohort) for key, cohort in cohorts.items()}
    return {
        "params_digest": params.digest(),
        "scale_names": list(params.scales),
        "datasets": [name for name in DATASETS if any(c.dataset == name for c in cohorts.values())],
        "evaluations": {
            name: {experiment: asdict(scale.evaluation_spec(experiment)) for experiment in scale.experiments}
            for name, scale in params.scales.items()
        },
        "toys": {name: scale.toy.model_dump() for name, scale in params.scales.items() if scale.toy},
        "cohorts": {key: value for key, value in every.items() if "continues" not in value},
        "continued": {key: value for key, value in every.items() if "continues" in value},
        "every": every,
    }


def write_cohorts(params: Params, folder: Path) -> int:
    """Write `folder` anew where it differs; returns how many files changed."""
    cohorts = build_cohorts(params)
    wanted = {folder / f"{key}.json": cohort.to_json() for key, cohort in cohorts.items()}
    wanted[folder / "index.json"] = index(params, cohorts)
    stale = set(folder.rglob("*.json")) - set(wanted)
    for path in stale:
        path.unlink()
    changed = [path for path, value in wanted.items() if not path.exists() or read_json(path) != value]
    for path in changed:
        write_json(path, wanted[path])
    return len(changed) + len(stale)


def load_cohort(folder: Path, key: str) -> CohortSpec:
    """Raises: UserError naming the key when there is no such cohort."""
    path = folder / f"{key}.json"
    if not path.exists():
        known = ", ".join(sorted(load_cohorts(folder)))
        raise UserError(f"unknown cohort {key!r}; known: {known}")
    return CohortSpec.from_json(read_json(path))


def load_cohorts(folder: Path) -> dict[str, CohortSpec]:
    """Every cohort in `folder` by key."""
    paths = sorted(path for path in folder.rglob("*.json") if path.name != "index.json")
    cohorts = [CohortSpec.from_json(read_json(path)) for path in paths]
    return {cohort.key: cohort for cohort in cohorts}


def load_evaluation(folder: Path, scale: str, experiment: str) -> EvaluationSpec:
    return EvaluationSpec(**read_json(folder / "index.json")["evaluations"][scale][experiment])


def check_in_step(params: Params, folder: Path) -> None:
    """Raises: UserError when `folder` was not written from these parameters."""
    path = folder / "index.json"
    if not path.exists() or read_json(path)["params_digest"] != params.digest():
        raise UserError(f"{folder}/ is out of step with {PARAMS}: run `python -m pipeline.grid`, then dvc repro again")


def main() -> None:
    params = load_params(PARAMS)
    if params.device == "cuda":
        from pipeline.device import resolve_device

        resolve_device("cuda")
    changed = write_cohorts(params, COHORTS)
    cohorts = load_cohorts(COHORTS)
    runs = sum(len(cohort.runs) for cohort in cohorts.values())
    print(f"{COHORTS}/: {len(cohorts)} cohorts, {runs} runs; {changed or 'no'} files changed")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
