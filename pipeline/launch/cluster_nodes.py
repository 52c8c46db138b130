"""A Ray cluster and its nodes: connecting to it, and asking each node what it has (see `cluster`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.launch.cluster_task import need_ray, other_version, project_version

LOCAL = "local"
LOOPBACK = "127.0.0.1"
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own; 0 keeps all of Ray to the loopback address, as it does by default on those systems."""
CONNECT_SECONDS, HEALTH_SECONDS = 10.0, 60.0
TOKEN_FILE = Path(".ray", "auth_token")
"""In the user's home: Ray writes it when a cluster is started within a process, and from then on asks for it."""


@dataclass(frozen=True)
class Resources:
    """What a task asks Ray for."""

    gpus: float
    cpus: float
    memory: int
    """Bytes of a host's memory; 0 where the task asks for none."""

    def options(self) -> dict[str, float]:
        return {"num_gpus": self.gpus, "num_cpus": self.cpus, "memory": self.memory}

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{self.gpus:.3g} GPU, {self.cpus:g} CPU{memory}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    name: str
    cpus: float
    gpus: float
    gpu: str = ""
    """torch's name of it."""
    gpu_bytes: int = 0


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A connection to the Ray cluster at `address`, or a cluster of this machine alone on loopback.

    Raises: UserError when there is none.
    """
    if address.startswith("ray://"):
        raise UserError("--ray: this is Ray's client; run the command on a node of the cluster, with --ray auto")
    check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address.partition(":")[0] in (LOCAL, LOOPBACK, "localhost"):
        # Read as Ray is imported; without it Ray takes the machine's outward address for the loopback one.
        os.environ.setdefault(LOOPBACK_VARIABLE, "0")
    if address != LOCAL and token_is_kept(Path(os.path.expanduser("~")), os.environ):
        # Read as Ray is imported, too. A driver that wants a token of a cluster that has none is taken for dead by it.
        os.environ["RAY_AUTH_MODE"] = "token" if asks_for_token(address) else "disabled"
    ray = need_ray()
    shared = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == LOCAL:
            gpus = torch.cuda.device_count()
            ray.init(include_dashboard=False, _node_ip_address=LOOPBACK, num_gpus=gpus, address=LOCAL, **shared)
        else:
            ray.init(address=address, **shared)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no Ray cluster there ({error}); see docs/scale-out.md") from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"--ray {address}: the cluster was lost ({type(error).__name__}: {told}); what came home is in the store:"
            " start the cluster again, then run the same command"
        ) from error
    finally:
        ray.shutdown()


def token_is_kept(home: Path, environment: Mapping[str, str]) -> bool:
    """Whether Ray finds a token to show to a cluster."""
    named = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (home / TOKEN_FILE).exists()


def asks_for_token(address: str) -> bool:
    """Whether the cluster turns away who shows no token: those that were started where there was one do."""
    where = [] if address == "auto" else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *where]
    with suppress(subprocess.TimeoutExpired):
        without = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        asked = subprocess.run(command, env=without, capture_output=True, text=True, timeout=HEALTH_SECONDS)
        return "InvalidAuthToken" in asked.stdout + asked.stderr
    return False


def check_reachable(address: str) -> None:
    """Raises: UserError at once where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    if not port.isdecimal():
        raise UserError(f"--ray {address}: {port!r} is no port; give auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray {address}: nobody answers there ({error}); start the cluster (`ray start --head --port={port}`),"
            " or see docs/scale-out.md"
        ) from error


def pinned(node_id: str) -> Any:
    """Ray's scheduling strategy that has a task run on this node, and on no other when the node is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def nodes_of(ray: Any, use_gpus: bool) -> list[Node]:
    """The cluster's nodes, each asked what it has.

    Raises: UserError naming every node with another version of this project, or without it.
    """

    def probe() -> tuple[str, str, int]:
        # By value: it must run where the project is missing.
        try:
            import torch

            from pipeline.launch.cluster_task import project_version

            if not torch.cuda.is_available():
                return project_version(), "", 0
            return project_version(), torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        except ImportError as error:
            return f"none: {error}", "", 0

    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = []
    for node in alive:
        share = 0.01 if use_gpus and node["Resources"].get("GPU") else 0
        placed = {"num_cpus": 0, "num_gpus": share, "scheduling_strategy": pinned(node["NodeID"])}
        asked.append(ray.remote(probe).options(**placed).remote())
    nodes, odd = [], []
    for node, (version, gpu, gpu_bytes) in zip(alive, ray.get(asked), strict=True):
        name, resources = node["NodeManagerHostname"], node["Resources"]
        if version != project_version():
            odd.append(other_version(name, version, project_version()))
        nodes.append(Node(name, resources.get("CPU", 0), resources.get("GPU", 0), gpu, gpu_bytes))
    if odd:
        raise UserError("\n".join(odd))
    return nodes
