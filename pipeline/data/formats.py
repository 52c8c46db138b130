"""The file formats of the raw data: IDX (MNIST), MATLAB v5, and lines of 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from pipeline.data.catalogue import PIXELS
from pipeline.errors import UserError
from pipeline.files import disk_error

UNSIGNED_BYTE = 8


def read_idx(path: Path, item: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an uncompressed IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist), [n, *item].

    Raises: UserError naming the file and what is wrong with it.
    """
    raw = _read(path)
    if len(raw) < 4 or raw[0] or raw[1]:
        raise corrupt(path, f"not an IDX file: it starts with {raw[:4].tobytes().hex()!r}, not with two zero bytes")
    kind, rank = int(raw[2]), int(raw[3])
    if kind != UNSIGNED_BYTE:
        raise corrupt(path, f"IDX type {kind:#04x} instead of 0x08 (unsigned byte)")
    header = 4 + 4 * rank
    if len(raw) < header:
        raise corrupt(path, f"truncated inside its header ({len(raw)} of {header} bytes)")
    shape = tuple(int(n) for n in raw[4:header].view(">u4"))
    expected = header + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        what = "truncated" if len(raw) < expected else "too long"
        raise corrupt(path, f"{what}: {len(raw)} bytes, but its header {list(shape)} asks for {expected}")
    if len(shape) != 1 + len(item) or shape[1:] != item:
        raise corrupt(path, f"holds an array {list(shape)} instead of one of {list(item)} for each image")
    return raw[header:].reshape(shape)


def read_mat(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named matrices of numbers of a MATLAB v5 file, in the type and orientation they are stored in.

    Raises: UserError naming the file when it is missing, corrupt, or lacks a key.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        matrices = scipy.io.loadmat(path, variable_names=list(keys))
    except Exception as error:  # scipy lets through whatever the damaged bytes provoke
        raise corrupt(path, f"not a readable MATLAB v5 file: {error}") from error
    if absent := [key for key in keys if key not in matrices]:
        raise corrupt(path, f"lacks the variable {', '.join(absent)}")
    for key in keys:
        value = matrices[key]
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "biuf":
            raise corrupt(path, f"its variable {key} is no matrix of numbers but {type(value).__name__}")
        if not np.isfinite(value).all():
            raise corrupt(path, f"its variable {key} holds values that are no numbers")
    return {key: matrices[key] for key in keys}


def read_binarized_text(path: Path) -> NDArray[np.uint8]:
    """Read lines of 784 digits 0 or 1 with one blank between (Larochelle's `.amat`) as uint8 [lines, 784].

    Raises: UserError naming the file and what is wrong with it.
    """
    raw = _read(path)
    if len(raw) == 0 or len(raw) % (2 * PIXELS):
        raise corrupt(path, f"{len(raw)} bytes are not whole lines of {PIXELS} digits")
    pairs = raw.reshape(-1, PIXELS, 2)
    digits = pairs[..., 0] - np.uint8(ord("0"))
    blanks, ends = pairs[:, :-1, 1], pairs[:, -1, 1]
    if digits.max() > 1 or (blanks != ord(" ")).any() or (ends != ord("\n")).any():
        raise corrupt(path, f"holds something other than lines of {PIXELS} digits 0 or 1")
    return digits


def corrupt(path: Path, what: str) -> UserError:
    """The error for a raw file whose bytes are wrong."""
    return UserError(f"{path}: {what}; delete it and run `dvc repro`")


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: missing; run `dvc repro`")


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise disk_error(path, "read", error) from error
