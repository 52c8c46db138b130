"""The SHA-256 of a folder's files in one beside them, so that a damaged number is never taken for another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import content_of, read_object, sha256_file, write_json

SUMS = "sums.json"


def write_sums(folder: Path, names: Sequence[str]) -> None:
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
                found = sha256_file(path)
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise UserError(f"{path}: missing; {remedy}") from error
            raise
        if found != told.get(name):
            raise UserError(f"{path}: damaged or edited: its SHA-256 is not the one in {SUMS}; {remedy}")
