"""Ship the weights of selected finished runs into reports/<scale>/weights/: `python -m stages.weights quick`.

No DVC stage: it takes what is there, and a clone that has only the results must not be asked to train for it.
"""

from __future__ import annotations

import argparse

from pipeline.cohorts import REPORTS
from pipeline.results import load_results
from pipeline.shipped import ship
from pipeline.store import store_folder
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.weights", description=__doc__)
    parser.add_argument("scale", help="e.g. paper")
    parser.add_argument("--list", action="store_true", help="name a cell of each table row for which there is no room")
    given = parser.parse_args()
    for line in ship(load_results(REPORTS / given.scale / "results"), given.scale, store_folder(), given.list):
        print(line)


if __name__ == "__main__":
    run_stage(main)
