"""What the store, `runs/` and `reports/` hold that no grid names any more, and what killed processes left.

A run that was renamed stays, since its digest is the same; one whose settings were changed is another run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.classifier import reader_path
from pipeline.experiments.cohorts import INDEX, load_cohorts
from pipeline.experiments.spec import CohortSpec
from pipeline.files import ASIDE, OWNED, abandoned
from pipeline.paths import Paths
from pipeline.records.results import RUNS
from pipeline.records.run_folder import PART, read_run, stored_waypoints, waypoint_name
from pipeline.records.store import stored_jobs

KILLED = "left by a process that was killed"
DIGEST = re.compile(r"[0-9a-f]{16}")
Grid = Mapping[str, CohortSpec]


@dataclass(frozen=True)
class Litter:
    """A file or folder that nothing needs."""

    path: Path
    why: str
    lock: str | None = None
    """The run, by its digest, whose lock must be had to remove it, lest another process is at work on it."""

    @property
    def bytes(self) -> int:
        paths = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(path.lstat().st_size for path in paths if path.is_file())


def grids(root: Path) -> list[Grid]:
    """The cohorts of every params.yaml under `root`: the project's own, and those of experiments beside it."""
    return [load_cohorts(path.parent) for path in sorted(root.glob(f"**/cohorts/{INDEX}")) if not _hidden(path, root)]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def named_digests(every: Iterable[Grid], store: Path, paths: Paths) -> set[str]:
    """The digests of all runs of these grids whose data is here, as a GPU and as a CPU computes them."""
    named: set[str] = set()
    for cohorts in every:
        for cohort in cohorts.values():
            if not paths.binarized(cohort.dataset).exists():
                continue
            data = load_dataset(paths.binarized(cohort.dataset)).digest
            for device in ("cpu", "cuda"):
                named |= {job.digest for job in stored_jobs(cohort, cohorts, data, store, device)}
    return named


def unnamed_runs(store: Path, named: set[str], absent: set[str]) -> Iterator[Litter]:
    """Runs in the store that no grid names.

    `absent`: datasets that are not here. A run's digest takes in its data, so that their runs cannot be told from
    others, and stay, as does what does not say whose it is.
    """
    for path in sorted(store.glob("*")):
        if DIGEST.fullmatch(path.name) and path.is_dir() and path.name not in named:
            dataset = _dataset_of(path)
            if not absent or (dataset is not None and dataset not in absent):
                yield Litter(path, "a run that no grid names", path.name)


def _dataset_of(folder: Path) -> str | None:
    for steps in stored_waypoints(folder):
        with suppress(UserError, KeyError):
            return str(read_run(folder / waypoint_name(steps))["spec"]["dataset"])
    return None


def leftovers(store: Path, named: set[str], datasets: Sequence[str], paths: Paths) -> Iterator[Litter]:
    """What killed processes left, what was set aside, locks of runs that are gone, readers of other data."""
    for path in sorted(store.glob("locks/*")):
        if DIGEST.fullmatch(path.stem) and path.stem not in named and not (store / path.stem).exists():
            yield Litter(path, "the lock of a run that is gone", path.stem)
    here = [name for name in datasets if paths.binarized(name).exists()]
    kept = {reader_path(store, load_dataset(paths.binarized(name)).digest) for name in here}
    for path in sorted(store.glob(reader_path(store, "*").name)):
        if path not in kept and here == list(datasets):
            yield Litter(path, "a reader of digits of other data")
    for path in sorted(store.rglob("*")):
        of_run = path.relative_to(store).parts[0]
        lock = of_run if of_run in named else None
        if _inside_litter(path, store) or (DIGEST.fullmatch(of_run) and lock is None):
            continue
        if path.name == ASIDE:
            yield Litter(path, "what was found damaged", lock)
        elif abandoned(path) or (path.name.endswith(PART) and OWNED.search(path.name) is None):
            yield Litter(path, KILLED, lock)


def unfinished(paths: Paths) -> Iterator[Litter]:
    """What killed processes left outside of the store: downloads, and files that they were writing."""
    for folder in (paths.data, paths.runs, paths.reports, paths.cohorts, paths.root / ".mlflow"):
        for path in sorted(folder.rglob(".*")):
            if abandoned(path) and not _inside_litter(path, folder):
                yield Litter(path, KILLED)


def _inside_litter(path: Path, root: Path) -> bool:
    """Whether a folder above is removed with all that is in it, or is somebody's who works in it."""
    above = path.relative_to(root).parts[:-1]
    return any(part == ASIDE or part.endswith(PART) or OWNED.search(part) for part in above)


def unnamed_cohorts(cohorts: Grid, paths: Paths) -> Iterator[Litter]:
    """Folders of results and of finished runs whose cohort the project's own grid does not have."""
    for parent, marker, kind in (
        (paths.reports, f"*/results/*/{RUNS}", "results"),
        (paths.runs, "*/*/training", "runs"),
    ):
        for path in sorted(parent.glob(marker)):
            folder = path.parent
            scale = folder.relative_to(parent).parts[0]
            if f"{scale}/{folder.name}" not in cohorts:
                yield Litter(folder, f"{kind} of a cohort that the grid does not have")


def all_litter(paths: Paths, store: Path, grid: Grid) -> list[Litter]:
    """Everything that can be removed.

    Raises: UserError where there is no grid.
    """
    every = grids(paths.root)
    if not grid or grid not in every:
        raise UserError(f"{paths.root.resolve()}: no cohorts/ of a params.yaml here; run from the project's folder")
    named = named_digests(every, store, paths)
    datasets = sorted({cohort.dataset for cohorts in every for cohort in cohorts.values()})
    absent = {name for name in datasets if not paths.binarized(name).exists()}
    return [
        *unnamed_runs(store, named, absent),
        *leftovers(store, named, datasets, paths),
        *unfinished(paths),
        *unnamed_cohorts(grid, paths),
    ]
