"""Remove DVC's record of its locks where a killed `dvc` left it half-written: `python -m stages.unlock`.

DVC refuses every command while `.dvc/tmp/rwlock` is no JSON, and forgets processes that are gone by itself. Nothing is
touched while a `dvc` edits the record.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from pathlib import Path

from pipeline.paths import Paths
from stages import run_stage

RECORD = Path(".dvc/tmp/rwlock")
GUARD = Path(".dvc/tmp/rwlock.lock")
"""Below the project's folder. DVC holds it (flock) while it reads and writes the record."""


def main(paths: Paths) -> None:
    """Remove the record where it cannot be read and no `dvc` runs."""
    record = paths.root / RECORD
    if not record.exists():
        return
    with (paths.root / GUARD).open("a") as guard, suppress(BlockingIOError):
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            sound = isinstance(json.loads(record.read_bytes()), dict)
        except ValueError:
            sound = False
        if not sound:
            record.unlink()
            print(f"{record}: half-written by a dvc that was killed; removed")


if __name__ == "__main__":
    run_stage(main, needs_params=False)
