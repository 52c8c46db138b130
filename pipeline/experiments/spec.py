"""What is to be trained, fully resolved: runs and the cohorts (stacks) that they form.

Plain dataclasses that travel as JSON, so that training needs neither params.yaml nor DVC.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.experiments.names import CellName
from pipeline.experiments.protocol import Protocol

BATCH_SIZE = 20
NLL_SAMPLES = 5000
"""Samples per image of the likelihood estimate in both papers."""
BOUND_SAMPLES = 64
"""Samples of the bound that Rainforth et al. report beside it, which reports and metrics call IWAE-64."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the schedule at one learning rate."""

    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class RunSpec:
    """One training run: a trajectory, which every field but labels and depth determines, and how far it is taken."""

    name: str
    """Readable, unique within its cohort: `iwae-M1-K50-s0`."""
    objective: str
    """A key of `pipeline.objectives.OBJECTIVES`."""
    M: int
    K: int
    parameter: float | None
    """beta of CIWAE, alpha of VR; None for objectives without one."""
    seed: int
    dataset: str
    latent: tuple[int, ...]
    """Units of each stochastic layer, bottom first: (50,) or (100, 50)."""
    train_images: int
    """The first so many training images are used."""
    protocol_name: str
    protocol: Protocol
    schedule: tuple[Stage, ...]
    """The whole of it, however far the run is taken."""
    max_steps: int | None
    """The run's depth: it is taken to so many updates, even if the schedule goes on; None for all of it."""
    precision: str
    """`float32`, `tf32` (CUDA only; on a CPU the same as float32), `bfloat16` (large products), `bfloat16-backward`
    (those of the backward pass; a CPU's compiled step only) or `float64`."""
    continues: str | None
    """`<cohort>/<run>`: this run starts from the weights and optimizer state that that one has at its depth."""
    algorithm_version: int

    @property
    def T(self) -> int:
        return self.M * self.K

    @property
    def layers(self) -> int:
        return len(self.latent)

    @property
    def steps_per_epoch(self) -> int:
        return self.train_images // BATCH_SIZE

    @property
    def scheduled_steps(self) -> int:
        """Updates of the whole schedule."""
        return self.steps_per_epoch * sum(stage.epochs for stage in self.schedule)

    @property
    def total_steps(self) -> int:
        """Updates that the run is taken to."""
        return self.scheduled_steps if self.max_steps is None else min(self.scheduled_steps, self.max_steps)

    @property
    def epochs(self) -> float:
        """Passes over the training images that the run is taken to."""
        return self.total_steps / self.steps_per_epoch

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"latent": list(self.latent), "schedule": [asdict(stage) for stage in self.schedule]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> RunSpec:
        return RunSpec(
            **{
                **value,
                "latent": tuple(value["latent"]),
                "protocol": Protocol(**value["protocol"]),
                "schedule": tuple(Stage(**stage) for stage in value["schedule"]),
            }
        )


@dataclass(frozen=True)
class EvaluationSpec:
    """How finished runs are evaluated."""

    seed: int
    num_samples: int
    """Samples per image of the likelihood estimate; `NLL_SAMPLES` in both papers."""
    bound_samples: int
    """Samples of the bound reported beside it; `BOUND_SAMPLES` in Rainforth et al."""
    test_images: int | None
    """Number of test images, evenly spaced; None for all."""
    train_images: int
    """Number of training images for `train_nll`; 0 for none."""
    pruned_images: int
    """Number of test images on which to measure what removing inactive units costs; 0 for none."""
    diagnostic_images: int = 0
    """Number of test images, evenly spaced, for q's spread and for reading decoded digits; 0 for no diagnostics."""
    snr_gradients: int = 0
    """Number of gradients at each waypoint for their signal-to-noise ratio; 0 for none."""
    binarizations: int = 1
    """The likelihood is estimated on so many binarizations of the test set; the first is the common one."""
    binarization_images: int = 0
    """Number of test images, evenly spaced, for each of them, where there is more than one."""
    binarization_samples: int = 0
    """Samples per image of that estimate."""
    earlier: EvaluationSpec | None = None
    """How a run's earlier waypoints are evaluated; None for not at all."""

    @staticmethod
    def from_json(value: dict[str, Any]) -> EvaluationSpec:
        earlier = value.get("earlier")
        return EvaluationSpec(**{**value, "earlier": None if earlier is None else EvaluationSpec(**earlier)})


TOY_SWEEPS = {"iwae": "K", "vae": "M", "iwae-dreg": "K"}
"""The objectives measured on Rainforth's Gaussian model, and which of M and K grows while the other is 1."""


def toy_split(objective: str, T: int) -> tuple[int, int]:
    """(M, K) of T samples of one of `TOY_SWEEPS`."""
    return (T, 1) if TOY_SWEEPS[objective] == "M" else (1, T)


@dataclass(frozen=True)
class ToySpec:
    """How the gradients of Rainforth's Gaussian model are measured."""

    seed: int
    samples: tuple[int, ...]
    """M of VAE, K of IWAE and IWAE-DReG."""
    gradients: int
    """Draws of each."""

    @staticmethod
    def from_json(value: dict[str, Any]) -> ToySpec:
        return ToySpec(value["seed"], tuple(value["samples"]), value["gradients"])

    def settings(self) -> list[tuple[str, int, int]]:
        """(objective, M, K) of every estimator that is measured."""
        return [(objective, *toy_split(objective, T)) for objective in TOY_SWEEPS for T in self.samples]


@dataclass(frozen=True)
class CohortSpec:
    """Runs of one experiment, dataset and depth; those of equal sample count have equal shapes and train as a stack."""

    scale: str
    experiment: str
    name: str
    """`burda-table1-mnist-1L-T50`; without the T where runs of several sample counts form the cohort."""
    runs: tuple[RunSpec, ...]

    @property
    def key(self) -> str:
        """`quick/burda-table1-mnist-1L-T50`: names the cohort in DVC and its folder under `runs/`."""
        return f"{self.scale}/{self.name}"

    @property
    def dataset(self) -> str:
        return self.runs[0].dataset

    @property
    def layers(self) -> int:
        return self.runs[0].layers

    @property
    def continues(self) -> str | None:
        """The key of the cohort whose runs these continue; a cohort continues at most one."""
        source = self.runs[0].continues
        return None if source is None else str(CellName.of(source).cohort)

    def to_json(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "experiment": self.experiment,
            "name": self.name,
            "dataset": self.dataset,
            "continues": self.continues,
            "runs": [run.to_json() for run in self.runs],
        }

    def digest(self) -> str:
        """Names the content."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    @staticmethod
    def from_json(value: dict[str, Any]) -> CohortSpec:
        runs = tuple(RunSpec.from_json(run) for run in value["runs"])
        return CohortSpec(value["scale"], value["experiment"], value["name"], runs)


def as_computed(run: RunSpec, device: str) -> RunSpec:
    """The run with the precision that its numbers have on a device (`cpu` or `cuda`): tf32 is float32 on a CPU."""
    return replace(run, precision="float32") if run.precision == "tf32" and device != "cuda" else run


def origin_of(run_digest: str, steps: int) -> str:
    """Names the state that a continued run starts from: `<digest>@<updates>`."""
    return f"{run_digest}@{steps}"


def digest(run: RunSpec, data_digest: str, origin: str | None = None) -> str:
    """16 hexadecimal digits that name a trajectory: equal digests, equal numbers after equally many updates.

    Taken in is what those numbers depend on: the objective as a fingerprint of what it computes, so that a corrected
    estimator is another run; seed, network, protocol, the whole schedule, precision, `algorithm_version`, the data,
    and for a continued run the state that it starts from (`origin_of`). Left out are labels and the depth.
    """
    # torch takes seconds to import, which stages that only read finished cohorts should not pay.
    from pipeline.objectives import fingerprint

    labels = ("name", "objective", "parameter", "dataset", "protocol_name", "max_steps", "continues")
    kept = {key: value for key, value in run.to_json().items() if key not in labels}
    estimator = fingerprint(run.objective, run.M, run.K, run.parameter)
    text = json.dumps([kept, estimator, data_digest, origin], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
