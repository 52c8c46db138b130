"""Ship the weights of selected finished runs into reports/<scale>/weights/: `python -m stages.weights quick`.

No DVC stage: it takes what is there, and a clone that has only the results must not be asked to train for it.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.experiments.cohorts import load_cohorts
from pipeline.paths import Paths
from pipeline.records.results import in_grid, load_results, told_apart
from pipeline.records.shipped import ship
from pipeline.records.store import store_folder
from stages import known_scale, run_stage


def main(paths: Paths) -> None:
    """Ship the weights of a scale's selected runs, and print what was shipped and what had no room."""
    parser = argparse.ArgumentParser(prog="python -m stages.weights", description=__doc__)
    parser.add_argument("scale", help="e.g. paper")
    parser.add_argument("--list", action="store_true", help="name a cell of each table row for which there is no room")
    given = parser.parse_args()
    known_scale(given.scale, paths)
    folder = paths.results(given.scale)
    results, others = in_grid(load_results(folder), load_cohorts(paths.cohorts).values())
    if others:
        print(f"warning: {told_apart(folder, others)}", file=sys.stderr)
    for line in ship(results, given.scale, store_folder(paths), paths, given.list):
        print(line)


if __name__ == "__main__":
    run_stage(main)
