"""From params.yaml to runs: experiments -> settings -> runs -> cohorts (the stacks that train together).

    python -m pipeline.grid

writes `cohorts/`, which DVC and training read: one file per cohort, and `index.json` for dvc.yaml. `--params` and
`--cohorts` name others, for experiments outside DVC (checks/).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.cohorts import COHORTS, INDEX, load_cohorts
from pipeline.config import Experiment, Params, Part, RunReference, Scale, Setting, load_params
from pipeline.data.datasets import DATASETS
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.protocol import PROTOCOLS
from pipeline.schedule import burda_schedule
from pipeline.spec import CohortSpec, RunSpec, Stage

PARAMS = Path("params.yaml")
LATENT = {1: (50,), 2: (100, 50)}
"""Units of the stochastic layers, bottom first; Burda section 5."""


def run_name(objective: str, M: int, K: int, parameter: float | None, seed: int) -> str:
    extra = "" if parameter is None else f"-{parameter:g}"
    return f"{objective}-M{M}-K{K}{extra}-s{seed}"


def cohort_name(experiment: str, dataset: str, layers: int, T: int, seeds: Sequence[int] = (0,)) -> str:
    """Seeds other than 0 alone are named, so that the cohort of a new seed has a name of its own."""
    further = "" if list(seeds) == [0] else "-s" + "-".join(map(str, seeds))
    return f"{experiment}-{dataset}-{layers}L-T{T}{further}"


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


Crossed = tuple[list[int], str, int, tuple[Setting, int, int, float | None], int]


def _seeds(scale: Scale, part: Part) -> list[list[int]]:
    return part.seeds or scale.seeds


def _crossed(scale: Scale, part: Part, settings: list[tuple[Setting, int, int, float | None]]) -> Iterator[Crossed]:
    """Every run of a part as (the seeds that train together, dataset, layers, setting, seed); further seeds last."""
    for seeds in _seeds(scale, part):
        for dataset, layers, setting, seed in itertools.product(part.datasets, part.layers, settings, seeds):
            yield seeds, dataset, layers, setting, seed


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
            for seeds, dataset, layers, (setting, M, K, parameter), seed in _crossed(scale, part, settings):
                info = DATASETS[dataset]
                name = cohort_name(experiment_name, dataset, layers, M * K, seeds)
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
                        continues=_continued(scale_name, scale, dataset, layers, seed, setting.after),
                        algorithm_version=params.algorithm_version,
                    )
                )
    built = {key: CohortSpec(*owners[key], tuple(runs)) for key, runs in cohorts.items()}
    for cohort in built.values():
        _check_cohort(cohort, built, source)
    return built


def _continued(
    scale_name: str, scale: Scale, dataset: str, layers: int, seed: int, after: RunReference | None
) -> str | None:
    if after is None:
        return None
    part = scale.experiments.get(after.experiment)
    together = next((seeds for seeds in _seeds(scale, part) if seed in seeds), None) if part else None
    cohort = cohort_name(after.experiment, dataset, layers, after.M * after.K, together or [seed])
    return f"{scale_name}/{cohort}/{run_name(after.objective, after.M, after.K, after.parameter, seed)}"


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
    """What dvc.yaml reads: `cohorts` from scratch, `continued` ones, and `every` cohort, by key.

    `order` keeps the order of params.yaml, in which the launcher works: JSON files have their keys sorted.
    """

    def entry(cohort: CohortSpec) -> dict[str, str]:
        brief = {"scale": cohort.scale, "name": cohort.name, "dataset": cohort.dataset}
        return brief if cohort.continues is None else brief | {"continues": cohort.continues}

    every = {key: entry(cohort) for key, cohort in cohorts.items()}
    return {
        "params_digest": params.digest(),
        "order": list(cohorts),
        "scale_names": list(params.scales),
        "datasets": [name for name in DATASETS if any(c.dataset == name for c in cohorts.values())],
        "evaluations": {name: scale.evaluation.model_dump() for name, scale in params.scales.items()},
        "cohorts": {key: value for key, value in every.items() if "continues" not in value},
        "continued": {key: value for key, value in every.items() if "continues" in value},
        "every": every,
    }


def write_cohorts(params: Params, folder: Path) -> int:
    """Write `folder` anew where it differs; returns how many files changed."""
    cohorts = build_cohorts(params)
    wanted = {folder / f"{key}.json": cohort.to_json() for key, cohort in cohorts.items()}
    wanted[folder / INDEX] = index(params, cohorts)
    stale = set(folder.rglob("*.json")) - set(wanted)
    for path in stale:
        path.unlink()
    changed = [path for path, value in wanted.items() if not path.exists() or read_json(path) != value]
    for path in changed:
        write_json(path, wanted[path])
    return len(changed) + len(stale)


def check_in_step(params: Params, folder: Path) -> None:
    """Raises: UserError when `folder` was not written from these parameters."""
    path = folder / INDEX
    if not path.exists() or read_json(path)["params_digest"] != params.digest():
        raise UserError(f"{folder}/ is out of step with {PARAMS}: run `python -m pipeline.grid`, then dvc repro again")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.grid", description="Write cohorts/ from params.yaml.")
    parser.add_argument("--params", type=Path, default=PARAMS, help="a parameter file (params.yaml)")
    parser.add_argument("--cohorts", type=Path, default=COHORTS, help="where to write (cohorts)")
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    if params.device == "cuda":
        from pipeline.device import resolve_device

        resolve_device("cuda")
    changed = write_cohorts(params, arguments.cohorts)
    cohorts = load_cohorts(arguments.cohorts)
    runs = sum(len(cohort.runs) for cohort in cohorts.values())
    print(f"{arguments.cohorts}/: {len(cohorts)} cohorts, {runs} runs; {changed or 'no'} files changed")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
