"""A few processes, one thread each, that work through a list and report by messages.

On a CPU a stack of tiny networks is no faster than its runs one by one, so runs are spread over cores.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.work import interruption
from pipeline.work.memory import keep_freed_memory

Item = TypeVar("Item")
Task = Callable[[Item, Callable[[Any], None]], None]


class Stopped(Exception):
    """The work was asked to stop, and every worker has put its state on disk and ended."""


def _work(task: Task[Any], items: Sequence[Any], connection: Connection, parent: int, threads: int) -> None:
    import torch

    interruption.listen(parent)
    keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        while (index := connection.recv()) is not None:
            try:
                task(items[index], lambda message: connection.send(("message", message)))
                connection.send(("done", None))
            except UserError as error:
                connection.send(("failed", str(error)))
            except Exception:
                if interruption.stop_requested():
                    connection.send(("stopped", None))
                    return
                connection.send(("failed", traceback.format_exc()))
    except (OSError, EOFError):
        pass  # The parent is gone; what this worker did is on disk.


def start_method() -> str:
    """fork shares the imported torch, but neither CUDA nor macOS survive it."""
    import torch

    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def run_parallel(
    task: Task[Item],
    items: Sequence[Item],
    workers: int,
    on_message: Callable[[int, Any], None],
    name: Callable[[Item], str] = str,
    threads: int = 1,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Call `task(item, send)` for every item, in order of the list, on `workers` processes.

    `on_message(index, message)` gets what the task of that item sends. `name(item)` is how messages call it.
    `started()` is called once all workers run.
    A failed item does not stop the others.

    Raises: UserError with the messages of all items that failed; Stopped after SIGINT or SIGTERM.
    """
    context: Any = multiprocessing.get_context(start_method())
    queue = list(range(len(items)))
    processes: dict[Connection, Any] = {}
    current: dict[Connection, int] = {}
    failures: list[str] = []
    stopped = False
    interruption.listen()
    for _ in range(min(workers, len(items))):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(task, items, theirs, os.getpid(), threads), daemon=False)
        process.start()
        theirs.close()
        processes[ours] = process

    def assign(connection: Connection) -> None:
        current.pop(connection, None)
        index = queue.pop(0) if queue and not stopped else None
        if index is not None:
            current[connection] = index
        try:
            connection.send(index)
        except OSError:
            lost(connection)
            return
        if index is None:
            processes.pop(connection).join()

    def lost(connection: Connection) -> None:
        process = processes.pop(connection)
        process.join()
        what = name(items[current[connection]]) if connection in current else "no item yet"
        failures.append(
            f"{what}: the process that worked on it ended with exit code {process.exitcode}"
            " (killed, or out of memory); run the same command again to go on from its last checkpoint"
        )

    for connection in list(processes):
        assign(connection)
    started()
    while processes:
        if interruption.stop_requested() and not stopped:
            stopped = True
            for process in processes.values():
                os.kill(process.pid, signal.SIGTERM)
        for ready in wait(list(processes), timeout=0.5):
            assert isinstance(ready, Connection)
            try:
                kind, content = ready.recv()
            except (EOFError, OSError):
                lost(ready)
                continue
            if kind == "message":
                on_message(current[ready], content)
                continue
            if kind == "failed":
                failures.append(f"{name(items[current[ready]])}: {content}")
            if kind == "stopped":
                stopped = True
                processes.pop(ready).join()
                continue
            assign(ready)
    if failures:
        raise UserError("\n".join(failures))
    if stopped:
        raise Stopped
    if queue:
        raise UserError(f"{len(queue)} of {len(items)} parts of the work were not reached; run the same command again")
