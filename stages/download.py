"""Fetch a dataset's raw files from the first source that gives them, and verify them: `data/raw/<dataset>/`."""

from __future__ import annotations

import argparse
import sys

from pipeline.data.catalogue import dataset_info
from pipeline.data.sources import download, find_mirror
from pipeline.paths import Paths
from stages import run_stage


def main(paths: Paths) -> None:
    """Fetch and verify the raw files of the dataset that the command line names; say where they came from."""
    parser = argparse.ArgumentParser(prog="python -m stages.download", description=__doc__)
    parser.add_argument("dataset")
    name = dataset_info(parser.parse_args().dataset).name
    mirror = find_mirror()
    result = download(name, paths.raw(name), mirror, warn=lambda line: print(f"error: {line}", file=sys.stderr))
    print(result.summary(mirror))


if __name__ == "__main__":
    run_stage(main)
