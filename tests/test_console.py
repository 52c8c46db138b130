"""Progress away from a terminal: a line now and then, with rate and time left; on a terminal a bar."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest

from pipeline.console import LINE_SECONDS, ProgressMeter, counted


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.console.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_has_label_counts_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("quick/x", 2_000, "run-step")
    clock.now += 20
    meter.advance(500)
    assert lines(capsys) == []
    clock.now += 20
    meter.advance(700)
    assert lines(capsys) == ["quick/x: 1,200 of 2,000 run-steps, 30/s, 0:27 left"]


def test_lines_are_far_apart(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 10_000, "step")
    for _ in range(100):
        clock.now += 1
        meter.advance(10)
    assert len(lines(capsys)) == int(100 / (LINE_SECONDS + 1))


def test_quick_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 10, "run")
    clock.now += LINE_SECONDS
    meter.skip(4)
    meter.advance(6)
    meter.close()
    assert lines(capsys) == []


def test_the_interval_is_the_modules(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.console.LINE_SECONDS", 2.0)
    meter = ProgressMeter("x", 30, "run")
    clock.now += 3
    meter.advance(3)
    assert lines(capsys) == ["x: 3 of 30 runs, 1/s, 0:27 left"]


def test_skipped_work_counts_as_done_but_not_as_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    meter = ProgressMeter("x", 1_000, "step")
    meter.skip(400)
    clock.now += 40
    meter.advance(80)
    assert lines(capsys) == ["x: 480 of 1,000 steps, 2/s, 4:20 left"]


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
    assert lines(capsys) == ["x: 40 of 3,763 steps, 1/s, 1:02:03 left"]


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
    meter = ProgressMeter("quick/x", 100, "run-step")
    meter.skip(40)
    meter.advance(60)
    meter.close()
    assert "quick/x: 100%" in screen.getvalue()
    assert "100/100" in screen.getvalue()


@pytest.mark.parametrize(("count", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1000, "1,000 runs")])
def test_counts_read_as_words(count: int, text: str) -> None:
    assert counted(count, "run") == text
