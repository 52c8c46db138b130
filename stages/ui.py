"""Start MLflow's pages on this project's runs and print the links that open the comparison: `python -m stages.ui`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from pipeline.errors import UserError
from pipeline.tracking import STORE, VIEW, store_uri
from stages import run_stage

HOST = "127.0.0.1"
PORTS_TRIED = 50
START_SECONDS = 120
STOP_SECONDS = 5
COMPARISON = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={VIEW}"


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on.

    Raises: UserError when there is none.
    """
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        return port
    raise UserError(f"no free port from {first} on; name another one: python -m stages.ui --port NUMBER")


def comparison_links(address: str) -> dict[str, str]:
    """For each experiment that has runs, the page that compares them."""
    api = f"{address}/api/2.0/mlflow"
    experiments = requests.post(f"{api}/experiments/search", json={"max_results": 1000}, timeout=60).json()
    links = {}
    for experiment in experiments.get("experiments", []):
        some = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1}
        if requests.post(f"{api}/runs/search", json=some, timeout=60).json().get("runs"):
            links[experiment["name"]] = f"{address}/#/experiments/{experiment['experiment_id']}/runs?{COMPARISON}"
    return dict(sorted(links.items()))


@contextmanager
def server(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server while the block runs; its messages go to `.mlflow/ui.log`."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store_uri(root)]
    command += ["--default-artifact-root", (root / STORE / "artifacts").resolve().as_uri()]
    # Job execution would start a dozen processes and take five times the memory.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (root / STORE / "ui.log").open("wb") as log:
        # In its own session, so that Ctrl-C reaches this process alone, which then ends the server and its workers.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def wait_until_up(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Raises: UserError when the server ends or does not answer in time."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise UserError(f"MLflow's server ended at once ({last}); its messages are in {log}")
        try:
            if requests.get(f"{address}/health", timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise UserError(f"MLflow's server did not answer within {START_SECONDS} s; its messages are in {log}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000)
    wanted = parser.parse_args().port
    root = Path.cwd()
    nothing = UserError("no runs in MLflow yet; `make repro` first")
    if not (root / STORE / "mlflow.db").is_file():
        raise nothing
    port = free_port(wanted)
    if port != wanted:
        print(f"port {wanted} is taken, using {port}")
    address = f"http://{HOST}:{port}"
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with server(root, port) as process:
            print("starting MLflow ...", flush=True)
            wait_until_up(process, address, root / STORE / "ui.log")
            links = comparison_links(address)
            if not links:
                raise nothing
            print(f"MLflow runs at {address}; compare the runs of")
            for name, link in links.items():
                print(f"  {name}: {link}")
            print("Ctrl-C ends it", flush=True)
            process.wait()
            raise UserError(f"MLflow's server ended; its messages are in {root / STORE / 'ui.log'}")
    except KeyboardInterrupt:
        print("\nMLflow ended")


if __name__ == "__main__":
    run_stage(main, needs_params=False)
