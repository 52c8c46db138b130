"""Processes that work through a list: what is done, what is reported, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.work import interruption
from pipeline.work.interruption import stop_requested
from pipeline.work.workers import ItemTask, Stopped, run_parallel
from tests.conftest import PATIENCE_SECONDS, wait_for

Send = Callable[[Any], None]


def square(item: int, send: Send) -> None:
    send(item * item)


def twice(item: int, send: Send) -> None:
    send((item, "first"))
    send((item, "second"))


def fail_at_three(item: int, send: Send) -> None:
    if item == 3:
        raise UserError("three cannot be done; take four")
    send(item)


def fail_always(item: int, send: Send) -> None:
    raise UserError(f"{item} cannot be done")


def divide(item: int, send: Send) -> None:
    send(12 // item)


def die_at_three(item: int, send: Send) -> None:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    send(item)


def thread_count(item: int, send: Send) -> None:
    send(torch.get_num_threads())


def process_id(item: int, send: Send) -> None:
    send(os.getpid())


def end_when_asked(item: int, send: Send) -> None:
    send("at work")
    wait_for(stop_requested)
    raise RuntimeError("how a task ends early is its own affair")


def was_asked_to_stop(item: int, send: Send) -> None:
    send(stop_requested())


def collect(task: ItemTask[int], items: Sequence[int], workers: int, **options: Any) -> list[tuple[int, Any]]:
    seen: list[tuple[int, Any]] = []
    run_parallel(task, items, workers, lambda index, message: seen.append((index, message)), **options)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_every_item_is_done_and_its_messages_carry_its_index(workers: int) -> None:
    assert sorted(collect(square, [5, 6, 7], workers)) == [(0, 25), (1, 36), (2, 49)]


def test_one_worker_keeps_the_order() -> None:
    assert collect(twice, [8, 7], 1) == [(0, (8, "first")), (0, (8, "second")), (1, (7, "first")), (1, (7, "second"))]


def test_messages_of_an_item_arrive_in_order() -> None:
    seen = collect(twice, list(range(6)), 2)
    for index in range(6):
        assert [message for item, message in seen if item == index] == [(index, "first"), (index, "second")]


def test_no_items() -> None:
    calls: list[str] = []
    assert collect(square, [], 2, started=lambda: calls.append("started")) == []
    assert calls == ["started"]


def test_work_is_spread() -> None:
    assert len({pid for _, pid in collect(process_id, [1, 2, 3, 4], 2)} - {os.getpid()}) == 2
    assert len({pid for _, pid in collect(process_id, [1, 2], 9)} - {os.getpid()}) == 2


def test_threads_of_a_worker() -> None:
    assert sorted(collect(thread_count, [1, 2], 2)) == [(0, 1), (1, 1)]
    assert collect(thread_count, [1], 1, threads=2) == [(0, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_item_spares_the_others(workers: int) -> None:
    seen: list[int] = []
    with pytest.raises(UserError) as caught:
        run_parallel(fail_at_three, [1, 2, 3, 4, 5], workers, lambda _, message: seen.append(message))
    assert sorted(seen) == [1, 2, 4, 5]
    assert str(caught.value) == "3: three cannot be done; take four"


def test_every_failure_is_told() -> None:
    with pytest.raises(UserError) as caught:
        collect(fail_always, [1, 2, 3], 2)
    assert sorted(str(caught.value).splitlines()) == [f"{i}: {i} cannot be done" for i in (1, 2, 3)]


def test_an_unexpected_exception_arrives_with_its_traceback() -> None:
    seen: list[int] = []
    with pytest.raises(UserError, match="ZeroDivisionError") as caught:
        run_parallel(divide, [0, 3], 1, lambda _, message: seen.append(message))
    assert seen == [4]
    # Where it happened, not only what.
    assert f"{Path(__file__).name}" in str(caught.value)
    assert "in divide" in str(caught.value)


def test_a_killed_worker_is_reported_and_the_others_go_on() -> None:
    seen: list[int] = []
    with pytest.raises(UserError, match=r"exit code -9 \(killed, or out of memory\); run the same command again"):
        run_parallel(die_at_three, [3, 1, 2, 4], 2, lambda _, message: seen.append(message))
    assert sorted(seen) == [1, 2, 4]


@pytest.mark.parametrize("task", [square, end_when_asked])
def test_an_error_of_who_hears_the_messages_ends_the_workers(task: ItemTask[int]) -> None:
    """Idle or busy: they would wait for their next item for ever, and this process for them."""

    def fail(_: int, message: object) -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        run_parallel(task, [1, 2, 3], 2, fail)
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert left == []


def test_when_all_workers_are_killed_the_call_ends() -> None:
    with pytest.raises(UserError, match="exit code -9"):
        collect(die_at_three, [3, 1, 2], 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, so that the worker has the patched function")
def test_a_worker_killed_before_its_first_item_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.work.workers.keep_freed_memory", lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="exit code -9"):
        collect(square, [1], 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_between_items_stops_the_rest(number: signal.Signals) -> None:
    """Once asked to stop, no further item is begun."""
    seen: list[int] = []

    def stop_after_first(_: int, message: int) -> None:
        seen.append(message)
        signal.raise_signal(number)

    with pytest.raises(Stopped):
        run_parallel(square, list(range(50)), 1, stop_after_first)
    assert len(seen) < 50


def test_a_signal_while_the_workers_are_busy_stops_them() -> None:
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    seen: list[tuple[int, str]] = []

    def on_message(index: int, message: str) -> None:
        seen.append((index, message))
        if len(seen) == 2:
            timer.start()

    with pytest.raises(Stopped):
        run_parallel(end_when_asked, [1, 2, 3], 2, on_message)
    timer.join()
    assert sorted(seen) == [(0, "at work"), (1, "at work")]


def test_a_closed_terminal_stops_the_work_unless_it_is_to_be_ignored() -> None:
    for handler, stops in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):  # The second as under nohup.
        interruption.clear()
        signal.signal(signal.SIGHUP, handler)
        interruption.listen()
        signal.raise_signal(signal.SIGHUP)
        assert interruption.stop_requested() is stops


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, so that the worker has the patched function")
def test_a_signal_while_a_worker_starts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = interruption.listen

    def late(parent: int | None = None) -> None:
        if parent is not None:
            time.sleep(1.5)
        listen(parent)

    monkeypatch.setattr(interruption, "listen", late)
    seen: list[bool] = []
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        run_parallel(was_asked_to_stop, [1], 1, lambda _, asked: seen.append(asked), started=timer.start)
    timer.join()
    assert seen == [True]


SCRIPT = """
import os, sys, time
import torch  # As the stages do; else each worker imports it on its own.
from pathlib import Path
from pipeline.work.interruption import stop_requested
from pipeline.work.workers import Stopped, run_parallel

folder = Path(sys.argv[1])

def task(item, send):
    send(item)
    while not stop_requested():
        time.sleep(0.01)
    time.sleep(0.2)
    (folder / f"saved-{item}").write_text(str(os.getpid()))
    raise RuntimeError("interrupted")

seen = []
def on_message(index, message):
    seen.append(message)
    if len(seen) == 2:
        (folder / "ready").touch()

if __name__ == "__main__":
    try:
        run_parallel(task, ["a", "b", "c"], 2, on_message)
    except Stopped:
        print("stopped", sorted(path.name for path in folder.glob("saved-*")))
"""


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaps has ended, too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.usefixtures("in_a_terminal")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name
)
def test_signal_to_the_parent_ends_the_workers_with_their_state_saved(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for((tmp_path / "ready").exists)
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    if number is not signal.SIGKILL:
        assert output == "stopped ['saved-a', 'saved-b']\n"
        assert errors == ""
    saved = [tmp_path / name for name in ("saved-a", "saved-b")]
    wait_for(lambda: all(path.exists() and path.read_text() for path in saved))
    wait_for(lambda: not any(running(int(path.read_text())) for path in saved))
    assert not (tmp_path / "saved-c").exists()
