"""Write the report of a scale: `python -m stages.report SCALE`.

Reads `reports/SCALE/results`; writes `reports/SCALE/index.html`, `tables/` and `figures/` beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pipeline.cohorts import COHORTS, load_cohorts
from pipeline.config import load_params
from pipeline.console import counted
from pipeline.errors import UserError
from pipeline.results import load_results
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description="Write the report of a scale.")
    parser.add_argument("scale", help="a scale of params.yaml, e.g. quick")
    scale = parser.parse_args().scale
    known = load_params(Path("params.yaml")).scales
    if scale not in known:
        raise UserError(f"{scale}: no such scale in params.yaml; choose one of {', '.join(known)}")
    start = time.monotonic()
    # Matplotlib and pandas take seconds to import; a wrong name is answered before.
    from pipeline.reporting.page import build_report

    folder = Path("reports") / scale
    results = load_results(folder / "results")
    planned = [cohort for cohort in load_cohorts(COHORTS).values() if cohort.scale == scale]
    elsewhere = next((name for name in known if name != scale), None)
    page = build_report(results, scale, folder, planned, elsewhere)
    print(f"{scale}: {counted(len(results), 'run')} -> {page}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run_stage(main)
