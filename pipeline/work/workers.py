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
from pipeline.work.locks import Busy
from pipeline.work.memory import keep_freed_memory

Item = TypeVar("Item")
ItemTask = Callable[[Item, Callable[[Any], None]], None]


class Stopped(Exception):
    """The work was asked to stop, and every worker has put its state on disk and ended."""


def _work(task: ItemTask[Any], items: Sequence[Any], connection: Connection, parent: int, threads: int) -> None:
    import torch

    interruption.listen(parent)
    keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        while (index := connection.recv()) is not None:
            try:
                task(items[index], lambda message: connection.send(("message", message)))
                connection.send(("done", None))
            except Busy as busy:
                connection.send(("busy", str(busy)))
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


class _Crew:
    """Processes that each take the next item of a list when they are done with one."""

    def __init__(self, items: Sequence[Any], name: Callable[[Any], str]) -> None:
        self._items, self._name = items, name
        self.queue = list(range(len(items)))
        """Items that nobody took yet, by index."""
        self.failures: list[str] = []
        self.stopped = False
        self._processes: dict[Connection, Any] = {}
        self._current: dict[Connection, int] = {}

    def start(self, task: ItemTask[Any], workers: int, threads: int) -> None:
        """Start so many processes, and give each its first item."""
        context: Any = multiprocessing.get_context(start_method())
        for _ in range(min(workers, len(self._items))):
            ours, theirs = context.Pipe()
            arguments = (task, self._items, theirs, os.getpid(), threads)
            process = context.Process(target=_work, args=arguments, daemon=False)
            process.start()
            theirs.close()
            self._processes[ours] = process
        for connection in list(self._processes):
            self._assign(connection)

    def attend(self, on_message: Callable[[int, Any], None]) -> None:
        """Hear the processes, and hand on what they say, until the last has ended."""
        while self._processes:
            if interruption.stop_requested() and not self.stopped:
                self._ask_to_stop()
            for ready in wait(list(self._processes), timeout=0.5):
                assert isinstance(ready, Connection)
                self._hear(ready, on_message)

    def dismiss(self) -> None:
        """Have the processes end, their state on disk, whatever they still say: this one waits for them at its end."""
        self._ask_to_stop()
        self.attend(lambda index, content: None)

    def _ask_to_stop(self) -> None:
        self.stopped = True
        for process in self._processes.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def _hear(self, connection: Connection, on_message: Callable[[int, Any], None]) -> None:
        """Take one message of a process."""
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            self._lose(connection)
            return
        if kind == "message":
            on_message(self._current[connection], content)
            return
        if kind == "stopped":
            self.stopped = True
            self._processes.pop(connection).join()
            return
        if kind == "busy":
            # It names what is busy: of an item of several parts, which one.
            self.failures.append(content)
        if kind == "failed":
            self.failures.append(f"{self._name(self._items[self._current[connection]])}: {content}")
        self._assign(connection)

    def _assign(self, connection: Connection) -> None:
        """Give a process the next item; where there is none, or all are to stop, have it end."""
        self._current.pop(connection, None)
        index = self.queue.pop(0) if self.queue and not self.stopped else None
        if index is not None:
            self._current[connection] = index
        try:
            connection.send(index)
        except OSError:
            self._lose(connection)
            return
        if index is None:
            self._processes.pop(connection).join()

    def _lose(self, connection: Connection) -> None:
        """Record that a process ended without a word."""
        process = self._processes.pop(connection)
        process.join()
        known = connection in self._current
        what = self._name(self._items[self._current[connection]]) if known else "no item yet"
        self.failures.append(
            f"{what}: the process that worked on it ended with exit code {process.exitcode}"
            " (killed, or out of memory); run the same command again to go on from its last checkpoint"
        )


def run_parallel(
    task: ItemTask[Item],
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

    Raises: UserError with the messages of all items that failed; Stopped when asked to stop.
    """
    interruption.listen()
    crew = _Crew(items, name)
    crew.start(task, workers, threads)
    try:
        started()
        crew.attend(on_message)
    except BaseException:
        crew.dismiss()
        raise
    if crew.failures:
        raise UserError("\n".join(crew.failures))
    if crew.stopped:
        raise Stopped
    if crew.queue:
        left = f"{len(crew.queue)} of {len(items)} parts of the work were not reached"
        raise UserError(f"{left}; run the same command again")
