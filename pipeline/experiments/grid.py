"""From params.yaml to runs: experiments -> settings -> runs -> cohorts (the stacks that train together).

    python -m pipeline.experiments

writes `cohorts/`, which DVC and training read: one file per cohort, and `index.json` for dvc.yaml. `--params` and
`--cohorts` name others, for experiments outside DVC (gpu_trial/).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.catalogue import DATASETS
from pipeline.errors import UserError
from pipeline.experiments.cohorts import INDEX, WRITE_COHORTS, load_cohorts, load_index
from pipeline.experiments.names import CellName, ProtocolName
from pipeline.experiments.params import (
    Experiment,
    Params,
    Part,
    RunReference,
    Scale,
    SettingParams,
    ToyParams,
    load_params,
)
from pipeline.experiments.protocol import PROTOCOLS, Changes, Protocol, with_changes
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import BATCH_SIZE, CohortSpec, RunSpec, Stage, ToySpec
from pipeline.files import content_of, read_json, write_json
from pipeline.paths import HERE

LONGEST_NAME = 200
"""Letters of a run's or cohort's name, which is a folder's: file systems take 255, and temporary names are longer."""
EXPAND_AGAIN = "run `python -m pipeline.experiments`, then dvc repro again"
NAMED = 3
"""Number of cohorts that a message names."""
LATENT = {1: (50,), 2: (100, 50)}
"""Units of the stochastic layers, bottom first; Burda section 5."""


def run_name(objective: str, M: int, K: int, parameter: float | None, seed: int, switched: str = "") -> str:
    """`iwae-M1-K5-s0`, `ciwae-M1-K5-0.5-s0`, `iwae-M1-K5-shuffle-true-s0`; `switched`: see `_protocol`."""
    extra = "" if parameter is None else f"-{parameter:g}"
    return f"{objective}-M{M}-K{K}{extra}{switched}-s{seed}"


def cohort_name(experiment: str, dataset: str, layers: int, T: int | None, seeds: Sequence[int] = (0,)) -> str:
    """`burda-table1-mnist-1L-T50`; T is None for an experiment whose sample counts share one cohort.

    Seeds other than 0 alone are named, so that the cohort of a new seed has a name of its own.
    """
    samples = "" if T is None else f"-T{T}"
    further = "" if list(seeds) == [0] else "-s" + "-".join(map(str, seeds))
    return f"{experiment}-{dataset}-{layers}L{samples}{further}"


def check_setting(where: str, objective: str, M: int, K: int, parameter: float | None) -> None:
    """Raises: UserError beginning with `where`, when the objective does not take M groups of K samples or `parameter`.

    It is also raised when the objective's entry in pipeline/objectives.py does not give what an update needs.
    """
    # torch takes seconds to import, which stages that only read finished cohorts should not pay.
    from pipeline.objectives import OBJECTIVES, check_estimator

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
    low, high = entry.between
    if parameter is not None and not low <= parameter <= high:
        allowed = f"lies between {low:g} and {high:g}, not at {parameter:g}"
        raise UserError(f"{where}.parameter: {entry.parameter} of {objective} {allowed}")
    check_estimator(objective, M, K, parameter)


def _protocol(where: str, name: str, choice: str | Changes) -> tuple[str, Protocol, str]:
    """A setting's protocol under the scale's protocol `name`: what it is called, its fields, what run names say of it.

    Raises: UserError when a field is switched to the value that it has.
    """
    if isinstance(choice, str):
        return choice, PROTOCOLS[choice], "" if choice == name else f"-{choice}"
    try:
        protocol = with_changes(PROTOCOLS[name], choice)
    except ValueError as error:
        raise UserError(f"{where}.protocol: under {name}, {error}") from error
    called = ProtocolName.switched(name, choice)
    return str(called), protocol, called.in_run_name


@dataclass(frozen=True)
class _Point:
    """One of the estimators that an experiment trains, under one choice of protocol."""

    where: str
    setting: SettingParams
    M: int
    K: int
    parameter: float | None
    protocol: str | Changes


def _points(where: str, experiment: Experiment) -> list[_Point]:
    """Every (M, K, parameter, protocol) of an experiment, checked."""
    points = []
    for index, setting in enumerate(experiment.settings):
        here = f"{where}.settings.{index}"
        parameters: list[float | None] = [None] if setting.parameter is None else [*setting.parameter]
        for M, K, parameter, protocol in itertools.product(setting.M, setting.K, parameters, setting.protocol):
            check_setting(here, setting.objective, M, K, parameter)
            if M * K not in experiment.T:
                allowed = ", ".join(map(str, experiment.T))
                raise UserError(
                    f"{here}: M * K = {M} * {K} = {M * K} is not a sample count of the experiment (T: {allowed})"
                )
            points.append(_Point(here, setting, M, K, parameter, protocol))
    return points


Crossed = tuple[list[int], str, int, _Point, int]


def _seeds(scale: Scale, part: Part, T: int) -> list[list[int]]:
    return part.seeds_at.get(T) or part.seeds or scale.seeds


def _crossed(scale: Scale, part: Part, points: list[_Point]) -> Iterator[Crossed]:
    """Every run of a part as (the seeds that train together, dataset, layers, point, seed); further seeds last."""
    groups = {tuple(group): group for point in points for group in _seeds(scale, part, point.M * point.K)}
    for seeds in groups.values():
        group_points = [point for point in points if seeds in _seeds(scale, part, point.M * point.K)]
        for dataset, layers, point, seed in itertools.product(part.datasets, part.layers, group_points, seeds):
            yield seeds, dataset, layers, point, seed


def build_cohorts(params: Params, source: Path = HERE.params) -> dict[str, CohortSpec]:
    """All cohorts by key (`quick/burda-table1-mnist-1L-T50`), in the order of the file.

    Raises: UserError naming the key of params.yaml at fault.
    """
    cohorts: dict[str, list[RunSpec]] = {}
    owners: dict[str, tuple[str, str, str]] = {}
    for scale_name, scale in params.scales.items():
        for experiment_name in scale.experiments:
            one_cohort = params.experiments[experiment_name].one_cohort
            for seeds, run in _runs(params, scale_name, experiment_name, source):
                T = None if one_cohort else run.T
                name = cohort_name(experiment_name, run.dataset, run.layers, T, seeds)
                key = f"{scale_name}/{name}"
                owners[key] = (scale_name, experiment_name, name)
                cohorts.setdefault(key, []).append(run)
    built = {key: CohortSpec(*owners[key], tuple(runs)) for key, runs in cohorts.items()}
    for cohort in built.values():
        _check_cohort(cohort, built, source)
    return built


def _runs(params: Params, scale_name: str, experiment_name: str, source: Path) -> Iterator[tuple[list[int], RunSpec]]:
    """Every run of an experiment at a scale, each after the seeds that train together."""
    scale, experiment = params.scales[scale_name], params.experiments[experiment_name]
    part = scale.experiments[experiment_name]
    where = f"{source}: scales.{scale_name}.experiments.{experiment_name}"
    points = _points(f"{source}: experiments.{experiment_name}", experiment)
    _check_part(where, part, experiment)
    points = [point for point in points if part.T is None or point.M * point.K in part.T]
    own_schedule = tuple(Stage(stage.epochs, stage.learning_rate) for stage in experiment.schedule or ())
    for seeds, dataset, layers, point, seed in _crossed(scale, part, points):
        info, setting = DATASETS[dataset], point.setting
        protocol_name, protocol, switched = _protocol(point.where, part.protocol or scale.protocol, point.protocol)
        schedule = own_schedule or burda_schedule(protocol.rounded_learning_rates)
        train_images = info.train_images_burda if protocol.hold_out else info.train_images
        try:
            depth = _depth(scale, part, schedule, train_images // BATCH_SIZE, bool(own_schedule))
        except ValueError as error:
            raise UserError(f"{where}.epochs: {error}") from error
        run = RunSpec(
            name=run_name(setting.objective, point.M, point.K, point.parameter, seed, switched),
            objective=setting.objective,
            M=point.M,
            K=point.K,
            parameter=point.parameter,
            seed=seed,
            dataset=dataset,
            latent=tuple(experiment.latent or LATENT[layers]),
            train_images=train_images,
            protocol_name=protocol_name,
            protocol=protocol,
            schedule=schedule,
            max_steps=depth,
            precision=scale.precision,
            continues=_continued(params, scale_name, dataset, layers, seed, setting.after),
            algorithm_version=params.algorithm_version,
        )
        yield seeds, run


def _check_part(where: str, part: Part, experiment: Experiment) -> None:
    allowed = ", ".join(map(str, experiment.T))
    if missing := {*(part.T or ()), *part.seeds_at} - set(experiment.T):
        raise UserError(f"{where}.T: {min(missing)} is not a sample count of the experiment (T: {allowed})")
    if experiment.latent and part.layers != [len(experiment.latent)]:
        raise UserError(
            f"{where}.layers: must be [{len(experiment.latent)}], as many as the experiment's latent"
            f" {experiment.latent} has"
        )


def _depth(scale: Scale, part: Part, schedule: Sequence[Stage], steps_per_epoch: int, own_schedule: bool) -> int:
    """Updates that a run is taken to: the least that its schedule, stages, epochs and max_steps allow.

    An experiment's own schedule knows nothing of the stages of the papers'.

    Raises: ValueError when `epochs` lie beyond the schedule that is left.
    """
    stages = None if own_schedule else part.stages or scale.stages
    whole = sum(stage.epochs for stage in schedule[:stages])
    if part.epochs is not None and part.epochs > whole:
        raise ValueError(f"{part.epochs} are more than the {whole} epochs of its schedule at this scale")
    epochs = part.epochs or whole
    limit = part.max_steps or scale.max_steps
    return epochs * steps_per_epoch if limit is None else min(epochs * steps_per_epoch, limit)


def _continued(
    params: Params, scale_name: str, dataset: str, layers: int, seed: int, after: RunReference | None
) -> str | None:
    if after is None:
        return None
    scale, source = params.scales[scale_name], params.experiments.get(after.experiment)
    part = scale.experiments.get(after.experiment)
    groups = _seeds(scale, part, after.M * after.K) if part else []
    together = next((seeds for seeds in groups if seed in seeds), None)
    T = None if source and source.one_cohort else after.M * after.K
    cohort = cohort_name(after.experiment, dataset, layers, T, together or [seed])
    return f"{scale_name}/{cohort}/{run_name(after.objective, after.M, after.K, after.parameter, seed)}"


def _check_cohort(cohort: CohortSpec, cohorts: dict[str, CohortSpec], source: Path) -> None:
    where = f"{source}: experiments.{cohort.experiment}"
    names = [run.name for run in cohort.runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where}: {cohort.key} has {', '.join(sorted(twice))} more than once")
    if long := [name for name in (cohort.name, *names) if len(name) > LONGEST_NAME]:
        raise UserError(f"{where}: {long[0]} names a folder and is longer than {LONGEST_NAME} letters; shorten it")
    for run in cohort.runs:
        key = None if run.continues is None else str(CellName.of(run.continues).cohort)
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


def _estimators(settings: Iterable[tuple[str, int, int, float | None]]) -> str:
    """A digest of what estimators compute, each (objective, M, K, parameter).

    DVC trains a cohort anew, and measures a toy anew, where it is another one: no file that DVC looks at has the
    formulas.
    """
    # torch takes seconds to import, which stages that only read finished cohorts should not pay.
    from pipeline.objectives import fingerprint

    return hashlib.sha256(" ".join(fingerprint(*setting) for setting in settings).encode()).hexdigest()[:16]


def estimators(cohorts: Mapping[str, CohortSpec]) -> dict[str, dict[str, str]]:
    """By scale and cohort, a digest of what the estimators of its runs compute."""
    named: dict[str, dict[str, str]] = {}
    for cohort in cohorts.values():
        settings = [(run.objective, run.M, run.K, run.parameter) for run in cohort.runs]
        named.setdefault(cohort.scale, {})[cohort.name] = _estimators(settings)
    return named


def toy_estimators(toy: ToySpec) -> str:
    """The same of the estimators that are measured on Rainforth's Gaussian model."""
    return _estimators((*setting, None) for setting in toy.settings())


def _toy_entry(toy: ToyParams) -> dict[str, Any]:
    """All that its results depend on."""
    return toy.model_dump() | {"estimators": toy_estimators(toy.spec())}


def index(params: Params, cohorts: dict[str, CohortSpec]) -> dict[str, Any]:
    """What dvc.yaml reads: `cohorts` from scratch, `continued` ones, and `every` cohort, by key.

    `order` keeps the order of params.yaml, in which the launcher works: JSON files have their keys sorted.
    """

    def entry(cohort: CohortSpec) -> dict[str, str]:
        brief = {"scale": cohort.scale, "experiment": cohort.experiment, "name": cohort.name, "dataset": cohort.dataset}
        return brief if cohort.continues is None else brief | {"continues": cohort.continues}

    every = {key: entry(cohort) for key, cohort in cohorts.items()}
    return {
        "params_digest": params.digest(),
        "cohort_digests": {key: cohort.digest() for key, cohort in cohorts.items()},
        "judged": {name: scale.judged for name, scale in params.scales.items()},
        "estimators": estimators(cohorts),
        "order": list(cohorts),
        "scale_names": list(params.scales),
        "datasets": [name for name in DATASETS if any(c.dataset == name for c in cohorts.values())],
        "evaluations": {
            name: {experiment: asdict(scale.evaluation_spec(experiment)) for experiment in scale.experiments}
            for name, scale in params.scales.items()
        },
        "toys": {name: _toy_entry(scale.toy) for name, scale in params.scales.items() if scale.toy},
        "cohorts": {key: value for key, value in every.items() if "continues" not in value},
        "continued": {key: value for key, value in every.items() if "continues" in value},
        "every": every,
    }


def _index_digest(value: dict[str, Any]) -> str:
    """Names the rest of an index, so that one edited by hand is known."""
    rest = {key: entry for key, entry in value.items() if key != "index_digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def write_cohorts(params: Params, folder: Path, source: Path = HERE.params) -> int:
    """Write `folder` anew where it differs; returns how many files changed. `source`: the file, for messages."""
    cohorts = build_cohorts(params, source)
    wanted = {folder / f"{key}.json": cohort.to_json() for key, cohort in cohorts.items()}
    content = index(params, cohorts)
    wanted[folder / INDEX] = content | {"index_digest": _index_digest(content)}
    stale = set(folder.rglob("*.json")) - set(wanted)
    for path in stale:
        path.unlink()
        with suppress(OSError):
            path.parent.rmdir()  # A scale's last cohort: its folder is empty.
    changed = [path for path, value in wanted.items() if _differs(path, value)]
    for path in changed:
        write_json(path, wanted[path])
    return len(changed) + len(stale)


def _differs(path: Path, value: Any) -> bool:
    try:
        return bool(read_json(path) != value)
    except UserError:
        return True  # Missing or damaged: it is written anew.


def check_in_step(params: Params, folder: Path, source: Path = HERE.params) -> None:
    """Raises: UserError when `folder` was not written from these parameters. `source`: their file, for messages."""
    index = load_index(folder) if (folder / INDEX).exists() else {}
    if index.get("params_digest") != params.digest() or index.get("index_digest") != _index_digest(index):
        raise UserError(f"{folder}/ is out of step with {source}: {EXPAND_AGAIN}")
    cohorts = load_cohorts(folder)
    for key in cohorts.keys() | index["cohort_digests"].keys():
        if key not in cohorts or cohorts[key].digest() != index["cohort_digests"].get(key):
            raise UserError(f"{folder / key}.json is not what {source} gives: {EXPAND_AGAIN}")


def check_estimators(folder: Path, source: Path = HERE.params) -> None:
    """Raises: UserError naming what depends on estimators that compute something else since `folder` was written:
    cohorts, and toys by their stage.

    `source`: the parameters' file, for messages.
    """
    index: Any = load_index(folder)
    now = estimators(load_cohorts(folder))
    with content_of(folder / INDEX, "the index of the cohorts", WRITE_COHORTS):
        written = index["estimators"]
        others = [
            f"{scale}/{name}"
            for scale, cohorts in now.items()
            for name, digest in cohorts.items()
            if written.get(scale, {}).get(name) != digest
        ]
        toys = {scale: (ToySpec.from_json(toy), toy.get("estimators")) for scale, toy in index["toys"].items()}
        others += [f"toy@{scale}" for scale, (toy, digest) in toys.items() if toy_estimators(toy) != digest]
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        raise UserError(
            f"pipeline/objectives.py: the estimators of {', '.join(others[:NAMED])}{more} compute something else than"
            f" when {folder}/ was written from {source}: {EXPAND_AGAIN}; these are then computed anew"
        )


def main() -> None:
    """Write the cohorts of a parameter file, and print how many there are and how many files changed.

    Raises: UserError when the parameters are wrong or ask for a GPU that is not there.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.experiments", description="Write cohorts/ from params.yaml."
    )
    parser.add_argument("--params", type=Path, default=HERE.params, help="a parameter file (params.yaml)")
    parser.add_argument("--cohorts", type=Path, default=HERE.cohorts, help="where to write (cohorts)")
    arguments = parser.parse_args()
    params = load_params(arguments.params)
    if params.device == "cuda":
        from pipeline.work.machine import resolve_device

        resolve_device("cuda", f"{arguments.params}: device: cuda")
    changed = write_cohorts(params, arguments.cohorts, arguments.params)
    cohorts = load_cohorts(arguments.cohorts)
    runs = sum(len(cohort.runs) for cohort in cohorts.values())
    print(f"{arguments.cohorts}/: {len(cohorts)} cohorts, {runs} runs; {changed or 'no'} files changed")
