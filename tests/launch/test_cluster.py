"""Cohorts on a real Ray cluster of two nodes on loopback: whatever is lost, the numbers are those of a whole run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.errors import UserError
from pipeline.experiments.cohorts import INDEX, load_cohorts, load_evaluation, load_order
from pipeline.experiments.spec import CohortSpec, EvaluationSpec
from pipeline.files import write_json
from pipeline.launch import __main__ as launch
from pipeline.launch import cluster as driver
from pipeline.launch import cluster_nodes, placement
from pipeline.launch.cluster_nodes import LOOPBACK_VARIABLE, asks_for_token
from pipeline.launch.cluster_task import SCRATCH, Order
from pipeline.launch.launcher import Project
from pipeline.launch.launcher import run as run_launcher
from pipeline.paths import HERE
from pipeline.records.store import cohort_lock, store_folder
from pipeline.work import interruption
from pipeline.work.machine import Machine
from tests.conftest import PATIENCE_SECONDS, ROOT, make_images, make_run, wait_for, write_dataset

FIRST, SECOND, THIRD = "tiny/first-mnist-1L-T5", "tiny/second-mnist-1L-T5", "tiny/third-mnist-1L-T1"
STEPS = 1200
MADE = (
    CohortSpec(
        "tiny", "second", "second-mnist-1L-T5", (make_run(max_steps=40, continues=f"{FIRST}/{make_run().name}"),)
    ),
    CohortSpec("tiny", "first", "first-mnist-1L-T5", (make_run(max_steps=STEPS), make_run("vae", 5, 1, max_steps=60))),
    CohortSpec("tiny", "third", "third-mnist-1L-T1", (make_run("vae", 1, 1, max_steps=40),)),
)
EVALUATION = EvaluationSpec(
    seed=1, num_samples=100, bound_samples=10, test_images=5, train_images=0, pruned_images=0, diagnostic_images=0
)
EVALUATION = replace(EVALUATION, earlier=replace(EVALUATION, test_images=4))
LONG = f"{FIRST}/{make_run().name}"
"""A run with waypoints after 10, 40, 130, 400 and 1,200 updates."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cohorts, one continuing another, launched unbroken in a process of their own."""
    folder = tmp_path_factory.mktemp("project")
    write_dataset(folder / HERE.binarized("mnist"), make_images())
    for cohort in MADE:
        write_json(folder / HERE.cohorts / f"{cohort.key}.json", cohort.to_json())
    evaluations = {"tiny": {cohort.experiment: asdict(EVALUATION) for cohort in MADE}}
    write_json(folder / HERE.cohorts / INDEX, {"order": [cohort.key for cohort in MADE], "evaluations": evaluations})
    shutil.copytree(folder, folder / "unbroken")
    done = start(folder / "unbroken", "--workers", "1")
    output, _ = done.communicate(timeout=PATIENCE_SECONDS)
    assert "3 cohorts: 3 done" in output, output
    return folder


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A launcher in a process group of its own."""
    command = [sys.executable, "-m", "pipeline.launch", "run", "--scale", "tiny", "--device", "cpu", *words]
    inherited = {name: value for name, value in os.environ.items() if name != "ELBO_STORE"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**inherited, "PYTHONPATH": path}
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=variables, text=True, start_new_session=True, **streams)


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project with nothing trained, as the working folder."""
    for name in ("cohorts", "data"):
        shutil.copytree(project / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELBO_STORE", raising=False)
    cohorts = load_cohorts(HERE.cohorts)
    chosen = tuple(cohorts[key] for key in load_order(HERE.cohorts))
    evaluations = {key: load_evaluation(HERE.cohorts, cohort) for key, cohort in cohorts.items()}
    return Project(cohorts, evaluations, chosen, store_folder(), Machine(torch.device("cpu"), 1, 0.05))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU; each test adds what it may lose."""
    os.environ[LOOPBACK_VARIABLE] = "0"
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    ray_cluster = Cluster()
    ray_cluster.add_node(num_cpus=0, node_ip_address="127.0.0.1", include_dashboard=False)
    yield ray_cluster
    ray_cluster.shutdown()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def second_node(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1")
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


def go(project: Project, cluster: Any, epochs: Sequence[int] = ()) -> int:
    return driver.run(project, cluster.address, "auto", epochs=epochs)


def numbers(folder: Path, cohort: str) -> dict[str, Any]:
    results = folder / HERE.cohort_results(cohort)
    arrays = dict(np.load(results / "arrays.npz"))
    kept = {name: array.tolist() for name, array in arrays.items() if not name.endswith("/seconds")}
    return {"metrics": json.loads((results / "metrics.json").read_text()), **kept}


def assert_same(folder: Path, project: Path, *keys: str) -> None:
    """The metrics, curves and weights of these cohorts, else of all, are those of the unbroken run."""
    unbroken = project / "unbroken"
    for key in keys or [cohort.key for cohort in MADE]:
        assert numbers(folder, key) == numbers(unbroken, key)
        for run in json.loads((unbroken / HERE.cohort_results(key) / "runs.json").read_text()).values():
            expected = sorted((unbroken / ".store" / run["digest"]).glob("waypoint-*/*.safetensors"))
            assert {path.name for path in expected} == {"weights.safetensors", "optimizer.safetensors"}
            for path in expected:
                ours, theirs = load_file(folder / path.relative_to(unbroken)), load_file(path)
                assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def once(condition: Callable[[], Any], action: Callable[[], None]) -> threading.Thread:
    """Do something from another thread as soon as a condition holds."""

    def wait() -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_nodes_train_everything(
    here: Project, project: Path, cluster: Any, second_node: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(here, cluster) == 0
    output = capsys.readouterr().out
    assert_same(Path.cwd(), project)
    assert "3 cohorts: 3 done, 0 begun, 0 to do" in output
    # What continues another cohort comes behind it.
    assert output.index(f"{LONG}: done") < output.index(f"{SECOND}/{make_run().name}: done")
    # Nothing is left to do, for the launcher either.
    assert run_launcher(here, None) == 0
    assert "training" not in capsys.readouterr().out


def test_cohorts_train_in_whole_where_they_are_the_unit(
    here: Project, project: Path, cluster: Any, second_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs, of which this cluster has none."""
    monkeypatch.setattr(driver, "single_runs", lambda chosen: chosen)
    for module in (driver, placement):
        monkeypatch.setattr(module, "unit_name", lambda cohort, on_gpu: cohort.key)
    assert go(here, cluster) == 0
    assert_same(Path.cwd(), project)


def test_all_go_to_an_epoch_before_one_goes_deeper(
    here: Project, project: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one core: where others are free, they take what goes deeper when nothing else waits."""
    part = replace(here, chosen=(here.cohorts[FIRST],))
    node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    try:
        assert go(part, cluster, epochs=[1, 4]) == 0
    finally:
        cluster.remove_node(node)
    done = re.findall(r"^(.*): done ->", capsys.readouterr().out, re.MULTILINE)
    other = f"{FIRST}/vae-M5-K1-s0"
    assert [set(done[:2]), set(done[2:4]), set(done[4:])] == [{LONG, other}] * 3
    assert_same(Path.cwd(), project, FIRST)


def steps_of(project: Project, key: str) -> int:
    """Updates of the cohort that came home in checkpoints and waypoints."""
    try:
        return sum(job.steps_done for job in project.jobs(project.cohorts[key]))
    except UserError:  # One was replaced meanwhile.
        return 0


def worker_of(node: Any) -> int | None:
    """The process on a node that has a task's folder."""
    raylet = node.all_processes["raylet"][0].process.pid
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = int(folder.name.removeprefix(SCRATCH).partition("-")[0])
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(") ")[2].split()[1] == str(raylet):
            return pid
    return None


def test_a_killed_worker_and_a_lost_node_change_nothing(
    here: Project, project: Path, cluster: Any, second_node: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single run: its worker is killed, then the node that it is on."""
    cohort = here.cohorts[FIRST]
    part = replace(here, chosen=(replace(cohort, runs=cohort.runs[:1]),))
    nodes = [second_node, cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1")]
    lost: list[int] = []

    def lose_node() -> None:
        lost.append(steps_of(part, FIRST))
        (node,) = (node for node in nodes if worker_of(node))
        cluster.remove_node(node)
        nodes.remove(node)

    def kill() -> None:
        lost.append(steps_of(part, FIRST))
        (pid,) = filter(None, map(worker_of, nodes))
        os.kill(pid, signal.SIGKILL)
        threads.append(once(lambda: steps_of(part, FIRST) > lost[0] and any(map(worker_of, nodes)), lose_node))

    threads = [once(lambda: steps_of(part, FIRST) > 0, kill)]
    try:
        assert go(part, cluster) == 0
    finally:
        for thread in threads:
            thread.join()
        for node in nodes[1:]:
            cluster.remove_node(node)
    said = capsys.readouterr().err
    shares = [float(share) for share in re.findall(r"was lost; it goes on from the ([0-9.]+) % that came home", said)]
    assert len(lost) == len(shares) == 2
    assert 0 < shares[0] < shares[1]
    # The other run of the cohort, on a node that joins.
    if second_node not in cluster.list_all_nodes():
        nodes.append(cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1"))
    try:
        assert go(replace(here, chosen=(cohort,)), cluster) == 0
    finally:
        for node in nodes:
            if node is not second_node:
                cluster.remove_node(node)
    assert_same(Path.cwd(), project, FIRST)


def test_a_token_of_another_cluster_is_not_shown_to_one_that_has_none(
    here: Project, project: Path, cluster: Any, second_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--ray` alone leaves one in the home of the user, who then joins a cluster that was started without."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("HOME", str(home))
    # Of no use here, and made by hand before.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    process = start(Path.cwd(), "--ray", cluster.address, "--only", FIRST)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert_same(Path.cwd(), project, FIRST)


def test_a_cluster_that_asks_for_a_token_is_shown_it(
    here: Project, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv(LOOPBACK_VARIABLE, "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1", "--include-dashboard=false", "--block"]
    served = subprocess.Popen([*ray, "start", "--head", *head], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: asks_for_token(f"127.0.0.1:{port}"), served)
        process = start(Path.cwd(), "--ray", f"127.0.0.1:{port}", "--only", FIRST)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, output
    finally:
        os.killpg(served.pid, signal.SIGTERM)
        served.communicate(timeout=PATIENCE_SECONDS)
    assert_same(Path.cwd(), project, FIRST)


def test_a_killed_driver_goes_on(
    here: Project, project: Path, cluster: Any, second_node: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    part = replace(here, chosen=(here.cohorts[FIRST],))
    words = ("--ray", cluster.address, "--only", FIRST, "--checkpoint-seconds", "0.05")
    process = start(Path.cwd(), *words)
    wait_for(lambda: steps_of(part, FIRST), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not all(job.is_finished for job in part.jobs(part.cohorts[FIRST]))
    # And one that is asked to stop.
    before = steps_of(part, FIRST)
    once(lambda: steps_of(part, FIRST) > before, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert go(part, cluster) == 130
    captured = capsys.readouterr()
    assert "stopped by a signal: checkpoints are on disk" in captured.err
    assert f"{FIRST}   2 runs" in captured.out
    assert before < steps_of(part, FIRST)
    interruption.clear()
    assert go(part, cluster) == 0
    assert_same(Path.cwd(), project, FIRST)


def test_out_of_memory_is_tried_alone_and_then_named(
    here: Project,
    project: Path,
    cluster: Any,
    second_node: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tasks are real but for their want of memory: one has enough on a whole node, one has not."""
    real = driver.unit_task

    def hungry(order: Order, *rest: Any) -> tuple[str, str]:
        import ray

        alone = ray.get_runtime_context().get_assigned_resources()["CPU"] == 2
        if not alone or order.unit.key == "tiny/first-mnist-1L-T5":
            return "out of memory", "torch.OutOfMemoryError: CUDA out of memory"
        return real(order, *rest)

    monkeypatch.setattr(driver, "unit_task", hungry)
    part = replace(here, chosen=(here.cohorts[FIRST], here.cohorts[THIRD]))
    assert go(part, cluster) == 1
    said = capsys.readouterr().err
    assert f"{THIRD}/vae-M1-K1-s0: out of memory; it goes on alone" in said
    assert f"error: {LONG}: torch.OutOfMemoryError" in said
    failed = re.search(r"^error: (.*) failed \(see above\)$", said, re.MULTILINE)
    assert failed is not None
    assert set(failed[1].split(", ")) == {LONG, f"{FIRST}/vae-M5-K1-s0"}
    assert_same(Path.cwd(), project, THIRD)


def test_another_version_is_refused(here: Project, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_nodes, "project_version", lambda: "source 0123, torch 9.9")
    with pytest.raises(UserError, match=r"has another version of this project \(source .*, torch .*\) than the driver"):
        go(here, cluster)
    assert not here.store.exists()


def test_what_another_process_works_on_is_left(here: Project, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    part = replace(here, chosen=(here.cohorts[FIRST],))
    with cohort_lock(part.store, FIRST):
        assert go(part, cluster) == 1
    assert f"{FIRST}: process {os.getpid()} is working on it" in capsys.readouterr().out


def test_a_dry_run_tells_the_plan(
    here: Project, cluster: Any, second_node: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert driver.run(here, cluster.address, "auto", dry=True) == 0
    output = capsys.readouterr().out
    assert "2 CPUs" in output
    assert f"{LONG}: 0 GPU, 1 CPU, 1.0 GiB, not timed yet" in output
    assert f"{SECOND}/{make_run().name}: 0 GPU, 1 CPU, 1.0 GiB, not timed yet, after {LONG}" in output
    assert not here.store.exists()


def test_without_ray_it_says_how_to_install_it(here: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install '\.\[ray\]'"):
        launch.main(["run", "--ray", "--scale", "tiny"])
