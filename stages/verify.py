"""Recompute the NLL of a committed cell from its shipped weights: `python -m stages.verify [CELL] [--images N]`.

Compares with the committed values of exactly these test images. Without CELL: the first that is shipped, the papers'
scale first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from pipeline.data.datasets import INFO, Dataset, load_dataset
from pipeline.errors import UserError
from pipeline.experiments.names import CellName
from pipeline.paths import Paths
from pipeline.records.results import load_result
from pipeline.records.shipped import ROUNDING, check_nll, shipped_cells, shipped_weights
from pipeline.work.machine import resolve_device
from pipeline.work.memory import keep_freed_memory
from stages import run_stage


def dataset_of(name: str, paths: Paths) -> Dataset:
    """A dataset, which DVC downloads and binarizes first where it is not here."""
    folder = paths.binarized(name)
    if not (folder / INFO).exists():
        print(f"{name}: its images are not here yet: `dvc repro binarize@{name}` makes them now", flush=True)
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet", f"binarize@{name}"], check=False)
    return load_dataset(folder)


def main(paths: Paths) -> None:
    """Recompute a cell's NLL from its shipped weights and print it beside the committed one, with the difference.

    Raises: UserError when no such weights are shipped, or when the two NLLs differ.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.verify", description=__doc__)
    parser.add_argument("cell", nargs="?", default="", help="e.g. paper/burda-table1-mnist-1L-T50/iwae-M1-K50-s0")
    parser.add_argument("--images", type=int, default=100, help="so many test images, evenly spaced (100)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    cells = shipped_cells(paths)
    if not cells:
        raise UserError("no weights are shipped here; `make weights` ships those of finished runs")
    if arguments.images < 1:
        raise UserError(f"--images {arguments.images}: must be at least 1")
    device = resolve_device(arguments.device, "--device cuda")
    cell = arguments.cell or cells[0]
    try:
        name = CellName.of(cell)
    except ValueError as error:
        raise UserError(f"{error}; weights are shipped of: {', '.join(cells)}") from error
    result = load_result(paths.cohort_results(str(name.cohort)), name.run)
    check = check_nll(
        result,
        shipped_weights(result, paths),
        dataset_of(result.spec.dataset, paths),
        arguments.images,
        device,
    )
    print(
        f"{cell}: NLL {check.nll:.4f} nats recomputed on {check.images} of {check.total} test images"
        f" ({result.evaluation['num_samples']} samples), committed {check.committed:.4f};"
        f" difference {check.difference:+.5f}, of one image at most {check.largest:.5f}"
    )
    if not check.images_agree:
        raise UserError(f"{cell}: does not agree: each image may differ by {ROUNDING:.4f} nats")
    told = f"the NLL in tables is {check.shown:.4f}, the mean over all {check.total} committed images {check.mean:.4f}"
    if not check.agrees:
        raise UserError(f"{cell}: does not agree: {told}")
    print(f"agrees: each image may differ by {ROUNDING:.4f} nats; {told}")
    if not arguments.cell:
        print("choose another: make verify-results CELL=... IMAGES=...; shipped are\n  " + "\n  ".join(cells))


if __name__ == "__main__":
    run_stage(main, needs_params=False)
