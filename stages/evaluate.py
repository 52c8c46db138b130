"""Evaluate one cohort into reports/<scale>/results/: `python -m stages.evaluate quick/burda-table1-mnist-1L-T50`."""

from __future__ import annotations

import argparse
import sys
import time

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import finished_runs
from pipeline.experiments.cohorts import (
    load_cohort,
    load_cohorts,
    load_evaluation,
)
from pipeline.experiments.params import load_params
from pipeline.paths import Paths
from pipeline.records.provenance import origin
from pipeline.records.results import cohort_results
from pipeline.records.status import FINISHED
from pipeline.records.store import cohort_jobs, possible_digests, store_folder, training_folder
from pipeline.work.cohort import evaluate_waiting
from pipeline.work.console import counted
from pipeline.work.machine import this_machine
from stages import forced, run_stage


def main(paths: Paths) -> None:
    """Evaluate what of a cohort is not evaluated yet; write its results, and say which runs diverged.

    Raises: UserError when runs are not trained, or when the cohort changed meanwhile.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    cohort = load_cohort(paths.cohorts, parser.parse_args().cohort)
    params = load_params(paths.params)
    machine = this_machine(params.device, params.workers, params.checkpoint_seconds)
    spec = load_evaluation(paths.cohorts, cohort)
    start = time.monotonic()
    store = store_folder(paths)
    data_digest = load_dataset(paths.binarized(cohort.dataset)).digest
    jobs = cohort_jobs(cohort, load_cohorts(paths.cohorts), data_digest, store, paths.runs, machine.device.type)
    training = training_folder(paths.runs, cohort.key)
    runs = finished_runs(cohort, training, store, spec, possible_digests(cohort, jobs, data_digest))
    if forced():
        for run in runs:
            run.target.with_suffix(".json").unlink(missing_ok=True)
    evaluated = evaluate_waiting(cohort, runs, store, paths, machine, origin("stages.evaluate", paths))
    if load_cohort(paths.cohorts, cohort.key) != cohort or load_evaluation(paths.cohorts, cohort) != spec:
        raise UserError(f"{paths.cohorts}/ changed while {cohort.key} was evaluated: run the same command again")
    results = cohort_results(paths.cohort_results(cohort.key))
    for result in results:
        if result.status != FINISHED:
            print(f"warning: {result.cell} {result.status}", file=sys.stderr)
    failed = sum(result.status != FINISHED for result in results)
    note = f", {failed} diverged" if failed else ""
    took = time.monotonic() - start
    print(f"{cohort.key}: {counted(len(runs), 'run')}, {counted(evaluated, 'evaluation')} made{note}, {took:.0f} s")


if __name__ == "__main__":
    run_stage(main)
