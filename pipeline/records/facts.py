"""What is recorded of how a run was trained and evaluated: in run.json, beside evaluations, and in provenance.json.

Records are mappings, as they are in their files. A field may be missing: files of earlier revisions have fewer, and the
copy of a run that DVC keeps has none that differs from time to time.
"""

from __future__ import annotations

from typing import TypedDict

from pipeline.data.datasets import DatasetFacts


class Origin(TypedDict, total=False):
    """Which code made a number, and how it was called."""

    git_revision: str | None
    command: str


class Made(Origin, total=False):
    """What made a number."""

    device: str
    """The processor's or graphics card's name."""
    torch: str
    wall_s: float
    """Seconds that it took."""


class Conditions(Made, total=False):
    """Where and how a run was trained for a while."""

    started: str
    finished: str
    """ISO 8601, UTC."""
    engine: str
    """The engine that made the updates: one of `pipeline.experiments.choices`, or the compiled step."""
    workers: int
    """Processes that trained at once."""
    stacked: int
    """Runs that trained together, which `wall_s` is the time of."""
    threads: int
    python: str


class Given(Origin, total=False):
    """What the caller of a training tells of it, for run.json."""

    workers: int
    data: DatasetFacts
    """The whole of dataset.json."""


_Ends = TypedDict("_Ends", {"from": int, "to": int}, total=False)


class Stretch(Conditions, _Ends, total=False):
    """Updates `from` to `to` of a run, made under the same conditions."""


class TrainingFacts(Conditions, total=False):
    """How a run came to where it is: the conditions of its last stretch, the times of all of them together."""

    steps: int
    """Updates."""
    epochs: float
    stretches: list[Stretch]
    data: DatasetFacts


class EvaluationFacts(Made, total=False):
    """How a waypoint was evaluated: its digest, and the fields of `pipeline.experiments.spec.EvaluationSpec`."""

    digest: str
    seed: int
    num_samples: int
    bound_samples: int
    test_images: int | None
    train_images: int
    pruned_images: int
    diagnostic_images: int
    snr_gradients: int
    binarizations: int
    binarization_images: int
    binarization_samples: int
    earlier: None
