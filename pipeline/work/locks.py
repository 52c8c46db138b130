"""Locks between processes: one file each, freed when the process that took it ends, and those that it has forked.

By flock, which a forked child inherits and keeps: filelock's release in a child would free its parent's.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import runs

POLL_SECONDS = 0.05


class Busy(UserError):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, what: str, wait_seconds: float) -> Iterator[None]:
    """Keep every other process out while the block runs. `what`: how messages call what is locked.

    Raises: Busy naming the process that has the lock, after so many seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_seconds
    descriptor = _opened(path)
    try:
        while (taken := _taken(descriptor, until)) and not _lies_at(descriptor, path):
            # Removed by its holder meanwhile (pruning): whoever comes now locks another file of that name.
            removed, descriptor = descriptor, _opened(path)
            os.close(removed)
        if not taken:
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            if pid.isdecimal() and not runs(int(pid)):
                # It is gone, and what it has forked keeps the lock: a worker that is stopped, or slow to notice.
                pid = " ".join(map(str, _holders(path))) or pid
            raise Busy(
                f"{what}: process {pid} is working on it;"
                f" wait for it to end or stop it (kill {pid}), then run the same command again: nothing is lost"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """A descriptor of the lock file, which is not truncated: it holds the number of the process that has the lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holders(path: Path) -> list[int]:
    """The other processes of this machine that have the file open, as far as the system tells."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if int(folder.parent.name) != os.getpid() and any(link.samefile(path) for link in folder.iterdir()):
                processes.append(int(folder.parent.name))
    return sorted(processes)


def _taken(descriptor: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True
