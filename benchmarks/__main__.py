"""`python -m benchmarks`: see the package's text; `--help` lists the options."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import cpu, gpu, peers, table
from benchmarks.cases import CASES
from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohorts
from pipeline.paths import HERE

PROJECTED_SCALE = "paper"
LIBRARIES = ("torch", "jax", "pythae")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="medians are taken over so many (default: 5)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="measured for each contestant and round: of the clock on a GPU, else of the processor (default: 1)",
    )
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE", help="%(choices)s"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one"
    )
    parser.add_argument("--against", metavar="REVISION", help="measure this older revision in the same run (on a CPU)")
    parser.add_argument(
        "--processes", type=int, default=1, help="so many of each contestant at the same time (on a CPU; default: 1)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        default="float32",
        help="of products in training, on a GPU",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[peer.name for peer in cpu.PEERS],
        default=[peer.name for peer in cpu.PEERS],
        metavar="PEER",
        help="%(choices)s (default: those that are installed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's rates to FILE")
    arguments = parser.parse_args(words)
    if arguments.rounds < 1 or arguments.seconds <= 0 or arguments.processes < 1:
        parser.error("--rounds and --processes must be at least 1 and --seconds positive")
    return arguments


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers hold for."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **versions,
    }


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main(words: list[str] | None = None) -> None:
    """Hold the contests that `words` (None: the command line) ask for, and print their tables.

    Raises: UserError when a GPU is asked for and there is none.
    """
    arguments = _arguments(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # An older revision's worktree and the contestants' processes go when this one does.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    cases = [case for name, case in CASES.items() if name in arguments.cases]
    use_cuda = arguments.device != "cpu" and torch.cuda.is_available()
    if arguments.device == "cuda" and not use_cuda:
        raise UserError(f"--device cuda: torch {torch.__version__} sees no CUDA GPU here")
    device = torch.device("cuda" if use_cuda else "cpu")
    asked = [peer for peer in cpu.PEERS if peer.name in arguments.peers]
    absent = {peer.name: peer.missing for peer in asked if peer.missing is not None}
    present = tuple(peer for peer in asked if peer.name not in absent)
    facts = machine(device)
    hours: dict[str, float] = {}
    if use_cuda:
        with_pythae = any(peer.module == peers.__name__ for peer in present)
        results = gpu.run(
            cases, arguments.rounds, arguments.seconds, with_pythae, _progress, device, arguments.precision
        )
        cohorts = [cohort for cohort in load_cohorts(HERE.cohorts).values() if cohort.scale == PROJECTED_SCALE]
        hours = gpu.projected_hours(cohorts, device, _progress)
        text = table.gpu_tables(results, hours)
    else:
        results, facts["images"] = cpu.run(
            cases, arguments.rounds, arguments.seconds, arguments.processes, arguments.against, present, _progress
        )
        text = table.cpu_tables(results, arguments.against)
    facts["load after"] = f"{os.getloadavg()[0]:.1f}"
    _progress("")
    measured = f"{arguments.rounds} rounds of {arguments.seconds:g} s, {arguments.processes} process(es) each"
    print("; ".join([*(f"{name} {value}" for name, value in facts.items()), measured]) + f".\n\n{text}")
    for name, reason in absent.items():
        print(f"\nNot measured: {name}: {reason}.")
    if arguments.json:
        values = {"machine": facts, "rounds": arguments.rounds, "seconds": arguments.seconds, **asdict(results)}
        arguments.json.write_text(json.dumps({**values, "projected_hours": hours}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
