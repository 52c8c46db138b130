"""Write the report of a scale: `python -m stages.report SCALE`.

Reads `reports/SCALE/results`; writes `reports/SCALE/index.html`, `tables/` and `figures/` beside it.
"""

from __future__ import annotations

import argparse
import sys
import time

from pipeline.experiments.cohorts import load_cohorts
from pipeline.experiments.params import load_params
from pipeline.paths import Paths
from pipeline.records.results import in_grid, load_results, load_under_way, told_apart
from pipeline.work.console import counted
from stages import known_scale, run_stage


def main(paths: Paths) -> None:
    """Build the page of the scale that the command line names from its results, those outside of the grid left out."""
    parser = argparse.ArgumentParser(prog="python -m stages.report", description="Write the report of a scale.")
    parser.add_argument("scale", help="a scale of params.yaml, e.g. quick")
    scale = known_scale(parser.parse_args().scale, paths)
    known = load_params(paths.params).scales
    start = time.monotonic()
    # Matplotlib and pandas take seconds to import; a wrong name is answered before.
    from pipeline.reporting.page import build_report

    folder = paths.report(scale)
    planned = [cohort for cohort in load_cohorts(paths.cohorts).values() if cohort.scale == scale]
    results, others = in_grid(load_results(folder / "results"), planned)
    under_way, other_ways = in_grid(load_under_way(folder / "results"), planned)
    if others or other_ways:
        print(f"warning: {told_apart(folder / 'results', [*others, *other_ways])}", file=sys.stderr)
    page = build_report(results, scale, folder, planned, tuple(known), under_way, known[scale].judged)
    print(f"{scale}: {counted(len(results), 'run')} -> {page}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run_stage(main)
