"""Timing work by the clock and by the processor's time, in this process or in one that waits to be told to measure.

    python -P benchmarks/measure.py MODULE:FUNCTION [NUMBER]

serves measurements of the work that `FUNCTION(case)` makes; MODULE is a module's name or a file. Where the system can
do so, the process keeps to one core: the first that it may use, or that many further on. The project is
imported by that alone, so that another revision's checkout, first on PYTHONPATH, can be measured by this one's clock.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WARM_UP_SHARE = 0.25
"""Share of the measured seconds; the first unit of work is warm-up in any case."""

Tick = Callable[[float], None]
Work = Callable[[Tick], None]
"""`work(tick)` never returns: it calls `tick(units)` after so many units of work until that raises TimeUp."""


class TimeUp(Exception):
    """The measured time has passed."""


@dataclass(frozen=True)
class Rate:
    """Units of work per second."""

    cpu: float
    """Per second of processor time of the process, all its threads together."""
    wall: float


class Clock:
    """A `tick` that measures."""

    def __init__(self, seconds: float, synchronize: Callable[[], None] | None = None) -> None:
        """`seconds`: of processor time, so that busy neighbours shorten no measurement; with `synchronize`, which is
        called before every reading that counts, of the clock: what is measured then works on another device.
        """
        self._seconds = seconds
        self._now = time.process_time if synchronize is None else time.perf_counter
        self._synchronize = synchronize or (lambda: None)
        self._warm_at = math.nan
        self._start = math.nan
        self._readings = (math.nan, math.nan)
        self._units = 0.0
        self.rate: Rate | None = None
        """Known once the time is up."""

    def __call__(self, units: float) -> None:
        now = self._now()
        if math.isnan(self._warm_at):
            self._warm_at = now + WARM_UP_SHARE * self._seconds
        if math.isnan(self._start):
            if now >= self._warm_at:
                self._synchronize()
                self._readings = time.perf_counter(), time.process_time()
                self._start = self._now()
            return
        self._units += units
        if now - self._start >= self._seconds:
            self._synchronize()
            wall, cpu = time.perf_counter() - self._readings[0], time.process_time() - self._readings[1]
            self.rate = Rate(self._units / cpu, self._units / wall)
            raise TimeUp


def rate_here(work: Work, seconds: float, synchronize: Callable[[], None] | None = None) -> Rate:
    """Measure work in this process; arguments as of `Clock`."""
    clock = Clock(seconds, synchronize)
    try:
        work(clock)
    except TimeUp:
        assert clock.rate is not None
        return clock.rate
    raise AssertionError("the work ended before its time was up")


class Failed(Exception):
    """A contestant cannot do a case; the text says why, in a line."""


class Contestants:
    """One or more processes, each of which measures the same entry when asked: all at the same time."""

    def __init__(self, entry: str, environment: dict[str, str], processes: int = 1) -> None:
        """`entry`: `module:function`, with `function(case) -> Work`; what `case` is, is between it and the caller."""
        self._command = [sys.executable, "-P", __file__, entry]
        self._environment = {**os.environ, **environment}
        self._processes = [self._started(number) for number in range(processes)]

    def _started(self, number: int) -> subprocess.Popen[str]:
        command = [*self._command, str(number)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )

    def rate(self, case: Any, seconds: float) -> Rate:
        """The rate of one process on average in processor time, and of all together by the clock.

        A process that ended at another case is started anew.

        Raises: Failed with what the work raised.
        """
        self._processes = [
            process if process.poll() is None else self._started(number)
            for number, process in enumerate(self._processes)
        ]
        for process in self._processes:
            assert process.stdin is not None
            # Where the process has ended meanwhile, `_answer` says so.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([case, seconds]) + "\n")
                process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        if failures := [answer["error"] for answer in answers if "error" in answer]:
            raise Failed(failures[0])
        return Rate(sum(a["cpu"] for a in answers) / len(answers), sum(a["wall"] for a in answers))

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            return {"error": f"its process ended with code {process.wait()}, as when it is killed or out of memory"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _function(module: str, name: str) -> Any:
    """From a module by its name or by its file."""
    if module.endswith(".py"):
        return runpy.run_path(module)[name]
    return getattr(importlib.import_module(module), name)


def _keep_to_core(number: int) -> None:
    """XLA starts a thread for each core that a process may use, whatever its flags say, and loses by it."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def serve(entry: str) -> None:
    """Answer each line `[case, seconds]` on stdin with a line of JSON on stdout; keep what was built for a case.

    NotImplementedError is how a contestant says that it does not do a case; what else it raises is a fault, whose
    traceback goes to stderr.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = entry.rpartition(":")
    built: dict[str, Work] = {}
    for line in sys.stdin:
        case, seconds = json.loads(line)
        try:
            key = json.dumps(case)
            if key not in built:
                built[key] = _function(module, function)(case)
            rate = rate_here(built[key], seconds)
            answer: dict[str, Any] = {"cpu": rate.cpu, "wall": rate.wall}
        except NotImplementedError as refusal:
            answer = {"error": str(refusal)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _keep_to_core(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    serve(sys.argv[1])
