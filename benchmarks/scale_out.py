"""Equal cohorts through Ray on 1 and on 2 CPU workers, one thread each: `python -m benchmarks.scale_out`.

Prints, for each number of workers: seconds until all is done, the seconds of training and evaluation in them as the
runs themselves recorded them, and what is left of the workers' time for each task.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import median

import torch

from pipeline.experiments.cohorts import load_cohorts, load_evaluation
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.launch import cluster as driver
from pipeline.launch.cluster_nodes import LOOPBACK, LOOPBACK_VARIABLE
from pipeline.launch.launcher import Project
from pipeline.paths import HERE, Paths
from pipeline.records.results import cohort_results
from pipeline.work.machine import Machine

SOURCE = "quick/burda-table1-mnist-1L-T5"


def cohorts(count: int, steps: int) -> tuple[tuple[CohortSpec, ...], EvaluationSpec]:
    """One-run cohorts that differ in their seeds alone."""
    source = load_cohorts(HERE.cohorts)[SOURCE]
    run = replace(source.runs[0], max_steps=steps)
    made = tuple(
        CohortSpec("bench", "bench", f"bench-mnist-1L-s{seed}", (replace(run, seed=seed),)) for seed in range(count)
    )
    return made, replace(load_evaluation(HERE.cohorts, source), diagnostic_images=0, snr_gradients=0)


def timed(made: tuple[CohortSpec, ...], evaluation: EvaluationSpec, workers: int) -> tuple[float, float]:
    """Seconds until all is done once the cluster stands, and seconds of recorded work in them."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        cluster = Cluster()
        try:
            data = paths.binarized("mnist")
            data.parent.mkdir(parents=True)
            data.symlink_to(HERE.binarized("mnist").resolve())
            cluster.add_node(num_cpus=workers, node_ip_address=LOOPBACK, include_dashboard=False)
            every = {cohort.key: cohort for cohort in made}
            machine = Machine(torch.device("cpu"), 1, 30.0)
            project = Project(every, dict.fromkeys(every, evaluation), made, paths.store, machine, paths=paths)
            start = time.monotonic()
            with redirect_stdout(StringIO()):
                status = driver.run(project, cluster.address, "cpu")
            wall = time.monotonic() - start
            assert status == 0
            worked = 0.0
            for cohort in made:
                (run,) = cohort_results(paths.cohort_results(cohort.key))
                worked += run.training["wall_s"] + run.evaluation["wall_s"]
            return wall, worked
        finally:
            cluster.shutdown()


def main() -> None:
    """Print how long one worker and two take for the same tasks, and what each task costs beyond its work, seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ[LOOPBACK_VARIABLE] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    made, evaluation = cohorts(arguments.tasks, arguments.steps)
    walls = {}
    for workers in (1, 2):
        timings = [timed(made, evaluation, workers) for _ in range(arguments.repeats)]
        walls[workers] = median(wall for wall, _ in timings)
        worked = median(worked for _, worked in timings)
        overhead = median((wall * workers - worked) / arguments.tasks for wall, worked in timings)
        print(
            f"{workers} workers: {walls[workers]:.1f} s for {arguments.tasks} tasks, {worked:.1f} s of work in them,"
            f" {overhead:.2f} s more a task",
            flush=True,
        )
    print(f"ratio: {walls[1] / walls[2]:.2f}")


if __name__ == "__main__":
    main()
