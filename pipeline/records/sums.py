"""SHA-256 of results, so that a damaged number is never taken for another one.

Those of a folder's files stand in one beside them; that of a JSON object that is not always the same, in itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import content_of, read_object, sha256_file, write_json

SUMS = "sums.json"
SHA256 = "sha256"
"""The field of a sealed object that holds the sum of the others."""


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Write the SHA-256 of files of a folder beside them, for `check_sums`."""
    write_json(folder / SUMS, {name: sha256_file(folder / name) for name in names})


def check_sums(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Raises: UserError naming the file that is missing, cannot be read, or is not what was written, with the remedy.

    Results of a revision that wrote no sums are taken as they are.
    """
    if not (folder / SUMS).exists():
        return
    told = read_object(folder / SUMS, remedy)
    for name in names:
        path = folder / name
        try:
            with content_of(path, "a file that was written here", remedy):
                sha256 = sha256_file(path)
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise UserError(f"{path}: missing; {remedy}") from error
            raise
        if sha256 != told.get(name):
            raise UserError(f"{path}: damaged or edited: its SHA-256 is not the one in {SUMS}; {remedy}")


def json_sha256(value: dict[str, Any]) -> str:
    """The sum of an object's fields but `SHA256`."""
    rest = {key: part for key, part in value.items() if key != SHA256}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its sum as one more field."""
    return value | {SHA256: json_sha256(value)}


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds, without its sum.

    One of a revision that wrote no sum is taken as it is.

    Raises: UserError naming the file, with the remedy, when it is missing, cannot be read, or is not what was written.
    """
    value = read_object(path, remedy)
    if SHA256 in value and value[SHA256] != json_sha256(value):
        raise UserError(f"{path}: damaged or edited: its SHA-256 is not that of its content; {remedy}")
    return {key: part for key, part in value.items() if key != SHA256}
