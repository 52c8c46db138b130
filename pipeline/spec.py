"""What is to be trained, fully resolved: runs and the cohorts (stacks) that they form.

Plain dataclasses that travel as JSON, so that training needs neither params.yaml nor DVC.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.protocol import Protocol

BATCH_SIZE = 20


@dataclass(frozen=True)
class Stage:
    """A stretch of the schedule at one learning rate."""

    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class RunSpec:
    """One training run. Two runs with equal specs on equal data are the same run."""

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
    max_steps: int | None
    """Stop after so many updates even if the schedule goes on."""
    precision: str
    """`float32`, `tf32` (CUDA only; on a CPU the same as float32), `bfloat16` (large products) or `float64`."""
    continues: str | None
    """`<cohort>/<run>` whose final weights and optimizer state this run starts from."""
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
    def total_steps(self) -> int:
        scheduled = self.steps_per_epoch * sum(stage.epochs for stage in self.schedule)
        return scheduled if self.max_steps is None else min(scheduled, self.max_steps)

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
    """Samples per image of the likelihood estimate (5000 in both papers)."""
    bound_samples: int
    """Samples of the bound reported beside it (Rainforth's IWAE-64)."""
    test_images: int | None
    """So many test images, evenly spaced; None for all."""
    train_images: int
    """So many training images for `train_nll`; 0 for none."""
    pruned: bool
    """Also estimate the NLL with inactive units removed."""
    diagnostic_images: int = 0
    """So many test images, evenly spaced, to measure q's spread and read decoded digits on; 0 for no diagnostics."""
    snr_gradients: int = 0
    """So many gradients at each checkpoint for their signal-to-noise ratio; 0 for none."""


@dataclass(frozen=True)
class ToySpec:
    """How the gradients of Rainforth's Gaussian model are measured."""

    seed: int
    samples: tuple[int, ...]
    """M of VAE, K of IWAE and IWAE-DReG."""
    gradients: int
    """Draws of each."""


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
        return None if source is None else source.rpartition("/")[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "experiment": self.experiment,
            "name": self.name,
            "dataset": self.dataset,
            "continues": self.continues,
            "runs": [run.to_json() for run in self.runs],
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> CohortSpec:
        runs = tuple(RunSpec.from_json(run) for run in value["runs"])
        return CohortSpec(value["scale"], value["experiment"], value["name"], runs)


def digest(run: RunSpec, data_digest: str, continues_digest: str | None = None) -> str:
    """16 hexadecimal digits that name the result of a run: equal digests, equal numbers (on one machine).

    The run's name is left out: it is a label. A continued run takes in the digest of the run it starts from.
    """
    resolved = replace(run, name="", continues=None).to_json()
    text = json.dumps([resolved, data_digest, continues_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
