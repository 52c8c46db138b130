"""Files are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from pipeline.array_files import read_arrays, write_arrays
from pipeline.errors import UserError
from pipeline.files import (
    atomic_path,
    cache_folder,
    owner,
    read_json,
    read_object,
    set_aside,
    sha256_file,
    write_json,
    write_text,
)
from pipeline.records.sealed import load_tensors, save_tensors


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


def test_the_users_cache_is_taken_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache/good-elbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/good-elbo"


@pytest.mark.parametrize("home", [None, "", "/proc/no-such-home"])
def test_without_a_home_folder_there_is_a_private_one(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose user has no HOME, a name or a folder that can be written."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    folder = cache_folder()
    assert folder == tmp_path / f"good-elbo-{os.getuid()}"
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    folder.chmod(0o777)
    with pytest.raises(OSError, match="others may write into it"):
        cache_folder()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "remove files of yours"),
        (errno.EACCES, "give this user the permission"),
        (errno.EROFS, "mounted read-only"),
        (errno.EMFILE, "raise the limit of open files"),
        (errno.EISDIR, "a folder is where a file belongs"),
        (errno.EIO, "the disk failed"),
        (errno.EBADMSG, "see that the disk is there"),
    ],
)
def test_each_of_the_systems_reasons_has_its_own_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is called damaged, or advised to be deleted, because the system could not open it."""
    path = tmp_path / "file.json"
    path.write_text("{}")

    def fails(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_bytes", fails)
    monkeypatch.setattr(Path, "write_bytes", fails)
    monkeypatch.setattr(Path, "open", fails)
    uses = [(read_json, "read"), (read_arrays, "read"), (written, "written")]
    if number != errno.EISDIR:  # A folder in the place of a state is damage, which is set aside (test_sealed.py).
        uses.append((load_tensors, "read"))
    for use, what in uses:
        with pytest.raises(UserError) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path}: cannot be {what} ({os.strerror(number)}); ")
        assert remedy in str(caught.value)
        assert "delete" not in str(caught.value)


def written(path: Path) -> None:
    save_tensors(path, {"x": torch.zeros(3)}, "digest")


ARRAYS = {"a": np.arange(1000), "b/c": np.ones((3, 4), np.float32)}


def damaged(content: bytes) -> dict[str, bytes]:
    half = len(content) // 2
    return {
        "empty": b"",
        "one byte": b"\x00",
        "half": content[:half],
        "all but the end": content[:-100],
        "text": b"not at all",
        "null": b"null",
        "zeros": bytes(len(content)),
    }


def test_arrays_come_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    arrays = read_arrays(tmp_path / "a.npz")
    assert arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_arrays_are_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(UserError) as caught:
        read_arrays(path, "evaluate it again")
    assert str(caught.value).startswith(f"{path}: not a")
    assert str(caught.value).endswith("; evaluate it again")
    assert "\n" not in str(caught.value)


def test_one_flipped_byte_of_arrays_is_noticed(tmp_path: Path) -> None:
    """Zip files carry a checksum of each member."""
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            arrays = read_arrays(path)
        except UserError:
            continue
        for name, array in arrays.items():
            assert name not in ARRAYS or np.array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("content", ["null", "[]", "3", '"x"'])
def test_an_object_is_expected(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json: holds \w+ instead of a mapping; delete it and run the stage"):
        read_object(tmp_path / "x.json")


def test_written_files_have_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    """A store that a group shares: with umask 002 its members may read and write every file."""
    before = os.umask(0o002)
    try:
        save_tensors(tmp_path / "folder/t.safetensors", {"a": torch.zeros(3)}, "digest")
        write_arrays(tmp_path / "folder/a.npz", ARRAYS)
        write_json(tmp_path / "folder/x.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()} == {0o664}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o775


def test_what_killed_writers_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = owner().partition("-")[0]
    left, others = (
        f".x.json.{machine}-{dead.pid}.part",
        [f".x.json.{machine}-1.part", f".x.json.00000000-{dead.pid}.part"],
    )
    for name in (left, *others):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "x.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "x.json"])


def test_setting_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, content in enumerate(("first", "second"), start=1):
        (tmp_path / "x").write_text(content)
        set_aside(tmp_path / "x", f"{tmp_path / 'x'}: half of it is missing")
        told = capsys.readouterr().err
        target = tmp_path / f"aside/x.{number}"
        expected = f"warning: {tmp_path / 'x'}: half of it is missing; set aside as {target}, and computed again\n"
        assert told == expected
        assert target.read_text() == content
    (tmp_path / "x/inside").mkdir(parents=True)
    set_aside(tmp_path / "x", "a folder")
    assert (tmp_path / "aside/x.3/inside").is_dir()
    set_aside(tmp_path / "x", "moved by another process")
    assert [path.name for path in tmp_path.iterdir()] == ["aside"]
