"""DVC's record of locks after a kill."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from stages import unlock


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    unlock.RECORD.parent.mkdir(parents=True)
    return unlock.RECORD


@pytest.mark.parametrize("content", [b"", b'{"write": {', b"null", b"\xff"])
def test_a_half_written_record_goes(content: bytes, record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write_bytes(content)
    unlock.main()
    assert not record.exists()
    assert "removed" in capsys.readouterr().out


def test_a_sound_one_stays_as_one_that_is_being_written(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlock.main()
    record.write_text('{"write": {}, "read": {}}')
    unlock.main()
    assert record.exists()
    record.write_bytes(b"")
    with unlock.GUARD.open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        unlock.main()
    assert record.exists()
    assert capsys.readouterr().out == ""
