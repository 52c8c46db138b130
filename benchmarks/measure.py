"""Timing work: fresh processes that all start counting together, after a warm-up."""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.memory import keep_freed_memory

WARM_UP_SHARE = 0.25
"""Of the measured seconds; the first unit of work is warm-up in any case."""
PATIENCE_S = 120.0
"""How long processes wait for one another before they count as hung."""

Tick = Callable[[float], None]
Work = Callable[[int, Tick], None]
"""`work(rank, tick)` never returns: it calls `tick(units)` after so many units of work until that raises TimeUp."""


class TimeUp(Exception):
    """The measured time has passed."""


@dataclass(frozen=True)
class Layout:
    """How work is laid out on the machine. `keep_memory`: as pipeline's workers do; peers run as they come."""

    processes: int
    threads: int
    keep_memory: bool = False

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"


class Clock:
    """The `tick` of one process."""

    def __init__(self, seconds: float, ready: Callable[[], object], synchronize: Callable[[], None]) -> None:
        """`ready` is called once the work is warm; `synchronize` before every reading that counts."""
        self._seconds = seconds
        self._ready = ready
        self._synchronize = synchronize
        self._warm_at = math.nan
        self._start = math.nan
        self._units = 0.0
        self.rate = math.nan
        """Units per second, known once the time is up."""

    def __call__(self, units: float) -> None:
        now = time.perf_counter()
        if math.isnan(self._warm_at):
            self._warm_at = now + WARM_UP_SHARE * self._seconds
        if math.isnan(self._start):
            if now >= self._warm_at:
                self._synchronize()
                self._ready()
                self._start = time.perf_counter()
            return
        self._units += units
        if now - self._start >= self._seconds:
            self._synchronize()
            self.rate = self._units / (time.perf_counter() - self._start)
            raise TimeUp


def rate_here(work: Work, seconds: float, device: torch.device) -> float:
    """Units of work per second in this process."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    clock = Clock(seconds, lambda: None, synchronize)
    try:
        work(0, clock)
    except TimeUp:
        return clock.rate
    raise AssertionError("the work ended before its time was up")


def _child(work: Work, rank: int, seconds: float, layout: Layout, barrier: Any, connection: Any) -> None:
    try:
        if layout.keep_memory:
            keep_freed_memory()
        torch.set_num_threads(layout.threads)
        clock = Clock(seconds, lambda: barrier.wait(PATIENCE_S), lambda: None)
        try:
            work(rank, clock)
        except TimeUp:
            connection.send(clock.rate)
    except Exception:
        barrier.abort()
        connection.send(traceback.format_exc())


def rate(work: Work, seconds: float, layout: Layout) -> float:
    """Units of work per second of all processes together, on the CPU.

    Raises: RuntimeError with the traceback of a process that failed.
    """
    # As pipeline.workers: fork shares the imported torch and the images; macOS cannot fork safely.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier = context.Barrier(layout.processes)
    children = []
    for rank in range(layout.processes):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(work, rank, seconds, layout, barrier, theirs), daemon=True)
        process.start()
        theirs.close()
        children.append((process, ours))
    total = 0.0
    failures = []
    for process, connection in children:
        try:
            result = connection.recv()
        except EOFError:
            barrier.abort()
            result = "a measuring process was killed, or ran out of memory"
        process.join()
        if isinstance(result, str):
            failures.append(result)
        else:
            total += result
    if failures:
        raise RuntimeError("\n".join(failures))
    return total
