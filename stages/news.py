"""Say what came of a scale: which committed NLLs were reproduced, ours beside the paper's, where to read on."""

from __future__ import annotations

import argparse

from pipeline.errors import UserError
from pipeline.paths import Paths
from pipeline.records.committed import compare_with_commit, comparison_lines
from pipeline.records.results import load_results
from pipeline.reporting.summary import depth, for_terminal, table1
from stages import run_stage


def main(paths: Paths) -> None:
    """Print which committed NLLs were reproduced, Table 1 beside the paper's, and where the report is.

    Raises: UserError when the scale has no results.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.news", description=__doc__)
    parser.add_argument("scale", help="e.g. quick")
    scale = parser.parse_args().scale
    folder = paths.report(scale)
    results = load_results(folder / "results")
    if not results:
        raise UserError(f"{folder / 'results'}: no results; `make repro` (or `dvc repro`) makes them")
    print("\n".join(comparison_lines(compare_with_commit(paths, scale))))
    if lines := table1(results):
        print(f"MNIST, NLL in nats {depth(results)}, the paper's in brackets:")
        print("\n".join(for_terminal(lines)))
    print(f"read {(folder / 'index.html').resolve().as_uri()}; compare the runs with: make ui")


if __name__ == "__main__":
    run_stage(main)
