"""What a person sees of work: a bar on a terminal, a line now and then elsewhere, and what it came to."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 30.0


class ProgressMeter:
    """Counts `unit`s of work towards `total`, with the rate and the time left."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._skipped = 0
        self._start = self._last = time.monotonic()
        self._bar = _bar(total, label, unit) if sys.stderr.isatty() else None

    def skip(self, count: int) -> None:
        """Count work that was done before: it says nothing about the rate."""
        self._skipped += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last > LINE_SECONDS and self._done:
            self._last = time.monotonic()
            rate = self._done / (self._last - self._start)
            position = self._skipped + self._done
            left = clock((self._total - position) / rate)
            print(
                f"{self._label}: {position:,} of {self._total:,} {self._unit}s, {_rate(rate)}, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(total: int, label: str, unit: str) -> Any:
    """A tqdm bar; None on a machine without tqdm, where lines do."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, unit=f" {unit}s", dynamic_ncols=True, smoothing=0.1)


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def clock(seconds: float) -> str:
    """`5:03` or `1:05:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
