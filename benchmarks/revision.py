"""An older revision's training and likelihood, from a process in which that revision is what `import` finds.

`benchmarks.ours` is its door: `work`, or `stack_of` and `estimate_nll` before there was one. Nothing of this revision
but the clock is used.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent


def _failure(command: list[str]) -> str | None:
    """Run a command to its end, also where this process is asked to end meanwhile; what it says where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, told = process.communicate()
    except BaseException:
        # What is half made cannot be removed.
        process.wait()
        raise
    return None if process.returncode == 0 else told


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A worktree of a revision in a temporary folder.

    Raises: UserError when git has no such revision.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "revision"
        command = ["git", "-C", str(ROOT), "worktree"]
        # Of what was killed the folder went with the machine's temporary files, and git still lists it.
        subprocess.run([*command, "prune"], capture_output=True, check=False)
        try:
            told = _failure([*command, "add", "--detach", str(path), revision])
            if told is not None:
                raise UserError(f"--against {revision}: git cannot check it out: {told.strip().splitlines()[-1]}")
            yield path
        finally:
            # Twice: git locks a worktree while it is made.
            subprocess.run([*command, "remove", "--force", "--force", str(path)], capture_output=True, check=False)


def _memory() -> Any:
    try:
        return importlib.import_module("pipeline.work.memory")
    except ModuleNotFoundError:
        return importlib.import_module("pipeline.memory")


def work(value: dict[str, Any]) -> Any:
    """Units: updates or images. `value`: the fields of a `Case`."""
    cases, ours = (importlib.import_module(f"benchmarks.{name}") for name in ("cases", "ours"))
    if hasattr(ours, "work"):
        return ours.work(value)
    _memory().keep_freed_memory()
    images = torch.from_numpy(np.load(os.environ["BENCHMARK_IMAGES"])[: cases.IMAGES])
    if value["objective"] == "nll":
        if tuple(value["latent"]) != cases.LATENT:
            raise NotImplementedError("this revision measures the likelihood of the 1-layer network alone")
        return lambda tick: ours.estimate_nll(0, tick, images=images, bits=cases.binarized(images))
    case = cases.Case(value["name"], value["title"], value["objective"], value["M"], value["K"])
    run = replace(cases.run_spec(case, "published-code", seed=0), latent=tuple(value["latent"]))
    stack = ours.stack_of([run], images)
    return lambda tick: ours.advance(0, tick, stack=stack)
