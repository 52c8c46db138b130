"""Files of named numpy arrays (`.npz`): written whole, read with one line for whatever is wrong with one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.files import WRITE_AGAIN, content_of, write_bytes


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An `.npz` of named arrays, compressed and put into place whole."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())


def read_arrays(path: Path, remedy: str = WRITE_AGAIN) -> dict[str, NDArray[Any]]:
    """Every array of an `.npz` by name.

    Raises: UserError naming the file, with the remedy, when it is missing, truncated, damaged or of another kind.
    """
    what = "an archive of arrays"
    with content_of(path, what, remedy):
        try:
            content = io.BytesIO(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; {remedy}") from error
        try:
            with np.load(content, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # numpy and zipfile let through whatever the damaged bytes provoke
            raise ValueError("it does not begin as one" if "pickle" in str(error) else str(error)) from error
