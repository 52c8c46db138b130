"""Files that are either whole or absent, and what is said of one that cannot be written or read."""

from __future__ import annotations

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up: remove files of yours",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f unlimited`)",
    errno.EACCES: "give this user the permission (`ls -ld` shows whose it is)",
    errno.EPERM: "give this user the permission (`ls -ld` shows whose it is)",
    errno.EROFS: "the file system is mounted read-only: mount it for writing, or work in another folder",
    errno.ENOENT: "there is no such file here: bring it, or name another",
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
    errno.ENFILE: "end programs that hold many files open",
    errno.ENOMEM: "free some memory, or use fewer workers",
    errno.EISDIR: "a folder is where a file belongs: move it away",
    errno.ENOTEMPTY: "a folder is where a file belongs: move it away",
    errno.ENOTDIR: "a file is where a folder belongs: move it away",
    errno.EEXIST: "a file is where a folder belongs: move it away",
    errno.ENAMETOOLONG: "move the project to a folder with a shorter path",
    errno.ELOOP: "links lead in a circle: remove them",
    errno.EIO: "the disk failed: check it, and bring the file from a copy",
    errno.ESTALE: "the network's file system lost it: mount it again",
}
"""What helps, by what the system says."""
ASIDE = "aside"
"""The folder, beside where it lay, of what was found damaged."""
OWNED = re.compile(r"[.-](?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)\.")
"""How the names of temporary files and folders tell whose they are; see `owner`."""
DAY_SECONDS = 86_400.0
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
"""What content of another shape than expected provokes in the code that takes it apart."""
WRITE_AGAIN = "delete it and run the stage that writes it again"


def disk_error(path: Path | str, what: str, error: OSError) -> UserError:
    """The error for a file that cannot be `what` (written, read): the system's reason, and what helps against it."""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "see that the disk is there and works")
    return UserError(f"{path}: cannot be {what} ({reason}); {remedy}, then run again")


@contextmanager
def content_of(path: Path, what: str, remedy: str = WRITE_AGAIN) -> Iterator[None]:
    """While the block takes a file's content apart: what it trips over becomes one line that names the file.

    Raises: UserError saying that the file is not `what` and what to do; as `disk_error` when it cannot be read.
    """
    try:
        yield
    except IsADirectoryError as error:
        then = remedy.removeprefix("delete it, and ").removeprefix("delete it and ")
        told = REMEDIES[errno.EISDIR]
        raise UserError(f"{path}: cannot be read ({error.strerror}); {told}, then {then}") from error
    except OSError as error:
        raise disk_error(path, "read", error) from error
    except MALFORMED as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path}: not {what} ({reason or type(error).__name__}); {remedy}") from error


def owner() -> str:
    """Names this process, and the machine that it runs on, in the names of temporary files: `1a2b3c4d-4711`."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}-{os.getpid()}"


def abandoned(path: Path) -> bool:
    """Whether nobody writes a temporary file or folder any more: the process that its name tells (`owner`) is gone.

    Of a process on another machine one cannot know: what was not touched for a day is taken for left. False where the
    name tells no process.
    """
    named = OWNED.search(path.name)
    if named is None:
        return False
    if named["machine"] == owner().partition("-")[0]:
        # One that bears this process's number is of an earlier process: who asks is not writing it.
        return int(named["pid"]) == os.getpid() or not runs(int(named["pid"]))
    try:
        return time.time() - path.lstat().st_mtime > DAY_SECONDS
    except FileNotFoundError:
        return False


def sweep(folder: Path, prefix: str, suffix: str = "") -> list[Path]:
    """Remove the files and folders `<prefix><owner><suffix>` that processes of this machine left which are gone.

    Returns what was removed. `owner` may go on after a dot: `<owner>.<anything>`.
    """
    machine, process = owner().split("-")
    removed = []
    for path in folder.glob(f"{glob.escape(prefix)}{machine}-*{glob.escape(suffix)}"):
        number = path.name.removeprefix(f"{prefix}{machine}-").removesuffix(suffix).partition(".")[0]
        if number.isdecimal() and number != process and not runs(int(number)):
            remove(path)
            removed.append(path)
    return removed


def runs(pid: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; what is gone already, or cannot be removed, is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it onto `path`.

    On any exception nothing is left behind.

    Raises: UserError naming the file when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{owner()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{path.name}.", ".part")
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, "written", error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or whole, whatever interrupts it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with a stable key order, so that equal values give equal files."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=True) + "\n")


def read_json(path: Path, remedy: str = WRITE_AGAIN) -> Any:
    """Raises: UserError naming the file, with the remedy, when it is missing, cannot be read or is not JSON."""
    try:
        with content_of(path, "valid JSON", remedy):
            return json.loads(path.read_bytes().decode("utf-8"))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            told = "the stage that writes it has not run yet (dvc repro)" if remedy == WRITE_AGAIN else remedy
            raise UserError(f"{path}: missing; {told}") from error
        raise


def read_object(path: Path, remedy: str = WRITE_AGAIN) -> dict[str, Any]:
    """The mapping that a JSON file holds. Raises: UserError as `read_json`, and where it holds anything else."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {type(value).__name__} instead of a mapping; {remedy}")
    return value


def cache_folder() -> Path:
    """Where what is compiled for this user is kept: in the user's cache, or where there is none among temporary files.

    Raises: OSError when neither can be had.
    """
    # Without HOME the home folder of a user whom the system does not know stays "~"; an empty HOME would be "/".
    home = "" if os.environ.get("HOME") == "" else os.path.expanduser("~")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "good-elbo"
    if folder.is_absolute():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    folder = Path(tempfile.gettempdir()) / f"good-elbo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    # Programs are loaded from it: nobody else may have made it or write into it.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write into it", str(folder))
    return folder


def sha256_file(path: Path) -> str:
    """64 hexadecimal digits, of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def set_aside(path: Path, reason: str) -> None:
    """Move a damaged file or folder out of the way, into `aside/` beside it, saying so in a line on stderr.

    What another process moved meanwhile is moved.

    Raises: UserError when it cannot be moved.
    """
    folder = path.parent / ASIDE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = (folder / f"{path.name}.{number}" for number in itertools.count(1))
        target = next(name for name in names if not name.exists())
        path.rename(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error(path, "moved out of the way", error) from error
    print(f"warning: {reason}; set aside as {target}, and computed again", file=sys.stderr, flush=True)
