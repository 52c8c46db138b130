"""Small dot pictures that stand in text: rows of marks over one axis, as HTML and SVG of fluid width.

Positions are percentages, so that marks and letters keep their size on every screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.forms.drawing import COLOURS
from pipeline.reporting.forms.numbers import minus

SHAPES = {
    "vae": "M0-4.5a4.5 4.5 0 1 0 .01 0z",
    "iwae": "M-4-4h8v8h-8z",
    "miwae": "M0-5l5 9h-10z",
    "piwae": "M0 5l5-9h-10z",
    "ciwae": "M0-5.5l5 5.5-5 5.5-5-5.5z",
}
"""Objective -> its marker, as in the figures; anything else is a circle."""
ROW = 20
"""Height of a row, pixels."""
EDGE = 4.0
"""Percent of the width that is left free at either end."""
LANE = 3.5
"""Pixels between marks with bars in one row, so that the bars do not hide each other."""
TICKS = 4


@dataclass(frozen=True)
class Mark:
    """A value in a row of a strip, with the ends of its interval where it has one, all in the axis' unit."""

    value: float
    low: float | None = None
    high: float | None = None
    objective: str = ""
    """Whose marker and colour it has; empty: a black circle, for what belongs to no objective."""
    hollow: bool = False
    """Whether it is a paper's."""
    doubtful: bool = False
    """Whether nobody checked it against the paper."""
    faint: bool = False
    """Whether it is of a cell that was not run here."""


@dataclass(frozen=True)
class Strip:
    """Rows of marks, (label, marks) each, over one axis."""

    rows: tuple[tuple[str, tuple[Mark, ...]], ...]
    axis: str
    """What is on the axis, with its unit."""
    zero: bool = True
    """Whether a line at zero, which the axis then includes, says what no difference is."""
    log: bool = False
    ticks: tuple[float, ...] | None = None
    """Where the axis is labelled; None for round numbers."""

    @property
    def ends(self) -> tuple[float, float]:
        """The values at the ends of the axis."""
        marks = [mark for _, row in self.rows for mark in row]
        values = [value for m in marks for value in (m.value, m.low, m.high) if value is not None]
        values += [0.0] if self.zero else []
        values += self.ticks or ()
        return (min(values), max(values)) if values else (0.0, 1.0)


def position(strip: Strip, value: float) -> float:
    """Percent of the width at which a value stands."""
    low, high = strip.ends
    if strip.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    share = 0.5 if high == low else (value - low) / (high - low)
    return round(EDGE + (100 - 2 * EDGE) * share, 2)


def _axis_ticks(strip: Strip) -> list[float]:
    low, high = strip.ends
    if strip.ticks is not None:
        return list(strip.ticks)
    if strip.log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [round(step * 10.0**decade, 9) for decade in decades for step in (1, 3)]
        return [value for value in candidates if low <= value <= high]
    return [float(tick) for tick in MaxNLocator(TICKS).tick_values(low, high) if low <= tick <= high]


def _mark(strip: Strip, mark: Mark, y: float) -> Markup:
    x = position(strip, mark.value)
    known = mark.objective if mark.objective in COLOURS else "ours"
    kinds = [known, *(["hollow"] if mark.hollow else []), *(["doubtful"] if mark.doubtful else [])]
    kinds += ["faint"] if mark.faint else []
    bar = Markup()
    if mark.low is not None and mark.high is not None:
        line = '<line class="{}" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>'
        bar = Markup(line).format(known, position(strip, mark.low), position(strip, mark.high), y=y)
    shape = '<svg x="{}%" y="{}" class="{}" overflow="visible"><path d="{}"/></svg>'
    return bar + Markup(shape).format(x, y, " ".join(kinds), SHAPES.get(known, SHAPES["vae"]))


def _row(strip: Strip, marks: Sequence[Mark]) -> Markup:
    # Hollow ones last, so that none hides behind a solid one.
    ordered = sorted(marks, key=lambda mark: mark.hollow)
    step = LANE if any(mark.low is not None for mark in ordered) else 0.0
    spread = step * (len(ordered) - 1)
    height = round(max(ROW, spread + 12))
    zero = Markup()
    if strip.zero:
        zero = Markup('<line class="zero" x1="{x}%" x2="{x}%" y1="0" y2="{h}"/>').format(x=position(strip, 0), h=height)
    heights = [height / 2 - spread / 2 + step * i for i in range(len(ordered))]
    drawn = Markup().join(_mark(strip, mark, round(y, 1)) for mark, y in zip(ordered, heights, strict=True))
    return Markup('<svg width="100%" height="{}" aria-hidden="true">{}{}</svg>').format(height, zero, drawn)


def _label(value: float) -> str:
    return minus(f"{value:g}")


def in_words(strip: Strip) -> str:
    """What the picture shows, for those who cannot see it."""
    rows = [f"{label}: {', '.join(_label(round(mark.value, 2)) for mark in marks)}" for label, marks in strip.rows]
    return f"{strip.axis}. {'; '.join(row for row in rows if not row.endswith(': '))}"


def strip_html(strip: Strip) -> Markup:
    """The strip: a line a row, and below them its axis; nothing where it has no marks."""
    if not any(marks for _, marks in strip.rows):
        return Markup()
    rows = [
        Markup('<span class="who">{}</span>{}').format(label, _row(strip, marks))
        for label, marks in strip.rows
        if marks
    ]
    ticks = Markup().join(
        Markup('<text x="{}%" y="11">{}</text>').format(position(strip, tick), _label(tick))
        for tick in _axis_ticks(strip)
    )
    axis = Markup('<span></span><svg width="100%" height="14" aria-hidden="true">{}</svg>').format(ticks)
    name = Markup('<span></span><span class="axis">{}</span>').format(strip.axis)
    return Markup('<div class="strip" role="img" aria-label="{}">{}{}{}</div>').format(
        in_words(strip), Markup().join(rows), axis, name
    )
