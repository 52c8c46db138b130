"""params.yaml, validated: a wrong key, type or value is refused in one line before any work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from pipeline.data.datasets import DATASETS
from pipeline.errors import UserError
from pipeline.protocol import PROTOCOLS
from pipeline.schedule import STAGES
from pipeline.spec import EvaluationSpec


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


Positive = Annotated[int, Field(ge=1)]
Counts = Annotated[list[Positive], BeforeValidator(_as_list), Field(min_length=1)]
Numbers = Annotated[list[float], BeforeValidator(_as_list), Field(min_length=1)]
DatasetName = Annotated[str, _known("dataset", DATASETS)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
"""Names become folders and parts of DVC's keys, in which a dot or a slash means something."""
ProtocolName = Annotated[str, _known("protocol", PROTOCOLS)]
Seed = Annotated[int, Field(ge=0)]


def _each_once(groups: list[list[int]]) -> list[list[int]]:
    seeds = [seed for group in groups for seed in group]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"seed {', '.join(map(str, twice))} is there more than once")
    return groups


SeedGroup = Annotated[list[Seed], BeforeValidator(_as_list), Field(min_length=1)]
Seeds = Annotated[list[SeedGroup], Field(min_length=1), AfterValidator(_each_once)]
"""Each entry, a seed or a list of seeds, is a cohort of its own: a seed added later reopens no finished cohort."""


class RunReference(_Model):
    """Which run of another experiment a run continues (same dataset, depth and seed)."""

    experiment: str
    objective: str
    M: Positive = 1
    K: Positive = 1
    parameter: float | None = None


class Setting(_Model):
    objective: str
    M: Counts = [1]
    K: Counts = [1]
    parameter: Numbers | None = None
    after: RunReference | None = None


class ScheduleStage(_Model):
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Experiment(_Model):
    T: Counts
    settings: Annotated[list[Setting], Field(min_length=1)]
    schedule: list[ScheduleStage] | None = None


class Part(_Model):
    """How much of an experiment a scale runs; None takes the scale's value."""

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    layers: Annotated[list[Annotated[int, Field(ge=1, le=2)]], Field(min_length=1)]
    protocol: ProtocolName | None = None
    seeds: Seeds | None = None
    stages: Annotated[int, Field(ge=1, le=STAGES)] | None = None
    max_steps: Positive | None = None


class Evaluation(_Model):
    seed: Annotated[int, Field(ge=0)]
    num_samples: Positive
    bound_samples: Positive
    test_images: Annotated[int, Field(ge=2)] | None
    train_images: Annotated[int, Field(ge=0)]
    pruned: bool

    @field_validator("bound_samples")
    @classmethod
    def _within(cls, value: int, info: Any) -> int:
        if value > info.data.get("num_samples", value):
            raise ValueError("must not exceed num_samples")
        return value

    def spec(self) -> EvaluationSpec:
        return EvaluationSpec(**self.model_dump())


class Scale(_Model):
    protocol: ProtocolName
    precision: Literal["float32", "tf32", "bfloat16", "float64"]
    seeds: Seeds
    stages: Annotated[int, Field(ge=1, le=STAGES)]
    max_steps: Positive | None
    evaluation: Evaluation
    experiments: dict[Name, Part]


class Data(_Model):
    test_binarization_seed: Annotated[int, Field(ge=0)]


class Params(_Model):
    algorithm_version: Positive
    device: Literal["auto", "cpu", "cuda"]
    workers: Positive | Literal["auto"]
    engine: Literal["auto", "fused", "compiled", "graph", "plain"]
    checkpoint_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; run from the project's folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {_describe(detail)}" for detail in error.errors())) from error


def _describe(detail: Any) -> str:
    # Pydantic adds the branches of a union to the place.
    branches = ("int", "constrained-int", "literal['auto']")
    key = ".".join(str(part) for part in detail["loc"] if part not in branches) or "the file"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(_model_at(detail['loc'][:-1]).model_fields)}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" + ("" if detail["type"] in ("missing", "value_error") else f", not {detail['input']!r}")


def _model_at(location: tuple[Any, ...]) -> type[BaseModel]:
    """The model that describes this place of params.yaml."""
    annotation: Any = Params
    for part in location:
        annotation = _content(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[part].annotation
        else:
            annotation = get_args(annotation)[-1]
    found = _content(annotation)
    assert issubclass(found, BaseModel)
    return cast(type[BaseModel], found)


def _content(annotation: Any) -> Any:
    """A type without its Annotated and `| None` wrappings."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return annotation
