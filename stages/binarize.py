"""Turn a dataset's raw files into upright images and one fixed draw of the test bits: `data/binarized/<dataset>/`."""

from __future__ import annotations

import argparse

from pipeline.data.catalogue import dataset_info
from pipeline.data.prepare import binarize
from pipeline.experiments.params import load_params
from pipeline.paths import Paths
from stages import run_stage


def main(paths: Paths) -> None:
    """Binarize the dataset that the command line names, and print its counts and digest."""
    parser = argparse.ArgumentParser(prog="python -m stages.binarize", description=__doc__)
    parser.add_argument("dataset")
    name = dataset_info(parser.parse_args().dataset).name
    seed = load_params(paths.params).data.test_binarization_seed
    value = binarize(name, paths.raw(name), paths.binarized(name), seed)
    counts = value["counts"]
    print(
        f"{name}: {counts['train_images']} training and {counts['test_images']} test images"
        f" ({value['variant']}), digest {value['digest'][:16]}"
    )


if __name__ == "__main__":
    run_stage(main)
