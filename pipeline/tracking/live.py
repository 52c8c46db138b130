"""Runs in MLflow while they train."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.experiments.spec import CohortSpec, RunSpec
from pipeline.records.status import Status
from pipeline.tracking.curves import curve_metrics, thin_rows
from pipeline.tracking.labels import CELL, COMPLETE, DIGEST, run_tags, run_title, schedule
from pipeline.tracking.store import experiment_id, locked_store, log_metrics, one_line, runs_of_scale, start_run


@dataclass
class _LiveRun:
    spec: RunSpec
    tags: Mapping[str, str]
    run_id: str = ""
    """Empty until the first rows come: a run that waits for its turn has not begun."""
    started: int = 0
    last_step: float = -1


class LiveTracker:
    """Shows the runs of one cohort in MLflow while they train.

    Best effort: when MLflow fails, one line on stderr says so, and every later call does nothing. `publish` replaces
    what is shown here by the finished runs. A run that was published already is left alone; what an interrupted attempt
    left behind is deleted, so the caller passes the rows of a resumed run from the beginning.
    """

    def __init__(
        self,
        root: Path,
        cohort: CohortSpec,
        digests: Mapping[str, str],
        dvc_stage: str | None,
        git_revision: str | None,
    ) -> None:
        """`digests`: by run name, of the runs that are to be trained; the cohort's other runs are left alone."""
        self._runs: dict[str, _LiveRun] = {}
        self._experiment = cohort.experiment
        with self._best_effort(), locked_store(root) as client:
            self._client = client
            stored = runs_of_scale(client, root, cohort.scale)
            waiting = [spec for spec in cohort.runs if spec.name in digests]
            schedules = sorted({schedule(spec) for spec in waiting})
            self._experiment_id = experiment_id(client, root, cohort.scale, cohort.dataset, schedules)
            for spec in waiting:
                earlier = [run for run in stored if run.data.tags.get(CELL) == f"{cohort.key}/{spec.name}"]
                published = [run for run in earlier if COMPLETE in run.data.tags]
                if any(run.data.tags.get(DIGEST) == digests[spec.name] for run in published):
                    continue
                for run in earlier:
                    if run not in published:
                        client.delete_run(run.info.run_id)
                tags = run_tags(cohort.key, cohort.experiment, spec, digests[spec.name], dvc_stage, git_revision)
                self._runs[spec.name] = _LiveRun(spec, {**tags, "status": "training"})

    def log(self, name: str, rows: list[dict[str, float]]) -> None:
        """Add points to a run's curves; rows have the columns of the training history, in the order of their steps."""
        run = self._runs.get(name)
        if run is None:
            return
        with self._best_effort():
            taken = thin_rows(rows, run.spec.total_steps, run.last_step)
            if not taken:
                return
            if not run.run_id:
                # It began before this process heard of it.
                run.started = int(1000 * (time.time() - rows[-1]["seconds"]))
                shown = run_title(run.spec, self._experiment)
                run.run_id = start_run(self._client, self._experiment_id, run.started, run.tags, shown, run.spec)
            log_metrics(self._client, run.run_id, curve_metrics(taken, run.started))
            run.last_step = taken[-1]["step"]

    def finish(self, name: str, status: str) -> None:
        """Training of the run is over and all its rows were passed; `status` as in `RunResult`."""
        run = self._runs.pop(name, None)
        if run is not None and run.run_id:
            self._end(run, status, mlflow_status(status))

    def close(self) -> None:
        """Mark the runs that are not finished as interrupted."""
        unfinished, self._runs = self._runs, {}
        for run in unfinished.values():
            if run.run_id:
                self._end(run, "interrupted", "KILLED")

    def _end(self, run: _LiveRun, status: str, shown: str) -> None:
        with self._best_effort():
            self._client.set_tag(run.run_id, "status", status)
            self._client.set_terminated(run.run_id, shown)

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._runs = {}
            print(
                f"MLflow: no live curves ({one_line(error)}); training goes on, its results are published afterwards",
                file=sys.stderr,
            )


def mlflow_status(status: str) -> str:
    """MLflow's word for a `RunResult`'s status."""
    return "FINISHED" if Status.of(status).is_finished else "FAILED"
