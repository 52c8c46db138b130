"""What made a number: the code's revision and the command, for run.json and the evaluation beside it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline.paths import HERE, Paths
from pipeline.records.facts import Origin

LAUNCHER = "pipeline.launch"
REVISION_FILE = "REVISION"
"""`git archive` writes the commit into it; in a checkout it holds a placeholder."""
REVISION_VARIABLE = "ELBO_REVISION"
WRITTEN_BY_STAGES = ("reports", "dvc.lock", "README.md")
"""Tracked, but no source of any number: a stage that writes its results does not make the next one's code another."""


def code_revision(root: Path = HERE.root) -> str | None:
    """The commit of the project at `root`, with `-dirty` where files that may change a number differ from it.

    Without git: the one that ELBO_REVISION names, or that `git archive` wrote into REVISION; else None.
    """
    if named := os.environ.get(REVISION_VARIABLE, "").strip():
        return named
    try:
        commit = _git(root, "rev-parse", "HEAD").stdout.strip()
    except FileNotFoundError:
        commit = ""
    if commit:
        # From the root of the repository, wherever in it the project lies.
        others = [f":(top,exclude){name}" for name in WRITTEN_BY_STAGES]
        return (
            f"{commit}-dirty" if _git(root, "diff", "--quiet", "HEAD", "--", ":(top)", *others).returncode else commit
        )
    file = root / REVISION_FILE
    archived = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    return None if not archived or archived.startswith("$") else archived


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)


def this_command(module: str) -> str:
    """The command line of this process, as one would type it again: `python -m <module> <arguments>`."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def origin(module: str, paths: Paths = HERE) -> Origin:
    """What every committed number names beside its digest."""
    return {"git_revision": code_revision(paths.root), "command": this_command(module)}
