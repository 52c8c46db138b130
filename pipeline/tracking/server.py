"""MLflow's server on this project's runs, with a start page of ours: `python -m pipeline.tracking.server ROOT PORT`.

`stages.ui` starts it. MLflow's page opens on language models and with its assistant unless the browser's storage says
otherwise, and only a page of the same address can write there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.tracking.labels import SCHEDULE
from pipeline.tracking.store import artifact_root, store_uri
from pipeline.tracking.view import view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HOST = "127.0.0.1"
START = "/start"
STEPS = "total_steps"
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class View:
    """A row of the start page: the runs of one MLflow experiment (a scale and dataset) and schedule."""

    name: str
    schedule: str
    experiments: tuple[str, ...]
    """Those of params.yaml that the runs belong to."""
    runs: int
    link: str


def views(client: MlflowClient) -> list[View]:
    """The saved views that have runs, by scale and dataset, the longest schedule first."""
    saved_views = []
    for stored in sorted(client.search_experiments(), key=lambda stored: str(stored.name)):
        groups: dict[str, list[Run]] = {}
        for run in client.search_runs([stored.experiment_id], max_results=50000):
            # Runs that somebody else logged here are in no view.
            if SCHEDULE in run.data.tags and "experiment" in run.data.tags and STEPS in run.data.params:
                groups.setdefault(run.data.tags[SCHEDULE], []).append(run)
        for schedule, runs in sorted(groups.items(), key=lambda group: -int(group[1][0].data.params[STEPS])):
            query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={view_key(schedule)}"
            link = f"/#/experiments/{stored.experiment_id}/runs?{query}"
            experiments = tuple(sorted({run.data.tags["experiment"] for run in runs}))
            saved_views.append(View(str(stored.name), schedule, experiments, len(runs), link))
    return saved_views


def start_page(saved_views: list[View]) -> str:
    """The HTML of the page that lists the saved views, which MLflow's own pages do not show."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("start.html").render(views=saved_views)


def application(root: Path) -> Any:
    """MLflow's web application with the start page in front; environment variables tell it where its store is."""
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    os.environ[BACKEND_STORE_URI_ENV_VAR] = store_uri(root)
    os.environ[ARTIFACT_ROOT_ENV_VAR] = artifact_root(root)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Job execution would start a dozen processes and take five times the memory.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    from mlflow import MlflowClient
    from mlflow.server.fastapi_app import app
    from starlette.requests import Request
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    client = MlflowClient(tracking_uri=store_uri(root), registry_uri=store_uri(root))

    def start(request: Request) -> HTMLResponse:
        return HTMLResponse(start_page(views(client)))

    # Before the others: MLflow's last one takes every address.
    app.router.routes.insert(0, Route(START, start))
    return app


def end_with(parent: int) -> None:
    """End this process soon after its parent ended, however that was: nobody else would."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve the store under a folder at a port (both from the command line) until the process that began it ends."""
    import uvicorn

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    uvicorn.run(application(root), host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    main()
