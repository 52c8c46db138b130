"""Results as they are in git, to say which of them a run of the pipeline has reproduced."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import content_of, read_object
from pipeline.paths import Paths
from pipeline.records.results import METRICS

NLL = "nll"


@dataclass(frozen=True)
class ChangedNll:
    """A committed NLL that the results on disk do not have."""

    cell: str
    """`<cohort>/<run>`"""
    committed: float
    now: float | None
    """None where the results have no such run, or it has no NLL."""


@dataclass(frozen=True)
class Reproduced:
    """How the results on disk stand to those of the last commit."""

    committed: int
    """NLLs that the commit has."""
    differing: tuple[ChangedNll, ...]


def compare_with_commit(paths: Paths, scale: str) -> Reproduced | None:
    """The NLLs of a scale's results beside those of the last commit; None where git has none.

    Raises: UserError naming the file, here or in the commit, that does not hold a cohort's metrics.
    """
    results = paths.results(scale)
    committed = _committed(paths.root, results.relative_to(paths.root))
    if not committed:
        return None
    now = {path.parent.name: read_object(path) for path in results.glob(f"*/{METRICS}")}
    differing = []
    count = 0
    for cohort, runs in sorted(committed.items()):
        for run, metrics in runs.items():
            if not isinstance(metrics, dict) or NLL not in metrics:
                continue
            count += 1
            with content_of(results / cohort / METRICS, "a cohort's metrics"):
                value = now.get(cohort, {}).get(run, {}).get(NLL)
            if value != metrics[NLL]:
                differing.append(ChangedNll(f"{scale}/{cohort}/{run}", metrics[NLL], value))
    return Reproduced(count, tuple(differing))


def _committed(root: Path, results: Path) -> dict[str, dict[str, Any]]:
    """Cohort -> content of its metrics.json in the last commit; empty without git or a commit.

    `results`: their folder below `root`.
    """
    listed = _git(root, "ls-tree", "-r", "--name-only", "HEAD", "--", f"{results.as_posix()}/")
    names = [name for name in listed.splitlines() if name.endswith(f"/{METRICS}")]
    metrics = {}
    for name in names:
        with content_of(Path(f"HEAD:{name}"), "a cohort's metrics", "commit those that the stages write"):
            metrics[Path(name).parent.name] = dict(json.loads(_git(root, "show", f"HEAD:./{name}")).items())
    return metrics


def _git(root: Path, *words: str) -> str:
    """What git prints; nothing where it cannot."""
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def comparison_lines(comparison: Reproduced | None, shown: int = 10) -> list[str]:
    """What came of the comparison: the good news or the bad in the first line, then a line for each difference."""
    if comparison is None:
        return ["git has no committed results of this scale to compare with"]
    same = comparison.committed - len(comparison.differing)
    lines = [f"{same} of {comparison.committed} committed NLLs reproduced bit for bit"]
    gaps = [abs(each.now - each.committed) for each in comparison.differing if each.now is not None]
    if gaps:
        lines[0] += f"; {len(gaps)} differ by at most {max(gaps):.2g} nats, as on another processor or torch they may"
    if gone := len(comparison.differing) - len(gaps):
        lines[0] += f"; {gone} are not there now"
    for each in comparison.differing[:shown]:
        now = "not there now" if each.now is None else f"{each.now:.4f} now"
        lines.append(f"  {each.cell}: {each.committed:.4f} committed, {now}")
    if len(comparison.differing) > shown:
        lines.append(f"  and {len(comparison.differing) - shown} more")
    return lines
