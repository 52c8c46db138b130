"""Recompute the NLL of a committed cell from its shipped weights: `python -m stages.verify [CELL] [--images N]`.

Compares with the committed values of exactly these test images. Without CELL: the first that is shipped, the papers'
scale first.
"""

from __future__ import annotations

import argparse

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.names import CellName
from pipeline.paths import Paths
from pipeline.records.results import load_result
from pipeline.records.shipped import ROUNDING, check_nll, shipped_cells, shipped_weights
from pipeline.work.machine import resolve_device
from pipeline.work.memory import keep_freed_memory
from stages import run_stage


def main(paths: Paths) -> None:
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
        load_dataset(paths.binarized(result.spec.dataset)),
        arguments.images,
        device,
    )
    print(
        f"{cell}: NLL {check.nll:.4f} nats recomputed on {check.images} of {check.total} test images"
        f" ({result.evaluation['num_samples']} samples), committed {check.committed:.4f};"
        f" difference {check.difference:+.5f}, of one image at most {check.largest:.5f}"
    )
    if not check.agrees:
        raise UserError(f"{cell}: does not agree: each image may differ by {ROUNDING:.4f} nats")
    print(f"agrees: each image may differ by {ROUNDING:.4f} nats")
    if not arguments.cell:
        print("choose another: make verify-results CELL=... IMAGES=...; shipped are\n  " + "\n  ".join(cells))


if __name__ == "__main__":
    run_stage(main, needs_params=False)
