"""The resolved cohorts that `python -m pipeline.grid` wrote, and the project's folders.

Needs no package beyond the standard library, so that a bare machine reads what DVC reads.

    cohorts/index.json      what dvc.yaml reads, and `order`: every cohort's key in the order of params.yaml
    cohorts/<key>.json      one cohort, resolved
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.spec import CohortSpec, EvaluationSpec

COHORTS = Path("cohorts")
RUNS = Path("runs")
REPORTS = Path("reports")
INDEX = "index.json"


def binarized(dataset: str) -> Path:
    """Where the binarize stage puts a dataset."""
    return Path("data/binarized") / dataset


def results_folder(key: str) -> Path:
    """Where the summaries of a cohort lie: `reports/<scale>/results/<name>`."""
    scale, _, name = key.partition("/")
    return REPORTS / scale / "results" / name


def load_cohort(folder: Path, key: str) -> CohortSpec:
    """Raises: UserError naming the key when there is no such cohort."""
    path = folder / f"{key}.json"
    if not path.exists():
        known = ", ".join(sorted(load_cohorts(folder)))
        raise UserError(f"unknown cohort {key!r}; known: {known}")
    return CohortSpec.from_json(read_json(path))


def load_cohorts(folder: Path) -> dict[str, CohortSpec]:
    """Every cohort in `folder` by key."""
    paths = sorted(path for path in folder.rglob("*.json") if path.name != INDEX)
    cohorts = [CohortSpec.from_json(read_json(path)) for path in paths]
    return {cohort.key: cohort for cohort in cohorts}


def load_order(folder: Path) -> list[str]:
    """The keys of all cohorts in the order of params.yaml, which is the order to work in."""
    content = read_json(folder / INDEX)
    if "order" not in content:
        raise UserError(f"{folder / INDEX}: written by an older revision; run `python -m pipeline.grid`")
    order: list[str] = content["order"]
    return order


def load_evaluation(folder: Path, scale: str) -> EvaluationSpec:
    return EvaluationSpec(**read_json(folder / INDEX)["evaluations"][scale])
