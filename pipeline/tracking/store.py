"""MLflow's store under `.mlflow/`: made once, used by one process at a time, its experiments kept up to date."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipeline.errors import UserError
from pipeline.experiments.spec import RunSpec
from pipeline.files import atomic_path, sweep
from pipeline.tracking.labels import NOTE, SCALE, description, experiment_name, run_params
from pipeline.tracking.view import saved_view, view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

STORE = ".mlflow"
DATABASE = "mlflow.db"
VIEW_TAG = "mlflow.sharedViewState."
METRICS_PER_CALL = 1000
LOCK_SECONDS = 120


def store_uri(root: Path) -> str:
    """The address of the store's database, in which a path's `?`, `#` and `%` are written as an address has them."""
    return _uri(root / STORE / DATABASE)


def _uri(path: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path.resolve())).render_as_string()


def _make_database(path: Path) -> None:
    """Make the database whole or not at all: MLflow refuses for ever one whose making was killed half-way."""
    from mlflow import MlflowClient

    # SQLite's journal of one that was killed lies beside it.
    sweep(path.parent, f".{path.name}.")
    with atomic_path(path) as temporary:
        MlflowClient(tracking_uri=_uri(temporary), registry_uri=_uri(temporary)).search_experiments()


def one_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def locked_store(root: Path) -> Iterator[MlflowClient]:
    """The store under `root`, created on first use, with no other process changing its experiments meanwhile.

    Raises: UserError when the store cannot be made or used.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = (root / STORE).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # MLflow's own creation of a database fails when two processes begin it at once.
        with FileLock(folder / "lock", timeout=LOCK_SECONDS):
            if not (folder / DATABASE).exists():
                _make_database(folder / DATABASE)
            client = MlflowClient(tracking_uri=store_uri(root), registry_uri=store_uri(root))
            _without_misread_folder(root)
            # MLflow makes an experiment "Default" in every new store.
            if client.get_experiment("0").lifecycle_stage == "active":
                client.delete_experiment("0")
            yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"{folder}: MLflow cannot use its store ({one_line(error)}); see that the disk has room, or delete "
            "this folder and run again: it is rebuilt from the results"
        ) from error


def _without_misread_folder(root: Path) -> None:
    """Remove the empty folders that MLflow makes where a path's `?`, `#` or `%` stand as they do in the address."""
    misread = Path(store_uri(root).removeprefix("sqlite:///")).parent
    if misread != (root / STORE).resolve():
        with suppress(OSError):
            misread.rmdir()
            misread.parent.rmdir()


def artifact_root(root: Path) -> str:
    """The address (`file://`) of the folder with the artifacts of all runs; `root`: the project's folder."""
    return (root / STORE / "artifacts").resolve().as_uri()


def _artifact_location(root: Path, experiment: str) -> str:
    return f"{artifact_root(root)}/{experiment}"


def experiment_id(client: MlflowClient, root: Path, scale: str, dataset: str, schedules: Collection[str]) -> str:
    """The experiment of a scale and dataset, made or brought up to date, with a saved view for each schedule.

    Views of other schedules stay as they are.
    """
    name = experiment_name(scale, dataset)
    stored = client.get_experiment_by_name(name)
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        NOTE: description(scale, dataset),
        **{f"{VIEW_TAG}{view_key(schedule)}": saved_view(schedule) for schedule in schedules},
    }
    if stored is None:
        return str(client.create_experiment(name, _artifact_location(root, name), tags))
    if stored.lifecycle_stage == "deleted":
        client.restore_experiment(stored.experiment_id)
    for key, value in tags.items():
        if stored.tags.get(key) != value:
            client.set_experiment_tag(stored.experiment_id, key, value)
    return str(stored.experiment_id)


def runs_of_scale(client: MlflowClient, root: Path, scale: str) -> list[Run]:
    """All runs of a scale in MLflow's store, in whichever experiment.

    Raises: UserError when the store was made in another folder and points there.
    """
    experiments = client.search_experiments(filter_string=f"name LIKE '{scale}/%'")
    if any(experiment.artifact_location != _artifact_location(root, experiment.name) for experiment in experiments):
        raise UserError(
            f"{(root / STORE).resolve()}: this MLflow store was made in another place and keeps that place's paths; "
            "delete this folder and run again: it is rebuilt from the results"
        )
    ids = [experiment.experiment_id for experiment in experiments]
    return list(client.search_runs(ids, f"tags.{SCALE} = '{scale}'", max_results=50000)) if ids else []


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """Log any number of metrics of a run; MLflow takes `METRICS_PER_CALL` of them at a time."""
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def start_run(
    client: MlflowClient, experiment: str, started: int, tags: Mapping[str, str], name: str, spec: RunSpec
) -> str:
    """A new run with its params, begun at `started` (milliseconds); returns its id."""
    from mlflow.entities import Param

    run_id = str(client.create_run(experiment, started, dict(tags), name).info.run_id)
    client.log_batch(run_id, params=[Param(name, value) for name, value in run_params(spec).items()])
    return run_id
