"""Files that carry whose they are and a SHA-256: whatever is changed in one is noticed when it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipeline.errors import UserError
from pipeline.records.sealed import (
    Damaged,
    load_tensors,
    peek,
    read_sealed_json,
    save_tensors,
    write_sealed_json,
)
from tests.test_files import damaged

CONTENT = {"step": 7, "seconds": 0.1, "diverged_at": None, "stretches": [{"from": 0, "to": 7}]}


def saved(folder: Path) -> Path:
    tensors = {"flat": torch.arange(12.0), "history": torch.ones(2, 3, dtype=torch.float64)}
    save_tensors(folder / "x.safetensors", tensors, "own", CONTENT)
    return folder / "x.safetensors"


def test_tensors_and_content_come_back(tmp_path: Path) -> None:
    tensors, content = load_tensors(saved(tmp_path), "own")
    assert content == CONTENT == peek(tmp_path / "x.safetensors")
    assert torch.equal(tensors["flat"], torch.arange(12.0))
    assert tensors["history"].dtype == torch.float64


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError):
            load_tensors(path, "own")
    path.write_bytes(content)
    load_tensors(path, "own")


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, 300, -1])
def test_a_truncated_file_is_damaged(cut: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Damaged, match=r"x\.safetensors: damaged"):
        load_tensors(path)


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_tensors_are_one_line(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(damaged(path.read_bytes())[kind])
    # Whose they are stands at the file's beginning, so that `peek` may not see what is wrong at its end.
    for read in (load_tensors,) if kind in ("half", "all but the end") else (load_tensors, peek):
        with pytest.raises(Damaged) as caught:
            read(path)
        assert str(caught.value) == f"{path}: damaged, or not a file of this project's"


def test_tensors_without_metadata_are_not_the_projects(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"x": torch.zeros(3)}))
    for read in (load_tensors, peek):
        with pytest.raises(Damaged, match="not a file of this project's"):
            read(path)


def test_a_file_of_another_digest_a_folder_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="belongs to run own, not to another"):
        load_tensors(saved(tmp_path), "another")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Damaged, match="a folder, not a file"):
        load_tensors(tmp_path / "folder")
    with pytest.raises(UserError, match=r"none\.safetensors: missing"):
        load_tensors(tmp_path / "none.safetensors")


def test_what_the_system_refuses_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)

    def refused(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match="Too many open files") as caught:
        load_tensors(path)
    assert not isinstance(caught.value, Damaged)


def test_json_is_sealed_too(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_sealed_json(path, CONTENT)
    assert read_sealed_json(path) == CONTENT
    text = path.read_text()
    for changed in (text.replace("7", "8", 1), text.replace('"step"', '"stop"'), "null", "[]", "{}", text[:-5], ""):
        path.write_text(changed)
        with pytest.raises(Damaged, match=r"run\.json: damaged"):
            read_sealed_json(path)
    path.unlink()
    with pytest.raises(UserError, match=r"run\.json: missing"):
        read_sealed_json(path)


def test_another_sealed_file_in_its_place_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_sealed_json(path, CONTENT)
    assert read_sealed_json(path, {"step": int}) == CONTENT
    for shape in ({"digest": str}, {"step": str}):
        with pytest.raises(Damaged, match=r"run\.json: another file's content: it has no (digest|step)"):
            read_sealed_json(path, shape)


def test_tensors_of_a_type_that_is_never_written_are_damage(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors, content = load_tensors(path)
    metadata = {"content": json.dumps(content), "digest": "d", "sha256": "0"}
    path.write_bytes(save({name: tensor.bfloat16() for name, tensor in tensors.items()}, metadata))
    with pytest.raises(Damaged, match="not a file of this project"):
        load_tensors(path)
