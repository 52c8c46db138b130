"""MLflow's server with our start page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from pipeline.tracking.server import View, start_page, views
from pipeline.tracking.store import locked_store
from stages.ui import free_port
from tests.conftest import PATIENCE_SECONDS, ROOT, wait_for
from tests.tracking.example import publish_all, two_cohorts

UI = [sys.executable, "-m", "stages.ui"]
STORAGE_KEYS = (
    "mlflow.workflowType_v1",
    "mlflow.assistant.panelOpen_v1",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1",
)
"""What MLflow's page reads from the browser's storage."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_taken_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) > port
    assert free_port(port) == port


def test_the_ui_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(UI, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no params.yaml; run from the project's folder" in done.stderr
    (tmp_path / "params.yaml").touch()
    done = subprocess.run(UI, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "make repro" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("in_a_terminal")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL], ids=lambda end: end.name)
def test_the_ui_serves_the_runs_until_it_ends_however_that_is(end: signal.Signals, root: Path) -> None:
    """Ctrl-C; the terminal is closed; it is killed: the server never stays behind."""
    (root / "params.yaml").touch()
    publish_all(root, two_cohorts())
    command = [*UI, "--port", str(free_port(15000))]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    start = next((line for line in process.stdout if line.rstrip().endswith("/start")), "").split()[-1:]
    assert start, process.communicate()[1]
    address = start[0].removesuffix("/start")
    assert requests.get(f"{address}/health", timeout=10).ok
    page = requests.get(start[0], timeout=10).text
    assert "viewStateShareKey=4-epochs" in page
    assert all(f'"{key}"' in page for key in STORAGE_KEYS)
    # MLflow's own pages and interface are where they were.
    assert "<title>MLflow</title>" in requests.get(address, timeout=10).text
    answer = requests.post(f"{address}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"]}, timeout=10).json()
    assert len(answer["runs"]) == 3
    process.send_signal(end)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert errors == ""
    assert process.returncode == (-end if end == signal.SIGKILL else 0)
    wait_for(lambda: not answers(address))


@pytest.mark.skipif(sys.platform != "linux", reason="reads from /proc what the process ignores")
def test_the_ui_outlives_its_terminal_where_nohup_asks_for_it(root: Path) -> None:
    (root / "params.yaml").touch()
    publish_all(root, two_cohorts()[:1])
    command = ["nohup", *UI, "--port", str(free_port(15100))]
    process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(line for line in process.stdout if line.rstrip().endswith("/start")).split()[-1]
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
        assert ignored >> (signal.SIGHUP - 1) & 1
        process.send_signal(signal.SIGHUP)
        assert requests.get(address, timeout=10).ok
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_SECONDS)
    wait_for(lambda: not answers(address.removesuffix("/start")))


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=10).ok
    except requests.RequestException:
        return False


def test_the_start_page_lists_each_schedule_with_its_runs(root: Path) -> None:
    results = two_cohorts()
    results[2] = replace(results[2], spec=replace(results[2].spec, max_steps=30))
    publish_all(root, results)
    with locked_store(root) as client:
        saved_views = views(client)
    assert [(view.name, view.schedule, view.runs) for view in saved_views] == [
        ("quick/mnist", "4 epochs", 2),
        ("quick/mnist", "30 updates", 1),
    ]
    assert {view.experiments for view in saved_views} == {("burda-table1",)}
    page = start_page([*saved_views, View("<paper>/x", "1 epochs", (), 0, "/#/")])
    assert "viewStateShareKey=30-updates" in page
    assert "&lt;paper&gt;/x" in page


def test_the_start_page_without_runs_says_what_makes_some() -> None:
    assert "make repro" in start_page([])


def test_mlflows_page_still_reads_the_keys_that_the_start_page_writes() -> None:
    """They are no documented interface: a new MLflow may have others."""
    import mlflow.server

    scripts = (Path(mlflow.server.__file__).parent / "js/build/static/js").glob("*.js")
    text = "".join(path.read_text(encoding="utf-8") for path in scripts)
    for key in STORAGE_KEYS:
        name, _, version = key.rpartition("_v")
        assert f'key:"{name}",version:{version}' in text
