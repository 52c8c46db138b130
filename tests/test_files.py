"""Files are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline.errors import UserError
from pipeline.files import atomic_path, read_json, sha256_file, write_json, write_text


def test_written_file_is_there_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "Gauß\n")
    assert path.read_bytes() == "Gauß\n".encode()
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, error: BaseException) -> NoReturn:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UserError("x")], ids=repr)
def test_an_exception_leaves_nothing_new(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for earlier in (None, "earlier"):
        if earlier is not None:
            path.write_text(earlier)
        with pytest.raises(type(error)):
            write_half(path, error)
        assert [file.read_text() for file in tmp_path.iterdir()] == ([] if earlier is None else [earlier])


def test_full_disk_names_the_file_and_keeps_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("earlier")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        write_text(path, "later")
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); free some space, then run again"
    )
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(UserError, match=r"file\.txt: cannot be written \(No space left on device\)"):
        write_half(path, OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("earlier")
    at_sync: list[tuple[str, int]] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: at_sync.append((path.read_text(), os.fstat(descriptor).st_size))
    )
    write_text(path, "later and longer")
    assert at_sync == [("earlier", 16)]
    assert path.read_text() == "later and longer"


def test_a_folder_that_cannot_be_made_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"occupied/file\.txt: cannot be written"):
        write_text(tmp_path / "occupied" / "file.txt", "x")


def test_target_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.txt" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"file\.txt: cannot be written"):
        write_text(tmp_path / "file.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_json_round_trip_in_a_stable_order(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"z": "é", "y": math.inf}}
    write_json(tmp_path / "one.json", value)
    write_json(tmp_path / "two.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "one.json") == value
    text = (tmp_path / "one.json").read_text()
    assert text == (tmp_path / "two.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_reading_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: missing; the stage that writes it has not run yet (dvc repro)"


@pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe\x00"], ids=["empty", "half", "binary"])
def test_reading_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: not valid JSON \(.*\); delete it and run the stage"):
        read_json(path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
