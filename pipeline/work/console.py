"""What a person sees of work: a bar on a terminal, a line now and then elsewhere, and what it came to."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 30.0
"""The first line comes soon, so that nobody wonders; the others seldom, so that a log stays short."""
TIMED_SECONDS = 1.0
"""A rate is of so much work at least: after a slow start the first update alone makes thousands a second."""
BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {unit}{postfix}"
"""tqdm's own rate and time left count every unit alike and are question marks at first."""


@dataclass(frozen=True)
class Whole:
    """What the work at hand is a part of: the runs of a scale."""

    name: str
    runs: int
    done: int
    """Runs that were finished when the work at hand began."""
    effort_after: float
    """What is left after the work at hand, in its unit of effort."""


class ProgressMeter:
    """Counts `unit`s of work towards `total`, with the rate and the time left.

    `effort`: what the whole work takes in any unit, where not every `unit` takes alike; then each call gives its own.
    `whole`: what the work is a part of, to say how that stands too.
    """

    def __init__(
        self, label: str, total: int, unit: str, effort: float | None = None, whole: Whole | None = None
    ) -> None:
        self._label, self._total, self._unit, self._whole = label, total, unit, whole
        self._effort = float(total) if effort is None else effort
        self._position = self._done = 0
        self._effort_position = self._effort_done = 0.0
        self._runs_done = 0
        self._note = ""
        self._start = time.monotonic()
        self._next_line = self._start + FIRST_LINE_SECONDS
        self._bar = _bar(total, label, unit) if sys.stderr.isatty() else None

    def skip(self, count: int, effort: float | None = None) -> None:
        """Count work that was done before: it says nothing about the rate, which is timed from the last such call that
        comes before any work, since starting processes is none."""
        if not self._done:
            self._start = time.monotonic()
        self._position += count
        self._effort_position += count if effort is None else effort
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def advance(self, count: int, effort: float | None = None) -> None:
        work = count if effort is None else effort
        self._position += count
        self._effort_position += work
        self._done += count
        self._effort_done += work
        if self._bar is not None:
            self._bar.set_postfix_str("; ".join(self._tail(short=True)), refresh=False)
            self._bar.update(count)
        elif time.monotonic() > self._next_line and time.monotonic() - self._start >= TIMED_SECONDS:
            self._next_line = time.monotonic() + LINE_SECONDS
            rate = _rate(self._done / (time.monotonic() - self._start))
            done = f"{self._position:,} of {self._total:,} {self._unit}s"
            print(f"{self._label}: {'; '.join([f'{done}, {rate}', *self._tail()])}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """What the work shows just now, e.g. a run's bound; seen with the next advance."""
        self._note = text

    def finish_run(self) -> None:
        """One more run of the whole is done."""
        self._runs_done += 1

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tail(self, short: bool = False) -> list[str]:
        """Time left, the note, and how the whole stands."""
        elapsed = time.monotonic() - self._start
        per_effort = elapsed / self._effort_done if self._effort_done else None
        here = max(0.0, self._effort - self._effort_position)
        parts = ["starting" if per_effort is None else f"{clock(here * per_effort)} left"]
        if self._note:
            parts.append(self._note)
        if self._whole is not None:
            done = self._whole.done + self._runs_done
            runs = f"{done}/{self._whole.runs}" if short else f"{done} of {self._whole.runs}"
            parts.append(f"{self._whole.name}: {runs} runs")
            if per_effort is not None:
                parts[-1] += f", {about((here + self._whole.effort_after) * per_effort)} of training left"
        return parts


def _bar(total: int, label: str, unit: str) -> Any:
    """A tqdm bar; None on a machine without tqdm, where lines do."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, unit=f"{unit}s", dynamic_ncols=True, bar_format=BAR, postfix="starting")


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


def about(seconds: float) -> str:
    """`less than a minute`, `about 6 min`, `about 2.5 h`, `about 3 days`: as exact as an estimate may look."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"about {hours:.1f} h" if hours < 48 else f"about {hours / 24:.0f} days"
