"""What a run is between two steps, on disk: a checkpoint while it trains, waypoints that stay.

    <store>/<digest>/checkpoint.safetensors    the state, whole or absent; replaced as training goes on
    <store>/<digest>/waypoint-<updates>/       the state after so many updates, whole or absent:
        run.json               spec, digest, status, how it was trained, SHA-256 and size of the other files
        weights.safetensors    by layers' names
        optimizer.safetensors  Adam's moments, and the averages under way
        history.csv            the training curve so far
    <store>/<digest>/aside/                    what was found damaged

A run taken to some depth is finished when its waypoint there is whole; a deeper one goes on from it. Every file names
the run's digest and carries a SHA-256, which is verified whenever it is read.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.experiments.schedule import waypoint_steps
from pipeline.experiments.spec import RunSpec, origin_of
from pipeline.files import set_aside, sha256_file, write_text
from pipeline.models.networks import Parameters, flatten
from pipeline.records.facts import Stretch, TrainingFacts
from pipeline.records.sealed import (
    Damaged,
    load_tensors,
    peek,
    read_sealed_json,
    reading,
    save_tensors,
    write_sealed_json,
)
from pipeline.records.status import Status

HISTORY_COLUMNS = ("step", "epoch", "learning_rate", "seconds", "bound", "elbo", "iwae", "reconstruction", "rows_kept")
"""`bound`: the objective's own value; `elbo` and `iwae`: mean of log w and log mean w over all T samples;
`reconstruction`: mean log p(x | h1). Nats per image, averaged over the updates since the last point.
`rows_kept`: the share of samples in the backward pass, from which the compiled step leaves those of no weight."""
AVERAGED = HISTORY_COLUMNS[4:]

RUN_JSON, HISTORY, WEIGHTS, OPTIMIZER = "run.json", "history.csv", "weights.safetensors", "optimizer.safetensors"
CHECKPOINT = "checkpoint.safetensors"
RUN_SHAPE = {"spec": dict, "digest": str, "steps": int, "status": str, "training": dict, "files": dict}
"""The fields of run.json that are always there."""
LISTED = frozenset((HISTORY, WEIGHTS, OPTIMIZER))
"""What a waypoint's run.json lists, at the least."""
WAYPOINT = "waypoint-"
PART = ".part"


def waypoint_name(steps: int) -> str:
    """The folder of a waypoint: zeros in front keep them in order."""
    return f"{WAYPOINT}{steps:08d}"


@dataclass(frozen=True)
class Job:
    """A run to be trained: its spec, its digest, its folder in the store, and the waypoint that it continues."""

    spec: RunSpec
    digest: str
    folder: Path
    continues: Path | None
    origin: str | None = None
    """What must be found at `continues`, as `pipeline.experiments.spec.origin_of` names it; None for whatever is."""
    marks: tuple[int, ...] = ()
    """Updates after which the same trajectory ends elsewhere in the grid: its state is kept there too."""

    @property
    def finished(self) -> Path:
        """The waypoint at the run's depth."""
        return self.waypoint(self.spec.total_steps)

    @property
    def is_finished(self) -> bool:
        return is_whole(self.finished, self.digest)

    @property
    def waypoints(self) -> list[int]:
        """The updates after which the state is kept, to the run's depth."""
        return waypoint_steps(self.spec, self.marks)

    def waypoint(self, steps: int) -> Path:
        return self.folder / waypoint_name(steps)

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The run's checkpoint; and one that is used where that one lies beyond the run's depth."""
        return self.folder / CHECKPOINT, self.folder / f"checkpoint-to-{self.spec.total_steps}.safetensors"

    @property
    def steps_done(self) -> int:
        """Updates towards the run's depth that a checkpoint or waypoint holds; reads a few bytes."""
        if self.is_finished:
            return self.spec.total_steps
        done = [steps for steps in stored_waypoints(self.folder) if is_whole(self.waypoint(steps), self.digest)]
        steps = [*done, *(checkpoint_step(path) for path in self.checkpoints)]
        return max((step for step in steps if step <= self.spec.total_steps), default=0)


@dataclass
class RunState:
    """One run after `step` updates; all that the rest of its training depends on."""

    step: int
    flat: Tensor
    m: Tensor
    v: Tensor
    earlier_steps: int = 0
    """Updates made by the run that this one continues: Adam's count and the random streams go on from there."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(AVERAGED), dtype=torch.float64))
    """Totals of the `AVERAGED` columns since the last history point."""
    summed: int = 0
    history: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    started: str = ""
    diverged_at: int | None = None
    stretches: list[Stretch] = field(default_factory=list)
    """Where and how it was trained, from update to update: a run may go from machine to machine."""

    @property
    def status(self) -> str:
        return str(Status(self.diverged_at))


_WITHOUT_PROVENANCE: dict[str, Any] = {"seconds": 0.0, "started": "", "stretches": []}
"""A state's scalars that differ from time to time, as they are in a copy that DVC keeps."""
LASTING = ("steps", "epochs")
"""Facts of a training that do not differ from time to time."""
_SCALARS = ("step", "earlier_steps", "summed", "seconds", "started", "diverged_at", "stretches")


def save_checkpoint(path: Path, state: RunState, digest: str) -> None:
    """All that training needs to go on with the same bits; `digest`: whose state it is."""
    tensors = {"flat": state.flat, "m": state.m, "v": state.v, "sums": state.sums}
    tensors["history"] = torch.tensor(state.history, dtype=torch.float64).reshape(-1, len(HISTORY_COLUMNS))
    save_tensors(path, tensors, digest, {name: getattr(state, name) for name in _SCALARS})


def load_checkpoint(path: Path, digest: str | None = None) -> RunState | None:
    """The state in `path`; None where there is none. `digest`: whose it must be.

    Raises: Damaged when it is not what was written there; UserError when it cannot be read.
    """
    if not path.exists():
        return None
    tensors, scalars = load_tensors(path, digest)
    try:
        return RunState(**{**tensors, "history": tensors["history"].tolist(), **scalars})
    except (KeyError, TypeError) as error:
        raise Damaged(path, "not a checkpoint of this revision") from error


def checkpoint_step(path: Path) -> int:
    """How many updates a checkpoint holds, 0 where there is none or a damaged one; reads a few bytes.

    Raises: UserError naming the file when the system refuses to read it.
    """
    if not path.exists():
        return 0
    try:
        return int(peek(path)["step"])
    except (Damaged, KeyError, TypeError, ValueError):
        return 0


def read_weights(path: Path, latent: tuple[int, ...], digest: str | None = None) -> Tensor:
    """One row of a parameter buffer, [count], from a file that `save_weights` wrote. `digest`: whose it must be.

    Raises: Damaged when it is not what was written there or of another network; UserError when it is missing.
    """
    tensors, _ = load_tensors(path, digest)
    try:
        return flatten(latent, tensors)
    except (KeyError, RuntimeError) as error:
        raise Damaged(path, "not the weights of this network") from error


def save_weights(path: Path, latent: tuple[int, ...], flat: Tensor, digest: str, steps: int) -> None:
    """Write the weights of one run under their layers' names."""
    named = Parameters(latent, flat.unsqueeze(0).cpu()).named_tensors(0)
    save_tensors(path, named, digest, {"steps": steps})


def history_csv(history: list[list[float]]) -> str:
    """The training curve as text, a row for each recorded update, to 8 digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY_COLUMNS)
    writer.writerows([int(row[0]), *(f"{value:.8g}" for value in row[1:])] for row in history)
    return text.getvalue()


def read_history_rows(path: Path) -> list[list[float]]:
    """The rows of a history.csv, in `HISTORY_COLUMNS` order.

    Raises: Damaged when it is none; UserError when it is missing or cannot be read.
    """
    remedy = "train the run again"
    try:
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        values = [[float(value) for value in row] for row in rows]
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
    except ValueError as error:
        raise Damaged(path, f"not a training history; {remedy}") from error
    if tuple(header) != HISTORY_COLUMNS or any(len(row) != len(HISTORY_COLUMNS) for row in values):
        raise Damaged(path, f"not a training history of this revision; {remedy}")
    return values


def write_waypoint(job: Job, state: RunState, facts: TrainingFacts) -> None:
    """Keep the state after `state.step` updates. `facts`: how the run was trained, for run.json.

    One that is there already and whole stays as it is: equal digests, equal numbers.
    """
    target = job.waypoint(state.step)
    if is_whole(target, job.digest):
        return
    if is_thinned(target, job.digest):
        shutil.rmtree(target, ignore_errors=True)
    elif target.exists():
        set_aside(target, f"{target}: not whole")
    building = job.folder / f"{target.name}{PART}"
    shutil.rmtree(building, ignore_errors=True)
    save_weights(building / WEIGHTS, job.spec.latent, state.flat, job.digest, state.step)
    tensors = {"m": state.m, "v": state.v, "sums": state.sums}
    scalars = {name: getattr(state, name) for name in _SCALARS}
    save_tensors(building / OPTIMIZER, tensors, job.digest, scalars)
    write_text(building / HISTORY, history_csv(state.history))
    content = {
        "spec": replace(job.spec, max_steps=state.step).to_json(),
        "digest": job.digest,
        "steps": state.step,
        "origin": job.origin,
        "status": state.status,
        "training": facts,
        "files": _listed(building, (WEIGHTS, OPTIMIZER, HISTORY)),
    }
    write_sealed_json(building / RUN_JSON, content)
    building.rename(target)


def forget_provenance(folder: Path) -> None:
    """Take out of a copied waypoint, whole or in part, what differs from time to time: hosts, dates, durations.

    What stays depends on the run's digest and its updates alone, so that DVC finds equal runs equal. The store keeps
    the rest.
    """
    content = read_run(folder)
    if (folder / OPTIMIZER).exists():
        tensors, scalars = load_tensors(folder / OPTIMIZER, content["digest"])
        save_tensors(folder / OPTIMIZER, tensors, content["digest"], {**scalars, **_WITHOUT_PROVENANCE})
    if (folder / HISTORY).exists():
        at = HISTORY_COLUMNS.index("seconds")
        rows = read_history_rows(folder / HISTORY)
        write_text(folder / HISTORY, history_csv([[*row[:at], 0.0, *row[at + 1 :]] for row in rows]))
    content["training"] = {name: value for name, value in content["training"].items() if name in LASTING}
    content["files"] = _listed(folder, [name for name in content["files"] if (folder / name).exists()])
    write_sealed_json(folder / RUN_JSON, content)


def _listed(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What run.json says of the files beside it."""
    return {name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def stored_waypoints(folder: Path) -> list[int]:
    """The updates of every waypoint in a run's folder, whole or not, the last first."""
    names = (path.name.removeprefix(WAYPOINT) for path in folder.glob(f"{WAYPOINT}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def is_whole(folder: Path, digest: str | None = None, names: Sequence[str] = ()) -> bool:
    """Whether a waypoint's folder has a sound run.json and the files that it lists, of the sizes that it says.

    `names`: so many of them do. Contents are verified when they are read (`verify_waypoint`, `load_waypoint`).
    """
    try:
        content = read_run(folder)
        listed = content["files"]
        if not (set(names) - {RUN_JSON} or LISTED) <= listed.keys():
            return False
        looked_at = [name for name in listed if not names or name in names]
        sizes_agree = all((folder / name).stat().st_size == listed[name]["bytes"] for name in looked_at)
    except (UserError, OSError, KeyError, TypeError):
        return False
    return sizes_agree and (digest is None or content["digest"] == digest)


def is_thinned(folder: Path, digest: str | None = None) -> bool:
    """Whether a waypoint's folder has a sound run.json and neither weights nor an optimizer's state.

    A run that goes on from a deeper state may be carried so (`pipeline.launch.archive`): the waypoint's evaluations
    hold, and others cannot be made.
    """
    if (folder / WEIGHTS).exists() or (folder / OPTIMIZER).exists():
        return False
    try:
        content = read_run(folder)
    except UserError:
        return False
    return digest is None or bool(content["digest"] == digest)


def verify_waypoint(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """The content of a waypoint's run.json once every file that it lists has its SHA-256.

    Raises: Damaged naming the file that is not what was written; UserError when one is missing or cannot be read.
    """
    content = read_run(folder)
    if digest is not None and content["digest"] != digest:
        raise Damaged(folder / RUN_JSON, f"belongs to run {content['digest']}, not to {digest}")
    if missing := LISTED - content["files"].keys():
        raise Damaged(folder / RUN_JSON, f"does not list {min(missing)}")
    for name, told in content["files"].items():
        path = folder / name
        with reading(path, listed=True):
            sha256 = sha256_file(path)
        if sha256 != told["sha256"]:
            raise Damaged(path, f"damaged: its SHA-256 is not the one in {RUN_JSON}")
    return content


def load_waypoint(folder: Path, latent: tuple[int, ...], digest: str | None = None) -> RunState:
    """The whole state that `write_waypoint` kept, verified.

    Raises: Damaged naming the file that is not what was written; UserError when one is missing or cannot be read.
    """
    owner = verify_waypoint(folder, digest)["digest"]
    flat = read_weights(folder / WEIGHTS, latent, owner)
    tensors, scalars = load_tensors(folder / OPTIMIZER, owner)
    try:
        return RunState(**{"flat": flat, **tensors, "history": read_history_rows(folder / HISTORY), **scalars})
    except TypeError as error:
        raise Damaged(folder / OPTIMIZER, "not an optimizer's state of this revision") from error


def _states(job: Job) -> Iterator[Path]:
    """Checkpoints and waypoints up to the run's depth: what is plainly damaged, then the deepest first."""
    waypoints = ((float(steps), job.waypoint(steps)) for steps in stored_waypoints(job.folder))
    states = [(steps, path) for steps, path in waypoints if not is_thinned(path, job.digest)]
    for path in job.checkpoints:
        if path.exists():
            states.append((checkpoint_step(path) or math.inf, path))
    for steps, path in sorted(states, reverse=True):
        if steps <= job.spec.total_steps or steps == math.inf:
            yield path


def stored_state(job: Job) -> RunState | None:
    """The deepest sound state of a run up to its depth; what is found damaged on the way is set aside.

    Raises: UserError when the system refuses to read it.
    """
    for path in _states(job):
        try:
            if path.name.startswith(WAYPOINT):
                return load_waypoint(path, job.spec.latent, job.digest)
            return load_checkpoint(path, job.digest)
        except Damaged as damaged:
            set_aside(path, str(damaged))
    return None


def checkpoint_path(job: Job) -> Path:
    """Where a training to the run's depth keeps its checkpoint: one that lies beyond is not lost for it."""
    usual, other = job.checkpoints
    return other if checkpoint_step(usual) > job.spec.total_steps else usual


def heal(job: Job) -> None:
    """Set aside a finished waypoint whose files do not verify, so that it is computed again.

    One that was carried without its state is not damaged; training puts the whole one in its place.
    """
    if not job.finished.exists() or is_thinned(job.finished, job.digest):
        return
    try:
        verify_waypoint(job.finished, job.digest)
    except Damaged as damaged:
        set_aside(job.finished, str(damaged))
    except UserError as error:
        if (job.finished / RUN_JSON).exists():
            raise
        set_aside(job.finished, str(error))


def continued_state(job: Job) -> RunState:
    """The state in which a run starts that continues another: its weights, Adam's moments and step count.

    Raises: UserError naming the file that is missing or not what was written there.
    """
    assert job.continues is not None
    content = read_run(job.continues)
    there = origin_of(content["digest"], content["steps"])
    if job.origin is not None and there != job.origin:
        raise Damaged(job.continues, f"holds {there}, but {job.spec.name} continues {job.origin}")
    earlier = load_waypoint(job.continues, job.spec.latent, content["digest"])
    return RunState(0, earlier.flat, earlier.m, earlier.v, earlier_steps=earlier.earlier_steps + earlier.step)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a waypoint's run.json.

    Raises: Damaged when it is not what was written; UserError when it is missing or cannot be read.
    """
    return read_sealed_json(folder / RUN_JSON, RUN_SHAPE)


def waypoint_beside(folder: Path, steps: int) -> Path:
    """An earlier waypoint of the run whose folder this is: within it where it was copied, beside it in the store."""
    within = folder / waypoint_name(steps)
    return within if within.exists() else folder.parent / waypoint_name(steps)
