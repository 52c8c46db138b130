"""Final weights that are in git beside the report, so that anyone can check an NLL without training.

    reports/<scale>/weights/<cohort>/<run>.safetensors    float32, as in the run directory
    reports/<scale>/weights/index.json                    cell -> file, digest of its run, SHA-256; sealed by itself

Needs torch, numpy and safetensors alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.datasets import Dataset
from pipeline.errors import UserError
from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import likelihoods, model_log_weights
from pipeline.evaluation.spacing import evenly_spaced
from pipeline.experiments.known import BURDA_TABLE1, BURDA_TABLE2, BURDA_TABLE3, RAINFORTH_TABLE1
from pipeline.files import atomic_path, content_of, sha256_file, write_json
from pipeline.models.networks import Parameters
from pipeline.paths import Paths
from pipeline.records.results import NATS_STEP, RunResult
from pipeline.records.run_folder import WEIGHTS, is_whole, read_run, read_weights, waypoint_name
from pipeline.records.store import training_folder
from pipeline.records.sums import read_sealed, sealed

WEIGHTS_INDEX = "index.json"
ENTRY = ("file", "digest", "sha256")
MEGABYTES = {"paper": 40.0}
OTHER_MEGABYTES = 6.0
"""Room for the weights of a scale that is not the papers'."""
EXPERIMENTS = (BURDA_TABLE1, RAINFORTH_TABLE1, BURDA_TABLE3, BURDA_TABLE2)
"""Which tables come first where not every row has room; others follow."""
OBJECTIVE_ORDER = ("iwae", "piwae", "miwae", "ciwae", "vae")
ROUNDING = 0.01
"""Nats by which one image's log p_hat may differ: the random numbers are the same everywhere, and what is left is
float32's rounding in another order."""


def _index(folder: Path) -> dict[str, dict[str, str]]:
    """What is shipped in a weights folder, by cell; nothing where there is no index.

    Raises: UserError naming the index that is not what was written.
    """
    path = folder / WEIGHTS_INDEX
    if not path.exists():
        return {}
    remedy = f"`git checkout {path}` brings it back; or delete it, and `make weights` ships what is on this machine"
    value = read_sealed(path, remedy)
    with content_of(path, "a list of shipped weights", remedy):
        return {cell: {name: str(entry[name]) for name in ENTRY} for cell, entry in value.items()}


def _row(result: RunResult) -> tuple[object, ...]:
    """The table row and protocol of a run: in Burda's tables depth and k, in Rainforth's the objective."""
    spec = result.spec
    within = (spec.objective,) if result.experiment == RAINFORTH_TABLE1 else (spec.layers, spec.T)
    return result.experiment, spec.protocol_name, *within


def _rank(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def select(results: Iterable[RunResult]) -> list[RunResult]:
    """Finished runs in the order in which they are shipped: one of each table row and protocol, then a second, ..."""
    rows: dict[tuple[object, ...], list[RunResult]] = {}
    finished = [result for result in results if result.is_finished]
    for result in sorted(finished, key=lambda r: (_rank(EXPERIMENTS, r.experiment), r.spec.layers, r.spec.T)):
        rows.setdefault(_row(result), []).append(result)
    for runs in rows.values():
        # MNIST before others: its data is the easiest to have.
        runs.sort(key=lambda r: (r.spec.seed, r.spec.dataset != "mnist", _rank(OBJECTIVE_ORDER, r.spec.objective)))
    return [result for turn in zip_longest(*rows.values()) for result in turn if result is not None]


def _weights_of(result: RunResult, store: Path, paths: Paths) -> Path | None:
    """The weights of exactly this run, from `runs/` or the store."""
    steps = result.spec.total_steps
    copied = training_folder(paths.runs, result.cohort) / result.spec.name
    stored = store / result.digest / waypoint_name(steps)
    for folder in (copied, stored):
        if is_whole(folder, result.digest, (WEIGHTS,)) and read_run(folder)["steps"] == steps:
            return folder / WEIGHTS
    return None


def ship(results: list[RunResult], scale: str, store: Path, paths: Paths, list_all: bool = False) -> list[str]:
    """Fill the scale's weights folder as far as there is room; returns a sentence per thing to know.

    `list_all`: name each cell that stands for a table row without room, a line each.

    What is shipped already stays where its run's weights are not on this machine.

    Raises: UserError when there is nothing to ship.
    """
    folder, limit = paths.weights(scale), 1e6 * MEGABYTES.get(scale, OTHER_MEGABYTES)
    known = _index(folder)
    index: dict[str, dict[str, Any]] = {}
    served: set[tuple[object, ...]] = set()
    without_room: dict[tuple[object, ...], str] = {}
    absent, used = [], 0
    for result in select(results):
        there = known.get(result.cell, {})
        kept = folder / there["file"] if there.get("digest") == result.digest else None
        source = _weights_of(result, store, paths) or (kept if kept is not None and kept.exists() else None)
        if source is None:
            absent.append(result.cell)
            continue
        size = source.stat().st_size
        if used + size > limit:
            without_room.setdefault(_row(result), result.cell)
            continue
        used += size
        served.add(_row(result))
        name = f"{result.name.within_scale}.safetensors"
        sha256 = sha256_file(source)
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source, temporary)
        index[result.cell] = {"file": name, "digest": result.digest, "sha256": sha256}
    if not index:
        where = f"{paths.runs}/ or {store}/"
        raise UserError(f"{scale}: no weights of finished runs in {where}; `dvc pull` or train them first")
    for path in folder.rglob("*.safetensors"):
        if path.relative_to(folder).as_posix() not in {entry["file"] for entry in index.values()}:
            path.unlink()
    if index != known:
        write_json(folder / WEIGHTS_INDEX, sealed(index))
    said = [f"{folder}: weights of {len(index)} runs, {used / 1e6:.1f} of at most {limit / 1e6:.0f} MB"]
    if left_out := [cell for row, cell in without_room.items() if row not in served]:
        one = len(left_out) == 1
        told = "" if list_all else f"; --list names {'it' if one else 'them'}"
        rows = "1 table row has" if one else f"{len(left_out)} table rows have"
        said.append(f"{rows} no weights there: no room within {limit / 1e6:.0f} MB{told}")
        said += [f"  {cell}" for cell in left_out if list_all]
    if absent:
        said.append(f"{len(absent)} runs have results but no weights on this machine, such as {absent[0]}")
    return said


def shipped_cells(paths: Paths) -> list[str]:
    """Every cell whose weights are shipped, the papers' scale first."""
    files = paths.reports.glob(f"*/weights/{WEIGHTS_INDEX}")
    indices = sorted(files, key=lambda path: (path.parent.parent.name != "paper", path))
    return [cell for path in indices for cell in _index(path.parent)]


def shipped_weights(result: RunResult, paths: Paths) -> Path:
    """The file with the weights of a committed result, verified.

    Raises: UserError when it is missing, damaged or of another run.
    """
    folder = paths.weights(result.scale)
    entry = _index(folder).get(result.cell)
    if entry is None:
        known = ", ".join(shipped_cells(paths)) or "none; `make weights` ships some"
        raise UserError(f"{result.cell}: its weights are not shipped; choose one of: {known}")
    path = folder / entry["file"]
    if entry["digest"] != result.digest:
        raise UserError(f"{path}: weights of run {entry['digest']}, results of {result.digest}; run `make weights`")
    if not path.exists():
        raise UserError(f"{path}: missing; `git checkout {path}` brings it back")
    with content_of(path, "a file of weights", f"`git checkout {path}` brings it back"):
        sha256 = sha256_file(path)
    if sha256 != entry["sha256"]:
        raise UserError(
            f"{path}: not the file that was shipped (its SHA-256 differs); `git checkout {path}` brings it back"
        )
    return path


@dataclass(frozen=True)
class Check:
    """A recomputed NLL beside the committed one, over the same images; nats."""

    cell: str
    images: int
    total: int
    nll: float
    committed: float
    largest: float
    """The largest difference of one image's log p_hat."""
    shown: float
    """The NLL of tables and MLflow, which is of all evaluated images."""
    mean: float
    """The mean of what is committed of these images one by one."""

    @property
    def difference(self) -> float:
        return self.nll - self.committed

    @property
    def images_agree(self) -> bool:
        return self.largest <= ROUNDING

    @property
    def agrees(self) -> bool:
        return self.images_agree and abs(self.shown - self.mean) <= NATS_STEP


def check_nll(result: RunResult, weights: Path, dataset: Dataset, count: int, device: torch.device) -> Check:
    """Estimate the NLL of a committed run anew on `count` of its test images, evenly spaced.

    With the evaluation's own seed and sample count the very same random numbers are drawn for an image, on any device
    and whichever others are estimated with it.

    Raises: UserError when the data or the weights are not those of the run.
    """
    if dataset.digest != (expected := result.training["data"]["digest"]):
        told = f"its digest is {dataset.digest[:16]}, the run's {expected[:16]}"
        raise UserError(f"{result.cell}: {dataset.name} here is not the data that it was evaluated on ({told})")
    evaluation, committed = result.evaluation, result.arrays["log_p_hat"]
    evaluated = evenly_spaced(len(dataset.test_bits), evaluation["test_images"])
    if len(evaluated) != len(committed):
        told = f"{len(committed)} committed values for {len(evaluated)} images"
        raise UserError(f"{result.cell}: {told}; evaluate it again")
    places = evenly_spaced(len(evaluated), count)
    images = Images.of(dataset.test_bits, evaluated[places], device)
    p = Parameters(result.spec.latent, read_weights(weights, result.spec.latent).to(device).unsqueeze(0))
    log_weights = model_log_weights(p, evaluation["seed"])
    estimate = likelihoods(log_weights, images, evaluation["num_samples"], evaluation["bound_samples"])
    ours, theirs = estimate.log_p_hat.astype(np.float64), committed[places].astype(np.float64)
    largest = float(np.max(np.abs(ours - theirs)))
    return Check(
        cell=result.cell,
        images=len(places),
        total=len(evaluated),
        nll=-float(ours.mean()),
        committed=-float(theirs.mean()),
        largest=largest,
        shown=result.metrics["nll"],
        mean=-float(committed.mean(dtype=np.float64)),
    )
