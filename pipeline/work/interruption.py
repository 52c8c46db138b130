"""Stopping cleanly: SIGINT, SIGTERM, SIGHUP and a time limit set a flag that long work looks at between steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType


class Interrupted(Exception):
    """Work was asked to stop; all that was done is on disk."""


_requested: int | None = None
_parent: int | None = None
_deadline: float | None = None


def _request(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = number


def listen(parent: int | None = None) -> None:
    """Turn SIGINT, SIGTERM and SIGHUP (the terminal closes) of this process into a request to stop.

    Under nohup SIGHUP stays ignored: the work is to outlive its terminal.
    A request made before (a forked process inherits its parent's handlers) still stands.
    `parent`: also stop when this process is no longer a child of that one (it was killed).
    """
    global _parent
    _parent = parent
    signal.signal(signal.SIGINT, _request)
    signal.signal(signal.SIGTERM, _request)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _request)


def clear() -> None:
    """Forget what was asked before: this process begins other work."""
    global _requested, _deadline
    _requested, _deadline = None, None


def stop_after(seconds: float) -> None:
    """Also stop this process, and what it starts, when so much time has passed."""
    global _deadline
    _deadline = time.monotonic() + seconds


def signalled() -> bool:
    """Whether a signal that asks to stop came."""
    return _requested is not None


def stop_requested() -> bool:
    """Whether a signal came, the parent process is gone or the time is up."""
    orphaned = _parent is not None and os.getppid() != _parent
    return signalled() or orphaned or (_deadline is not None and time.monotonic() >= _deadline)
