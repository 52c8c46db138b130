"""Remove what no grid names any more, and what killed processes left: `python -m stages.prune [--dry-run]`.

From the store the runs whose digest no `cohorts/` under this folder gives, damaged and half-written files; half-written
files from the project's other folders; from `runs/` and `reports/` the folders of cohorts that are not in the grid.
DVC's cache has a command of its own: `dvc gc -w`.
"""

from __future__ import annotations

import argparse

from pipeline.experiments.cohorts import load_cohorts
from pipeline.files import remove
from pipeline.paths import Paths
from pipeline.records.prune import all_litter
from pipeline.records.store import store_folder
from pipeline.work.console import counted
from pipeline.work.locks import Busy, locked
from stages import run_stage


def main(paths: Paths) -> None:
    """Remove what no cohort needs, unless somebody uses it now, and print what it was with its size."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m stages.prune", description=__doc__, formatter_class=formatter)
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    dry = parser.parse_args().dry_run
    store = store_folder(paths)
    removed = total = 0
    for litter in all_litter(paths, store, load_cohorts(paths.cohorts)):
        size = litter.bytes
        if not dry:
            try:
                if litter.lock is None:
                    remove(litter.path)
                else:
                    lock = store / "locks" / f"{litter.lock}.lock"
                    with locked(lock, str(litter.path), 0.0):
                        remove(litter.path)
                        if litter.path.name == litter.lock:
                            # While it is held: whoever waits for it then finds that it is gone, and makes it anew.
                            remove(lock)
            except Busy as busy:
                print(f"kept: {busy}")
                continue
        removed, total = removed + 1, total + size
        print(f"{'would remove' if dry else 'removed'} {litter.path}: {litter.why}, {size / 1e6:.1f} MB")
    print(f"{counted(removed, 'item')} {'to remove' if dry else 'removed'}, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    run_stage(main)
