"""Progress away from a terminal: a line now and then, with rate and time left; on a terminal a bar."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest

from pipeline.work.console import FIRST_LINE_SECONDS, LINE_SECONDS, ProgressMeter, Whole, about, counted


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.work.console.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_has_label_counts_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("quick/x", 2_000, "update")
    clock.now += FIRST_LINE_SECONDS - 1
    meter.advance(500)
    assert lines(capsys) == []
    clock.now = 1040
    meter.advance(700)
    assert lines(capsys) == ["quick/x: 1,200 of 2,000 updates, 30/s; 0:27 left"]


def test_the_first_line_comes_soon_and_the_others_are_far_apart(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = ProgressMeter("x", 10_000, "update")
    for _ in range(100):
        clock.now += 1
        meter.advance(10)
    assert len(lines(capsys)) == 1 + int((100 - FIRST_LINE_SECONDS) / (LINE_SECONDS + 1))


def test_quick_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 10, "run")
    clock.now += FIRST_LINE_SECONDS
    meter.skip(4)
    meter.advance(6)
    meter.close()
    assert lines(capsys) == []


def test_time_left_counts_effort_where_updates_differ(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten updates of one sample took 10 s; ten of nine samples are left."""
    meter = ProgressMeter("x", 20, "update", effort=100.0)
    clock.now += 10
    meter.advance(10, effort=10.0)
    assert lines(capsys) == ["x: 10 of 20 updates, 1/s; 1:30 left"]


def test_the_note_and_the_whole_are_said_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Whole("quick", runs=90, done=30, effort_after=1_000)
    meter = ProgressMeter("quick/x", 200, "update", whole=whole)
    clock.now += 50
    meter.finish_run()
    meter.note("iwae-M1-K50-s0: bound -98.3")
    meter.advance(100)
    assert lines(capsys) == [
        "quick/x: 100 of 200 updates, 2/s; 0:50 left; iwae-M1-K50-s0: bound -98.3; "
        "quick: 31 of 90 runs, about 9 min of training left"
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "less than a minute"),
        (60, "about 1 min"),
        (89 * 60, "about 89 min"),
        (9_000, "about 2.5 h"),
        (3 * 86_400, "about 3 days"),
    ],
)
def test_estimates_are_no_more_exact_than_they_are(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_skipped_work_counts_as_done_but_not_as_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 1_000, "step")
    meter.skip(400)
    clock.now += 40
    meter.advance(80)
    assert lines(capsys) == ["x: 480 of 1,000 steps, 2/s; 4:20 left"]


def test_a_slow_start_is_no_reason_for_a_line_after_the_first_update(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose rate would be that of an instant: thousands a second, and nothing left to wait for."""
    meter = ProgressMeter("x", 2_000, "update")
    clock.now += FIRST_LINE_SECONDS + 60
    meter.skip(0)
    clock.now += 0.0001
    meter.advance(1)
    assert lines(capsys) == []
    clock.now += 5
    meter.advance(49)
    assert lines(capsys) == ["x: 50 of 2,000 updates, 10/s; 3:15 left"]


def test_skipping_alone_prints_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 1_000, "step")
    clock.now += 40
    meter.skip(400)
    meter.advance(0)
    assert lines(capsys) == []


def test_hours(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 3_723 + 40, "step")
    clock.now += 40
    meter.advance(40)
    assert lines(capsys) == ["x: 40 of 3,763 steps, 1/s; 1:02:03 left"]


def test_slow_work_has_a_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("quick/x evaluation", 5, "run")
    clock.now += 100
    meter.advance(1)
    (line,) = lines(capsys)
    assert "6:40 left" in line
    assert not re.search(r"\b0/s", line)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    meter = ProgressMeter("quick/x", 100, "update", whole=Whole("quick", 90, 30, 0.0))
    assert "starting" in screen.getvalue()
    meter.skip(40)
    meter.note("bound -98.3")
    meter.advance(60)
    meter.close()
    seen = screen.getvalue()
    assert "quick/x: 100%" in seen
    assert "100/100 updates" in seen
    assert "0:00 left; bound -98.3; quick: 30/90 runs" in seen
    assert "?" not in seen


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1000, "1,000 runs")])
def test_counts_read_as_words(count: int, text: str) -> None:
    assert counted(count, "run") == text


def test_starting_processes_is_no_work(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten seconds pass before the work says its first word; then it makes 100 updates a second."""
    meter = ProgressMeter("x", 2_000, "update")
    clock.now += 10
    meter.skip(0)
    clock.now += 1
    meter.advance(100)
    assert lines(capsys) == ["x: 100 of 2,000 updates, 100/s; 0:19 left"]
