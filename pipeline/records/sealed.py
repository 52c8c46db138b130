"""Files that say whose they are and carry a SHA-256 of their content, which is verified whenever they are read.

Tensors travel as safetensors whose metadata holds `content` (JSON), `digest` (whose file it is) and `sha256`; JSON as
an object with a field `sha256`. A file that was damaged, or put in another's place, is `Damaged`: never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import disk_error, write_bytes, write_json
from pipeline.records.sums import SHA256, json_sha256, sealed


class Damaged(UserError):
    """A file is not what was written, or belongs to something else. `path` names it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@contextmanager
def reading(path: Path, listed: bool = False) -> Iterator[None]:
    """While the block reads a file that this project wrote: what the system says against it becomes one line.

    `listed`: another file promises this one, so that it is damage where it is missing.

    Raises: Damaged where it is no file; UserError when it is missing, and as `disk_error` when it cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise (Damaged(path, "missing") if listed else UserError(f"{path}: missing")) from error
    except IsADirectoryError as error:
        raise Damaged(path, "a folder, not a file") from error
    except OSError as error:
        raise disk_error(path, "read", error) from error


def _tensors_sha256(tensors: dict[str, Tensor], content: str, digest: str) -> str:
    hashed = hashlib.sha256(f"{digest}\0{content}\0".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hashed.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        hashed.update(tensor.view(-1).numpy().data)
    return hashed.hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], digest: str, content: Any = None) -> None:
    """Write tensors (any device) and `content`, which is JSON, as the file of `digest`.

    Raises: UserError naming the file when it cannot be written.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(content, sort_keys=True)
    metadata = {"content": text, "digest": digest, SHA256: _tensors_sha256(on_cpu, text, digest)}
    # Written here: safetensors' own writer hides the system's errors and makes files that others cannot read.
    write_bytes(path, _in_order(save(on_cpu, metadata)))


def _in_order(raw: bytes) -> bytes:
    """A safetensors file with its header sorted: safetensors writes metadata in another order at each call."""
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    # Tensors begin at a multiple of 8 bytes.
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def load_tensors(path: Path, digest: str | None = None) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the content of a file that `save_tensors` wrote. `digest`: whose it must be; None for anyone's.

    Raises: Damaged when it is not; UserError when it is missing or cannot be read.
    """
    try:
        with _opened(path) as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        text, owner, sha256 = metadata["content"], metadata["digest"], metadata[SHA256]
        computed = _tensors_sha256(tensors, text, owner)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged(path, "damaged, or not a file of this project's") from error
    if computed != sha256:
        raise Damaged(path, "damaged: its SHA-256 is not that of its content")
    if digest is not None and owner != digest:
        raise Damaged(path, f"belongs to run {owner}, not to {digest}")
    return tensors, json.loads(text)


def peek(path: Path) -> Any:
    """The content beside the tensors, not verified; reads a few bytes.

    Raises: Damaged when there is none; UserError when the file is missing or cannot be read.
    """
    try:
        with _opened(path) as stream:
            return json.loads(stream.metadata()["content"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(path, "damaged, or not a file of this project's") from error


def _opened(path: Path) -> Any:
    with reading(path):
        # Opened once as a file, since safetensors tells a missing permission no better than a damaged file.
        path.open("rb").close()
        return safe_open(path, framework="pt")


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object with its SHA-256 as one more field."""
    write_json(path, sealed(value))


def read_sealed_json(path: Path, shape: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, without its SHA-256. `shape`: fields that it must have, of such types.

    Raises: Damaged when it is another; UserError when it is missing or cannot be read.
    """
    try:
        with reading(path):
            value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, "damaged: not valid JSON") from error
    if not isinstance(value, dict) or value.get(SHA256) != json_sha256(value):
        raise Damaged(path, "damaged: its SHA-256 is not that of its content")
    if odd := [name for name, kind in (shape or {}).items() if not isinstance(value.get(name), kind)]:
        raise Damaged(path, f"another file's content: it has no {odd[0]}")
    return {key: part for key, part in value.items() if key != SHA256}
