from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from pipeline.data.formats import read_binarized_text, read_idx, read_mat
from pipeline.errors import UserError

IDX = struct.pack(">HBBII", 0, 8, 2, 3, 4) + bytes(range(12))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_idx_is_read_in_the_shape_of_its_header(tmp_path: Path) -> None:
    array = read_idx(write(tmp_path / "f", IDX), (4,))
    assert array.dtype == np.uint8
    assert array.tolist() == np.arange(12).reshape(3, 4).tolist()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (IDX[:-1], "truncated: 23 bytes, but its header [3, 4] asks for 24"),
        (IDX + b"x", "too long"),
        (IDX[:9], "truncated inside its header"),
        (b"", "not an IDX file"),
        (b"\x1f\x8b" + IDX, "not an IDX file"),
        (b"\0\0\x0d\x02" + IDX[4:], "type 0x0d"),
        (struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),
        (struct.pack(">HBBI", 0, 8, 1, 12) + bytes(12), "holds an array [12] instead of one of [4] for each image"),
        (struct.pack(">HBBII", 0, 8, 2, 4, 3) + bytes(12), "holds an array [4, 3] instead of one of [4]"),
        (b"\0\0\x08\0x", "holds an array []"),
    ],
)
def test_corrupt_idx_is_one_sentence(content: bytes, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "images", content)
    with pytest.raises(UserError) as caught:
        read_idx(path, (4,))
    assert str(path) in str(caught.value)
    assert what in str(caught.value)
    assert "delete it and run `dvc repro`" in str(caught.value)


@pytest.mark.parametrize(
    "read", [lambda path: read_idx(path, (4,)), read_binarized_text, lambda path: read_mat(path, ["X"])]
)
def test_a_missing_file_is_one_sentence(read, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: missing"):
        read(tmp_path / "absent")


def test_mat_gives_the_named_variables(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "f.mat", {"X": np.eye(3), "Y": np.ones(2)}, do_compression=True)
    assert read_mat(tmp_path / "f.mat", ["X"])["X"].tolist() == np.eye(3).tolist()
    with pytest.raises(UserError, match="lacks the variable Z"):
        read_mat(tmp_path / "f.mat", ["X", "Z"])


@pytest.mark.parametrize("damage", ["empty", "noise", "truncated", "altered", "MATLAB 7.3"])
def test_corrupt_mat_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "f.mat"
    scipy.io.savemat(path, {"X": np.random.default_rng(0).random((50, 50))}, do_compression=True)
    good = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "noise": bytes(range(256)) * 4,
            "truncated": good[: len(good) // 2],
            "altered": good[:400] + bytes(100) + good[500:],
            "MATLAB 7.3": good[:124] + b"\0\x02IM" + good[128:],
        }[damage]
    )
    with pytest.raises(UserError, match=r"f\.mat: .*delete it and run"):
        read_mat(path, ["X"])


@pytest.mark.parametrize(
    "value",
    [
        scipy.sparse.eye_array(3).tocsc(),
        np.array([[1, "a"]], dtype=object),
        {"field": 1.0},
        "text",
        np.ones((2, 2, 2)),
        np.array([[np.nan]]),
        np.array([[1 + 2j]]),
    ],
    ids=["sparse", "cells", "struct", "text", "rank", "nan", "complex"],
)
def test_a_variable_that_is_no_matrix_of_numbers(value: object, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "f.mat", {"X": value})
    with pytest.raises(UserError, match=r"f\.mat: its variable X .*delete it and run") as caught:
        read_mat(tmp_path / "f.mat", ["X"])
    assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match=r"f: cannot be read \(Is a directory\); a folder is where a file belongs"):
        read_idx(tmp_path / "f", ())


def text(bits: np.ndarray) -> bytes:
    return "".join(" ".join(map(str, row)) + "\n" for row in bits.tolist()).encode()


def test_binarized_text(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 784), dtype=np.uint8)
    loaded = read_binarized_text(write(tmp_path / "f", text(bits)))
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, bits)


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-3], lambda t: t.replace(b"1", b"2", 1), lambda t: t.replace(b" ", b"\n", 1), lambda t: b""]
)
def test_corrupt_text_is_one_sentence(damage, tmp_path: Path) -> None:
    bits = np.ones((2, 784), np.uint8)
    with pytest.raises(UserError, match="delete it and run"):
        read_binarized_text(write(tmp_path / "f", damage(text(bits))))
