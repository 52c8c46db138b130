"""What made a number: the code's revision and the command, for run.json and the evaluation beside it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

LAUNCHER = "pipeline.launch"
REVISION_FILE = Path("REVISION")
"""`git archive` writes the commit into it; in a checkout it holds a placeholder."""
REVISION_VARIABLE = "ELBO_REVISION"


def code_revision() -> str | None:
    """The commit, with `-dirty` where files differ from it.

    Without git: the one that ELBO_REVISION names, or that `git archive` wrote into REVISION; else None.
    """
    if named := os.environ.get(REVISION_VARIABLE, "").strip():
        return named
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        found = ""
    if found:
        return found
    archived = REVISION_FILE.read_text(encoding="utf-8").strip() if REVISION_FILE.exists() else ""
    return None if not archived or archived.startswith("$") else archived


def this_command(module: str) -> str:
    """The command line of this process, as one would type it again: `python -m <module> <arguments>`."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def origin(module: str) -> dict[str, Any]:
    """What every committed number names beside its digest."""
    return {"git_revision": code_revision(), "command": this_command(module)}
