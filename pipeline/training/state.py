"""What a run is between two steps, on disk: checkpoints while it trains, a run directory when it has ended.

<store>/<digest>/checkpoint.safetensors    the state, whole or absent
<store>/<digest>/stage-<i>.safetensors     weights at the end of the schedule's stage i
<store>/<digest>/run/                      the finished run, whole or absent
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json, write_json, write_text
from pipeline.models.networks import Parameters, flatten
from pipeline.spec import RunSpec

HISTORY_COLUMNS = ("step", "epoch", "learning_rate", "seconds", "bound", "elbo", "iwae", "reconstruction")
"""`bound`: the objective's own value; `elbo` and `iwae`: mean of log w and log mean w over all T samples;
`reconstruction`: mean log p(x | h1). Nats per image, averaged over the updates since the last point."""
AVERAGED = HISTORY_COLUMNS[4:]

RUN_JSON, HISTORY, WEIGHTS, OPTIMIZER = "run.json", "history.csv", "weights.safetensors", "optimizer.safetensors"
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Job:
    """A run to be trained: its spec, its digest, its folder in the store, and the finished run that it continues."""

    spec: RunSpec
    digest: str
    folder: Path
    continues: Path | None

    @property
    def finished(self) -> Path:
        return self.folder / "run"

    @property
    def is_finished(self) -> bool:
        return (self.finished / RUN_JSON).exists()


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


def save_checkpoint(path: Path, state: RunState) -> None:
    tensors = {"flat": state.flat, "m": state.m, "v": state.v, "sums": state.sums}
    tensors["history"] = torch.tensor(state.history, dtype=torch.float64).reshape(-1, len(HISTORY_COLUMNS))
    names = ("step", "earlier_steps", "summed", "seconds", "started", "diverged_at")
    scalars = json.dumps({name: getattr(state, name) for name in names})
    with atomic_path(path) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, {"state": scalars})


def load_checkpoint(path: Path) -> RunState | None:
    """The state in `path`; None where there is none.

    Raises: UserError naming the file when it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            scalars = json.loads(stream.metadata()["state"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        return RunState(
            flat=tensors["flat"],
            m=tensors["m"],
            v=tensors["v"],
            sums=tensors["sums"],
            history=tensors["history"].tolist(),
            **scalars,
        )
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); delete it to start this run anew") from error


def checkpoint_step(path: Path) -> int:
    """How many updates a checkpoint holds, 0 where there is none; reads a few bytes.

    Raises: UserError naming the file when it cannot be read.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as stream:
            return int(json.loads(stream.metadata()["state"])["step"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); delete it to start this run anew") from error


def read_weights(path: Path, latent: tuple[int, ...]) -> Tensor:
    """One row of a parameter buffer, [count], from a file that `save_weights` wrote.

    Raises: UserError naming the file when it is missing, unreadable or of another network.
    """
    try:
        return flatten(latent, load_file(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; train the run again (dvc repro on its training stage)") from error
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not the weights of this network ({error}); train the run again") from error


def save_weights(path: Path, latent: tuple[int, ...], flat: Tensor) -> None:
    """Write the weights of one run under their layers' names."""
    named = Parameters(latent, flat.unsqueeze(0).cpu()).named_tensors(0)
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, temporary)


def history_csv(history: list[list[float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HISTORY_COLUMNS)
    writer.writerows([int(row[0]), *(f"{value:.8g}" for value in row[1:])] for row in history)
    return text.getvalue()


def finish_run(job: Job, state: RunState, facts: dict[str, Any]) -> None:
    """Write the run directory, then drop the checkpoint. `facts`: how the run was trained, for run.json."""
    building = job.folder / "run.part"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    save_weights(building / WEIGHTS, job.spec.latent, state.flat)
    with atomic_path(building / OPTIMIZER) as temporary:
        moments = {"m": state.m.cpu().contiguous(), "v": state.v.cpu().contiguous()}
        save_file(moments, temporary, {"steps": str(state.earlier_steps + state.step)})
    write_text(building / HISTORY, history_csv(state.history))
    # Copied: after a kill before the folder has its name, the next attempt finds them where they were.
    stages = sorted(job.folder.glob("stage-*.safetensors"))
    for path in stages:
        shutil.copy2(path, building / path.name)
    status = "finished" if state.diverged_at is None else f"diverged at step {state.diverged_at}"
    write_json(
        building / RUN_JSON,
        {"spec": job.spec.to_json(), "digest": job.digest, "status": status, "training": facts},
    )
    building.rename(job.finished)
    for path in (job.folder / CHECKPOINT, *stages):
        path.unlink(missing_ok=True)


def continued_state(job: Job) -> RunState:
    """The state in which a run starts that continues another: final weights, Adam's moments and step count.

    Raises: UserError naming the file that is missing or cannot be read.
    """
    assert job.continues is not None
    flat = read_weights(job.continues / WEIGHTS, job.spec.latent)
    path = job.continues / OPTIMIZER
    try:
        with safe_open(path, framework="pt") as stream:
            steps = int(stream.metadata()["steps"])
            m, v = stream.get_tensor("m"), stream.get_tensor("v")
    except (SafetensorError, KeyError, OSError) as error:
        message = f"{path}: cannot be read ({error}); {job.spec.name} continues it: train that run again"
        raise UserError(message) from error
    return RunState(0, flat, m, v, earlier_steps=steps)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of a finished run's run.json."""
    value: dict[str, Any] = read_json(folder / RUN_JSON)
    return value
