"""The resolved cohorts that `python -m pipeline.experiments` wrote.

Needs no package beyond the standard library, so that a bare machine reads what DVC reads.

    cohorts/index.json      what dvc.yaml reads, and `order`: every cohort's key in the order of params.yaml
    cohorts/<key>.json      one cohort, resolved
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import content_of, read_object

INDEX = "index.json"
WRITE_COHORTS = "run `python -m pipeline.experiments`, which writes it from params.yaml"


def load_index(folder: Path) -> dict[str, Any]:
    """The content of `index.json`. Raises: UserError when it is missing or damaged."""
    return read_object(folder / INDEX, WRITE_COHORTS)


def load_cohort(folder: Path, key: str) -> CohortSpec:
    """Raises: UserError naming the key when there is no such cohort, the file when it is damaged."""
    path = folder / f"{key}.json"
    if not path.exists():
        known = ", ".join(sorted(load_cohorts(folder)))
        raise UserError(f"unknown cohort {key!r}; known: {known}")
    return _cohort(path)


def _cohort(path: Path) -> CohortSpec:
    content = read_object(path, WRITE_COHORTS)
    with content_of(path, "a cohort", WRITE_COHORTS):
        return CohortSpec.from_json(content)


def load_cohorts(folder: Path) -> dict[str, CohortSpec]:
    """Every cohort in `folder` by key. Raises: UserError naming the file that is damaged."""
    cohorts = [_cohort(path) for path in sorted(folder.rglob("*.json")) if path.name != INDEX]
    return {cohort.key: cohort for cohort in cohorts}


def load_order(folder: Path) -> list[str]:
    """The keys of all cohorts in the order of params.yaml, which is the order to work in."""
    with content_of(folder / INDEX, "the index of the cohorts", WRITE_COHORTS):
        return list(load_index(folder)["order"])


def load_evaluation(folder: Path, cohort: CohortSpec) -> EvaluationSpec:
    """How the cohort's runs are evaluated: as its scale says, but for what its experiment says there.

    A fixed binarization is the only one of its test set.
    """
    from pipeline.data.catalogue import DATASETS

    with content_of(folder / INDEX, "the index of this cohort", WRITE_COHORTS):
        spec = EvaluationSpec.from_json(load_index(folder)["evaluations"][cohort.scale][cohort.experiment])
    if DATASETS[cohort.dataset].fixed:
        return replace(spec, binarizations=1, binarization_images=0, binarization_samples=0)
    return spec
