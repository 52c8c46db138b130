"""Put the results of one scale into MLflow: `python -m stages.track quick`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohorts
from pipeline.files import write_json
from pipeline.paths import Paths
from pipeline.published import published_value
from pipeline.records.results import RunResult, in_grid, load_results, load_under_way, told_apart
from pipeline.tracking.publish import publish
from pipeline.tracking.store import STORE
from pipeline.work.console import ProgressMeter, counted
from stages import known_scale, run_stage


def paper_nll(result: RunResult) -> float | None:
    """The published value, unless it is one that nobody could verify; none beside a run that is still under way."""
    published = None if result.is_under_way else published_value(result, "nll")
    return published.value if published is not None and published.judged else None


def known_cells(folder: Path, scale: str) -> set[str]:
    """The cells of a scale that are in the grid, whether they have results or not."""
    cohorts = load_cohorts(folder).values()
    return {f"{cohort.key}/{run.name}" for cohort in cohorts if cohort.scale == scale for run in cohort.runs}


def marker(results: list[RunResult]) -> dict[str, dict[str, str]]:
    """What DVC compares: equal results give an equal marker, whatever ids and times MLflow gave them."""
    return {
        r.cell: {"digest": r.digest, "steps": str(r.spec.total_steps), "evaluation": r.evaluation.get("digest", "")}
        for r in results
    }


def main(paths: Paths) -> None:
    """Bring MLflow's runs of a scale in step with its results, and print how many are new, kept and removed.

    Raises: UserError when the scale has no results.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.track", description=__doc__)
    parser.add_argument("scale", help="e.g. quick")
    scale = known_scale(parser.parse_args().scale, paths)
    root = paths.root.absolute()
    folder = paths.results(scale)
    loaded = [*load_results(folder), *load_under_way(folder)]
    results, others = in_grid(loaded, load_cohorts(paths.cohorts).values())
    if others:
        print(f"warning: {told_apart(folder, others)}", file=sys.stderr)
    if not results:
        raise UserError(f"{folder}: no results to publish; `make repro` (or `dvc repro`) makes them")
    meter = ProgressMeter(f"{scale} into MLflow", len(results), "run")
    try:
        counts = publish(root, results, paper_nll, known_cells(paths.cohorts, scale), lambda: meter.advance(1))
    finally:
        meter.close()
    write_json(root / STORE / f"published-{scale}.json", marker(results))
    changes = f"{counts.created} new, {counts.kept} kept, {counts.removed} removed"
    print(f"{scale}: {counted(len(results), 'run')} in MLflow ({changes}); make ui shows them")


if __name__ == "__main__":
    run_stage(main)
