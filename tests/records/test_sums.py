"""Sums of results: in a file beside them, or in a JSON object itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.records.sums import SHA256, SUMS, check_sums, read_sealed, sealed, write_sums

NAMES = ("a.json", "b.npz")
VALUE = {"nll": 84.78, "runs": [1, 2]}


def written(folder: Path) -> Path:
    for name in NAMES:
        (folder / name).write_text(f"content of {name}")
    write_sums(folder, NAMES)
    return folder


def test_what_was_written_agrees(tmp_path: Path) -> None:
    check_sums(written(tmp_path), NAMES, "bring it back")


def test_results_without_sums_are_taken_as_they_are(tmp_path: Path) -> None:
    (written(tmp_path) / SUMS).unlink()
    check_sums(tmp_path, NAMES, "bring it back")


@pytest.mark.parametrize("name", NAMES)
def test_the_file_that_is_another_is_named(name: str, tmp_path: Path) -> None:
    path = written(tmp_path) / name
    path.write_text("content of another")
    with pytest.raises(UserError, match=rf"{name}: damaged or edited: its SHA-256 .*; bring it back$"):
        check_sums(tmp_path, NAMES, "bring it back")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing; bring it back$"):
        check_sums(tmp_path, NAMES, "bring it back")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"a.json": 1}'])
def test_sums_that_are_none_are_named(text: str, tmp_path: Path) -> None:
    (written(tmp_path) / SUMS).write_text(text)
    with pytest.raises(UserError, match=r"(sums|a)\.json: .*; bring it back$"):
        check_sums(tmp_path, NAMES, "bring it back")


def test_a_sealed_object_comes_back_and_an_edited_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    write_json(path, sealed(VALUE))
    assert read_sealed(path, "bring it back") == VALUE
    write_json(path, read_json(path) | {"nll": 84.79})
    with pytest.raises(UserError, match=r"told\.json: damaged or edited: its SHA-256 .*; bring it back$"):
        read_sealed(path, "bring it back")


def test_an_object_of_before_there_were_sums_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    write_json(path, VALUE)
    assert read_sealed(path, "bring it back") == VALUE
    assert SHA256 in sealed(VALUE)
