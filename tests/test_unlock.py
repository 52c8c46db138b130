"""DVC's record of locks after a kill."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from pipeline.paths import Paths
from stages import unlock


@pytest.fixture(autouse=True)
def record(tmp_path: Path) -> Path:
    path = tmp_path / unlock.RECORD
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("content", [b"", b'{"write": {', b"null", b"\xff"])
def test_a_half_written_record_goes(
    content: bytes, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.write_bytes(content)
    unlock.main(Paths(tmp_path))
    assert not record.exists()
    assert "removed" in capsys.readouterr().out


def test_a_sound_one_stays_as_one_that_is_being_written(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlock.main(Paths(tmp_path))
    record.write_text('{"write": {}, "read": {}}')
    unlock.main(Paths(tmp_path))
    assert record.exists()
    record.write_bytes(b"")
    with (tmp_path / unlock.GUARD).open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        unlock.main(Paths(tmp_path))
    assert record.exists()
    assert capsys.readouterr().out == ""
