"""Start MLflow's pages on this project's runs and print the link that opens them: `python -m stages.ui`."""

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
from pipeline.paths import Paths
from pipeline.tracking.server import HOST, START
from pipeline.tracking.store import STORE
from stages import run_stage

PORTS_TRIED = 50
START_SECONDS = 120
STOP_SECONDS = 5


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


@contextmanager
def server(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server while the block runs; its messages go to `.mlflow/ui.log`."""
    command = [sys.executable, "-m", "pipeline.tracking.server", str(root), str(port)]
    with (root / STORE / "ui.log").open("wb") as log:
        # In its own session, so that Ctrl-C reaches this process alone, which then ends the server and its workers.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
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


def main(paths: Paths) -> None:
    """Serve MLflow's pages until Ctrl-C, or until the terminal closes.

    Raises: UserError when there is nothing to show.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000)
    wanted = parser.parse_args().port
    root = paths.root.absolute()
    if not paths.params.exists():
        raise UserError(f"{root}: has no {paths.params.name}; run from the project's folder")
    if not (root / STORE / "mlflow.db").is_file():
        raise UserError("no runs in MLflow yet; `make repro` first")
    port = free_port(wanted)
    if port != wanted:
        print(f"port {wanted} is taken, using {port}")
    address = f"http://{HOST}:{port}"
    # SIGHUP comes when the terminal closes: the server is to end with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Under nohup the server is to outlive it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        with server(root, port) as process:
            print("starting MLflow ...", flush=True)
            wait_until_up(process, address, root / STORE / "ui.log")
            print(f"the runs by scale, dataset and schedule, and their charts: {address}{START}")
            print("Ctrl-C ends it", flush=True)
            process.wait()
            raise UserError(f"MLflow's server ended; its messages are in {root / STORE / 'ui.log'}")
    except KeyboardInterrupt:
        print("\nMLflow ended")


if __name__ == "__main__":
    run_stage(main, needs_params=False)
