"""Evaluate one cohort into reports/<scale>/results/: `python -m stages.evaluate quick/burda-table1-mnist-1L-T50`."""

from __future__ import annotations

import argparse
import time

from pipeline.cohorts import COHORTS, RUNS, load_cohort, load_evaluation
from pipeline.config import load_params
from pipeline.console import counted
from pipeline.device import this_machine
from pipeline.evaluation.cohort import finished_runs
from pipeline.grid import PARAMS
from pipeline.provenance import origin
from pipeline.store import store_folder, training_folder
from pipeline.work import evaluate_waiting
from stages import forced, run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(COHORTS, parser.parse_args().cohort)
    params = load_params(PARAMS)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds)
    spec = load_evaluation(COHORTS, cohort)
    start = time.monotonic()
    runs = finished_runs(cohort, training_folder(RUNS, cohort.key), store_folder(), spec)
    if forced():
        for run in runs:
            run.target.with_suffix(".json").unlink(missing_ok=True)
    evaluated = evaluate_waiting(cohort, runs, machine, spec, origin("stages.evaluate"))
    failed = sum(run.diverged for run in runs)
    stored = len(runs) - evaluated - failed
    note = f", {failed} diverged" if failed else ""
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(evaluated, 'run')} evaluated, {stored} taken from the store{note}, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
