"""Evaluate one cohort into reports/<scale>/results/: `python -m stages.evaluate quick/burda-table1-mnist-1L-T50`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pipeline.config import load_params
from pipeline.console import ProgressMeter, counted
from pipeline.device import this_machine
from pipeline.evaluation.cohort import evaluate_cohort, finished_runs, result_of
from pipeline.grid import COHORTS, PARAMS, load_cohort, load_evaluation
from pipeline.results import save_results
from pipeline.store import store_folder, training_folder
from stages import binarized, forced, run_stage
from stages.train import RUNS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(COHORTS, parser.parse_args().cohort)
    params = load_params(PARAMS)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds)
    spec = load_evaluation(COHORTS, cohort.scale)
    start = time.monotonic()
    runs = finished_runs(cohort, training_folder(RUNS, cohort.key), store_folder(), spec)
    if forced():
        for run in runs:
            run.target.with_suffix(".json").unlink(missing_ok=True)
    waiting = sum(run.waits for run in runs)
    meter = ProgressMeter(f"{cohort.key} evaluation", waiting, "run")
    try:
        evaluate_cohort(runs, binarized(cohort.dataset), machine, spec, lambda name: meter.advance(1))
    finally:
        meter.close()
    save_results(Path("reports") / cohort.scale / "results" / cohort.name, [result_of(cohort, run) for run in runs])
    diverged = sum(run.diverged for run in runs)
    stored = len(runs) - waiting - diverged
    note = f", {diverged} diverged" if diverged else ""
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(waiting, 'run')} evaluated, {stored} taken from the store{note}, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
