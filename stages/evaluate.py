"""Evaluate one cohort into reports/<scale>/results/: `python -m stages.evaluate quick/burda-table1-mnist-1L-T50`."""

from __future__ import annotations

import argparse
import sys
import time

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_runs
from pipeline.experiments.cohorts import (
    COHORTS,
    RUNS,
    binarized,
    load_cohort,
    load_cohorts,
    load_evaluation,
    results_folder,
)
from pipeline.experiments.grid import PARAMS
from pipeline.experiments.params import load_params
from pipeline.records.provenance import origin
from pipeline.records.results import cohort_results
from pipeline.records.status import FINISHED
from pipeline.records.store import cohort_jobs, possible_digests, store_folder, training_folder
from pipeline.work.cohort import evaluate_waiting
from pipeline.work.console import counted
from pipeline.work.machine import this_machine
from stages import forced, run_stage


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(COHORTS, parser.parse_args().cohort)
    params = load_params(PARAMS)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds)
    spec = load_evaluation(COHORTS, cohort)
    start = time.monotonic()
    store = store_folder()
    data_digest = load_dataset(binarized(cohort.dataset)).digest
    jobs = cohort_jobs(cohort, load_cohorts(COHORTS), data_digest, store, RUNS, machine.device.type)
    training = training_folder(RUNS, cohort.key)
    runs = finished_runs(cohort, training, store, spec, possible_digests(cohort, jobs, data_digest))
    if forced():
        for run in runs:
            run.target.with_suffix(".json").unlink(missing_ok=True)
    evaluated = evaluate_waiting(cohort, runs, machine, origin("stages.evaluate"))
    if load_cohort(COHORTS, cohort.key) != cohort or load_evaluation(COHORTS, cohort) != spec:
        raise UserError(f"{COHORTS}/ changed while {cohort.key} was evaluated: run the same command again")
    results = cohort_results(results_folder(cohort.key))
    for result in results:
        if result.status != FINISHED:
            print(f"warning: {result.cell} {result.status}", file=sys.stderr)
    failed = sum(result.status != FINISHED for result in results)
    note = f", {failed} diverged" if failed else ""
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(len(runs), 'run')}, {counted(evaluated, 'evaluation')} made{note}, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
