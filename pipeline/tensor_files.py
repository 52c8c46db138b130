"""Files of named tensors (safetensors): written whole, read with one line for whatever is wrong with one.

Bytes go through Python's own files: the library's reader and writer tell a full disk, a missing permission or too many
open files as damage, and leave files that their owner alone may read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import WRITE_AGAIN, content_of, write_bytes

HEADER_BYTES = 8
MOST_HEADER = 1_000_000


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Raises: UserError naming the file when it cannot be written."""
    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata))


def read_tensors(path: Path, remedy: str = WRITE_AGAIN) -> dict[str, Tensor]:
    """Every tensor by name, on the CPU.

    Raises: UserError naming the file, with the remedy, when it is missing, truncated, damaged or of another kind.
    """
    with content_of(path, "a file of tensors", remedy):
        try:
            return load(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; {remedy}") from error
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def read_metadata(path: Path, remedy: str = WRITE_AGAIN) -> dict[str, str]:
    """The texts beside the tensors; reads the file's first bytes alone.

    Raises: UserError as `read_tensors`, also where the file has none.
    """
    with content_of(path, "a file of tensors with metadata", remedy):
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(HEADER_BYTES), "little")
                if size > MOST_HEADER:
                    raise ValueError(f"its header would take {size:,} bytes")
                header = json.loads(stream.read(size))
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing; {remedy}") from error
        return dict(header["__metadata__"])
