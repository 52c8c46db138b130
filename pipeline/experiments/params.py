"""params.yaml, validated: a wrong key, type or value is refused in one line before any work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.data.catalogue import DATASETS
from pipeline.errors import UserError
from pipeline.experiments.choices import Device, Engine
from pipeline.experiments.protocol import PROTOCOLS, check_changes
from pipeline.experiments.schedule import STAGES
from pipeline.experiments.spec import BOUND_SAMPLES, EvaluationSpec, ToySpec
from pipeline.experiments.yaml_file import read_yaml


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _known(kind: str, names: Any) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"unknown {kind} {value!r}; allowed: {', '.join(map(str, names))}")
        return value

    return BeforeValidator(check)


Positive = Annotated[int, Field(ge=1, le=10**9)]
Samples = Annotated[int, Field(ge=1, le=10_000)]
"""Samples of an image in training: a batch's logits take 63 kB a sample, and its gradient as much again."""
Draws = Annotated[int, Field(ge=1, le=10**6)]
"""Samples of an image in evaluation, which takes them in blocks."""
ImageCount = Annotated[int, Field(ge=0, le=10**6)]
Units = Annotated[int, Field(ge=1, le=10_000)]
Gradients = Annotated[int, Field(ge=16, le=10**7)]
"""Fewer say nothing of a ratio of mean to spread."""
SampleCounts = Annotated[list[Samples], BeforeValidator(_as_list), Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[list[Number], BeforeValidator(_as_list), Field(min_length=1)]
DatasetName = Annotated[str, _known("dataset", DATASETS)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=60)]
"""Names become folders and parts of DVC's keys, in which a dot or a slash means something."""
KnownProtocol = Annotated[str, _known("protocol", PROTOCOLS)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Half of the generator's key of 64 bits."""


def _as_it_is_called(value: int) -> int:
    if value != BOUND_SAMPLES:
        raise ValueError(
            f"is {BOUND_SAMPLES}, because the bound is called IWAE-{BOUND_SAMPLES} in every report; not {value}"
        )
    return value


BoundSamples = Annotated[int, AfterValidator(_as_it_is_called)]
"""Samples of the bound beside the likelihood, whose name has their number."""


def _each_once(groups: list[list[int]]) -> list[list[int]]:
    seeds = [seed for group in groups for seed in group]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"seed {', '.join(map(str, twice))} is there more than once")
    return groups


SeedGroup = Annotated[list[Seed], BeforeValidator(_as_list), Field(min_length=1)]
Seeds = Annotated[list[SeedGroup], Field(min_length=1), AfterValidator(_each_once)]
"""Each entry, a seed or a list of seeds, is a cohort of its own: a seed added later reopens no finished cohort."""


def _protocol_choice(value: Any) -> Any:
    if isinstance(value, str) and value in PROTOCOLS:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is neither a protocol ({', '.join(PROTOCOLS)}) nor a mapping of fields to switch")
    check_changes(value)
    return value


ProtocolChoice = Annotated[str | dict[str, bool | float | str], BeforeValidator(_protocol_choice)]
"""A whole protocol by name, or some fields of the scale's protocol with their other values ({}: none)."""


class RunReference(_Model):
    """Which run of another experiment a run continues (same dataset, depth and seed)."""

    experiment: str
    objective: str
    M: Samples = 1
    K: Samples = 1
    parameter: Number | None = None


class SettingParams(_Model):
    """Estimators of an experiment: every M with every K, parameter and protocol of the lists."""

    objective: str
    M: SampleCounts = [1]
    K: SampleCounts = [1]
    parameter: Numbers | None = None
    protocol: Annotated[list[ProtocolChoice], BeforeValidator(_as_list), Field(min_length=1)] = [{}]
    after: RunReference | None = None


class ScheduleStage(_Model):
    """Epochs at one learning rate."""

    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Experiment(_Model):
    """A named list of settings, with the sample counts T = M K that they may have."""

    T: SampleCounts
    settings: Annotated[list[SettingParams], Field(min_length=1)]
    schedule: list[ScheduleStage] | None = None
    latent: Annotated[list[Units], Field(min_length=1, max_length=2)] | None = None
    """Units of the stochastic layers, bottom first; None for Burda's."""
    one_cohort: bool = False
    """All sample counts in one cohort, whose name has no T: one stack a sample count, one stage in DVC for all."""


class Part(_Model):
    """How much of an experiment a scale runs; None takes the scale's value."""

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    layers: Annotated[list[Annotated[int, Field(ge=1, le=2)]], Field(min_length=1)]
    T: SampleCounts | None = None
    """Some of the experiment's sample counts; None for all."""
    protocol: KnownProtocol | None = None
    seeds: Seeds | None = None
    seeds_at: dict[Positive, Seeds] = {}
    """Other seeds at some sample counts."""
    stages: Annotated[int, Field(ge=1, le=STAGES)] | None = None
    epochs: Positive | None = None
    """Depth of runs with a schedule of their own, which has no stages to count."""
    max_steps: Positive | None = None
    evaluation: dict[str, Any] = {}
    """Keys of the scale's evaluation that differ here."""


class EvaluationParams(_Model):
    """What is measured of a trained model; 0 images or gradients leave a measurement out. docs/metrics.md has them."""

    seed: Seed
    num_samples: Draws
    bound_samples: BoundSamples
    test_images: Annotated[int, Field(ge=2, le=10**6)] | None
    train_images: ImageCount
    pruned_images: ImageCount
    diagnostic_images: ImageCount
    snr_gradients: Gradients | Literal[0] = 0
    binarizations: Annotated[int, Field(ge=1, le=100)] = 1
    binarization_images: ImageCount = 0
    binarization_samples: Annotated[int, Field(ge=0, le=10**6)] = 0

    @field_validator("bound_samples")
    @classmethod
    def _within(cls, value: int, info: Any) -> int:
        if value > info.data.get("num_samples", value):
            raise ValueError("must not exceed num_samples")
        return value

    @model_validator(mode="after")
    def _further_binarizations(self) -> EvaluationParams:
        if self.binarizations > 1 and not (self.binarization_images and self.binarization_samples):
            raise ValueError("binarizations above 1 need binarization_images and binarization_samples")
        return self

    def changed(self, changes: dict[str, Any]) -> EvaluationParams:
        """The same with other values for some keys; raises pydantic's error where they are wrong."""
        return EvaluationParams.model_validate({**self.model_dump(), **changes})

    def spec(self) -> EvaluationSpec:
        """The specification, in which `earlier` is still to be set."""
        return EvaluationSpec(**self.model_dump())


class ToyParams(_Model):
    """The SNR of gradients on the linear Gaussian model (docs/gradient-snr.md)."""

    seed: Seed
    samples: Annotated[list[Samples], Field(min_length=1)]
    gradients: Gradients

    def spec(self) -> ToySpec:
        return ToySpec(self.seed, tuple(self.samples), self.gradients)


class Scale(_Model):
    """How much of everything is run, and under which protocol and precision."""

    protocol: KnownProtocol
    precision: Literal["float32", "tf32", "bfloat16", "bfloat16-backward", "float64"]
    seeds: Seeds
    judged: bool = False
    """Whether its claims are decided: a scale of a few updates shows that everything works, nothing else."""
    stages: Annotated[int, Field(ge=1, le=STAGES)]
    max_steps: Positive | None
    evaluation: EvaluationParams
    earlier: dict[str, Any] | None = None
    """Keys of its evaluation that differ at a run's earlier waypoints; None: these are not evaluated."""
    toy: ToyParams | None = None
    experiments: Annotated[dict[Name, Part], Field(min_length=1)]

    @field_validator("experiments")
    @classmethod
    def _evaluations_valid(cls, experiments: dict[str, Part], info: Any) -> dict[str, Part]:
        evaluation = info.data.get("evaluation")
        for name, part in experiments.items() if evaluation else ():
            try:
                evaluation.changed(part.evaluation)
            except ValidationError as error:
                raise ValueError(f"{name}.evaluation.{_describe(error.errors()[0], EvaluationParams)}") from error
        return experiments

    @field_validator("earlier")
    @classmethod
    def _earlier_valid(cls, earlier: dict[str, Any] | None, info: Any) -> dict[str, Any] | None:
        evaluation = info.data.get("evaluation")
        if earlier is not None and evaluation:
            try:
                evaluation.changed(earlier)
            except ValidationError as error:
                raise ValueError(_describe(error.errors()[0], EvaluationParams)) from error
        return earlier

    def evaluation_spec(self, experiment: str) -> EvaluationSpec:
        """How the runs of an experiment are evaluated, at their depth and before."""
        last = self.evaluation.changed(self.experiments[experiment].evaluation)
        before = None if self.earlier is None else last.changed(self.earlier).spec()
        return replace(last.spec(), earlier=before)


class Data(_Model):
    """Settings of the binarization of datasets."""

    test_binarization_seed: Seed


class Params(_Model):
    """params.yaml, whose comments say what each key means."""

    algorithm_version: Positive
    device: Device
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    engine: Engine
    checkpoint_seconds: Annotated[float, Field(gt=0, le=10**6)]
    data: Data
    experiments: dict[Name, Experiment]
    scales: Annotated[dict[Name, Scale], Field(min_length=1)]

    @field_validator("scales")
    @classmethod
    def _experiments_exist(cls, scales: dict[str, Scale], info: Any) -> dict[str, Scale]:
        known = info.data.get("experiments")
        for name, scale in scales.items():
            for experiment in scale.experiments:
                if known is not None and experiment not in known:
                    raise ValueError(
                        f"{name}.experiments: unknown experiment {experiment!r}; allowed: {', '.join(known)}"
                    )
        return scales

    def digest(self) -> str:
        """Names the content, whatever the comments and layout of the file."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]


def load_params(path: Path) -> Params:
    """Read and validate params.yaml.

    Raises: UserError, one line per mistake, naming file, key and what is allowed.
    """
    content = read_yaml(path)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {_describe(detail)}" for detail in error.errors())) from error


def _describe(detail: Any, root: type[BaseModel] | None = None) -> str:
    # Pydantic adds the branches of a union to the place.
    branches = ("int", "constrained-int", "literal['auto']")
    key = ".".join(str(part) for part in detail["loc"] if part not in branches) or "the file"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(_model_at(detail['loc'][:-1], root).model_fields)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if detail["type"] in ("missing", "value_error") else f", not {detail['input']!r}")


def _model_at(location: tuple[Any, ...], root: type[BaseModel] | None = None) -> type[BaseModel]:
    """The model that describes this place of params.yaml, or of the part of it that `root` describes."""
    annotation: Any = root or Params
    for part in location:
        annotation = _content(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[part].annotation
        else:
            annotation = get_args(annotation)[-1]
    model = _content(annotation)
    assert issubclass(model, BaseModel)
    return cast(type[BaseModel], model)


def _content(annotation: Any) -> Any:
    """A type without its Annotated and `| None` wrappings."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation
