"""Carrying runs between machines: everything arrives, and nothing damaged, foreign or older is taken."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.spec import CohortSpec
from pipeline.files import owner
from pipeline.launch.archive import MANIFEST, pack, unpack
from pipeline.paths import HERE
from pipeline.records.run_folder import CHECKPOINT, Job, checkpoint_step
from pipeline.records.store import cohort_lock, stored_jobs
from pipeline.records.sums import json_sha256
from pipeline.training.train import run_lock, train
from pipeline.work.interruption import Interrupted
from tests.conftest import PATIENCE_SECONDS, ROOT, make_images, make_run, write_dataset

STORE, OTHER = Path(".store"), Path("other-store")
DONE, BEGUN = "first-mnist-1L-T5", "second-mnist-1L-T1"
COHORTS = {
    cohort.key: cohort
    for cohort in (
        CohortSpec("tiny", "first", DONE, (make_run(),)),
        CohortSpec("tiny", "second", BEGUN, (make_run("vae", 1, 1, max_steps=60),)),
    )
}
CHOSEN = tuple(COHORTS.values())


def jobs(store: Path = STORE) -> list[Job]:
    digest = load_dataset(HERE.binarized("mnist")).digest
    return [job for cohort in CHOSEN for job in stored_jobs(cohort, COHORTS, digest, store, "cpu")]


def advance(job: Job, checks: int | None) -> None:
    """Train a job to its end, or until it was asked so often whether to stop."""
    data = load_dataset(HERE.binarized("mnist"))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return checks is not None and asked > checks

    try:
        train([job], torch.from_numpy(data.train_images), {"data": data.info}, lambda _: None, stop, 1e9)
    except Interrupted:
        assert checks is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished run, an evaluation, a checkpoint, and what killed processes leave."""
    folder = tmp_path_factory.mktemp("made")
    write_dataset(folder / "data/binarized/mnist", make_images())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done, begun = jobs()
        advance(done, None)
        advance(begun, 12)
        (done.folder / "evaluation-0123.json").write_text("{}")
        (begun.folder / f".{CHECKPOINT}.99.part").write_text("half")
        (begun.folder / "waypoint-00000040.part").mkdir()
        (begun.folder / "waypoint-00000040.part/history.csv").write_text("half")
        (STORE / "pace").mkdir()
        (STORE / "pace/x.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def packed(name: str = "runs.tar") -> Path:
    assert pack(Path(name), CHOSEN, COHORTS, STORE, HERE).startswith(f"{name}: 1 finished runs, 1 begun ones, ")
    return Path(name)


def test_everything_arrives_but_locks_and_leftovers() -> None:
    said = unpack(packed(), OTHER)
    assert said == "runs.tar: 1 finished runs and 1 begun ones registered in other-store, 0 were here already"
    expected = {name: data for name, data in content(STORE).items() if "part" not in name and "locks" not in name}
    assert {name: data for name, data in content(OTHER).items() if "locks" not in name} == expected
    done, begun = jobs(OTHER)
    assert done.is_finished
    assert 0 < checkpoint_step(begun.folder / CHECKPOINT) < 60
    # It goes on from there.
    advance(begun, None)
    assert begun.is_finished


def test_chosen_cohorts_alone() -> None:
    pack(Path("runs.tar"), CHOSEN[1:], COHORTS, STORE, HERE)
    unpack(Path("runs.tar"), OTHER)
    done, begun = jobs(OTHER)
    assert not done.folder.exists()
    assert (begun.folder / CHECKPOINT).exists()


def test_more_is_never_replaced_by_less() -> None:
    source = packed()
    _, begun = jobs()
    advance(begun, 3)
    ahead = checkpoint_step(begun.folder / CHECKPOINT)
    before = {name: data for name, data in content(STORE).items() if "locks" not in name}
    assert unpack(source, STORE).endswith("0 finished runs and 0 begun ones registered in .store, 2 were here already")
    assert {name: data for name, data in content(STORE).items() if "locks" not in name} == before
    later = packed("later.tar")
    unpack(source, OTHER)
    assert checkpoint_step(jobs(OTHER)[1].folder / CHECKPOINT) < ahead
    assert "0 finished runs and 1 begun ones" in unpack(later, OTHER)
    assert checkpoint_step(jobs(OTHER)[1].folder / CHECKPOINT) == ahead
    # A finished run takes the place of a checkpoint, and no checkpoint that of a finished run.
    advance(begun, None)
    pack(Path("all.tar"), CHOSEN, COHORTS, STORE, HERE)
    assert "1 finished runs and 0 begun ones" in unpack(Path("all.tar"), OTHER)
    assert jobs(OTHER)[1].is_finished
    assert not (jobs(OTHER)[1].folder / CHECKPOINT).exists()
    assert "2 were here already" in unpack(later, OTHER)


def rewritten(source: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with tarfile.open(source) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    change(files)
    with tarfile.open(source, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return source


def _with_manifest(files: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    files[MANIFEST] = json.dumps(manifest).encode()


def _flip(files: dict[str, bytes]) -> None:
    name = next(name for name in files if name.endswith("weights.safetensors"))
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])


def _lose(files: dict[str, bytes]) -> None:
    del files[next(name for name in files if name.endswith(CHECKPOINT))]


def _escape(files: dict[str, bytes]) -> None:
    files["../outside"] = b"x"
    _with_manifest(files, lambda m: m["files"].update({"../outside": hashlib.sha256(b"x").hexdigest()}))


def _other_spec(files: dict[str, bytes]) -> None:
    _with_manifest(files, lambda m: next(iter(m["jobs"].values()))["spec"].update(seed=9))


def _other_run(files: dict[str, bytes]) -> None:
    """The folder of one run with the content of another, sums and all."""
    name = next(name for name in files if name.endswith("waypoint-00000020/run.json"))
    run = json.loads(files[name])
    run["spec"]["seed"] = 9
    run["sha256"] = json_sha256(run)
    files[name] = json.dumps(run).encode()
    _with_manifest(files, lambda m: m["files"].update({name: hashlib.sha256(files[name]).hexdigest()}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, "/waypoint-00000010/weights.safetensors is damaged (its SHA-256 is not the manifest's)"),
        (_lose, "is in the file or in its manifest alone"),
        (_escape, "../outside is no part of a run"),
        (_other_spec, "its spec does not give its digest"),
        (_other_run, "its run.json is of another run"),
        (lambda files: files.pop(MANIFEST), "not a file that `pack` wrote"),
    ],
)
def test_what_is_not_right_is_not_taken(change: Callable[[dict[str, bytes]], None], message: str) -> None:
    source = rewritten(packed(), change)
    with pytest.raises(UserError) as caught:
        unpack(source, OTHER)
    assert message in str(caught.value)
    assert not list(OTHER.rglob("*"))
    assert not Path("outside").exists()


def test_a_cut_file_is_not_taken() -> None:
    source = packed()
    source.write_bytes(source.read_bytes()[:-200_000])
    with pytest.raises(UserError, match=r"runs\.tar: "):
        unpack(source, OTHER)
    assert not list(OTHER.rglob("*"))


def test_a_cohort_in_work_is_not_packed() -> None:
    with cohort_lock(STORE, CHOSEN[1].key), pytest.raises(UserError, match="is working on it"):
        pack(Path("runs.tar"), CHOSEN, COHORTS, STORE, HERE)
    assert not Path("runs.tar").exists()


def test_nothing_to_pack() -> None:
    with pytest.raises(UserError, match="holds no run or checkpoint of the chosen cohorts"):
        pack(Path("runs.tar"), CHOSEN, COHORTS, OTHER, HERE)
    other = replace(CHOSEN[0], runs=(make_run(dataset="omniglot"),))
    with pytest.raises(UserError, match="nothing to pack"):
        pack(Path("runs.tar"), (other,), {other.key: other}, STORE, HERE)


def test_a_state_that_was_damaged_before_it_was_packed_is_named_and_the_rest_is_taken() -> None:
    """Its run starts from what is sound; the other runs of the file arrive."""
    name = f"{jobs()[1].digest}/{CHECKPOINT}"

    def cut(files: dict[str, bytes]) -> None:
        files[name] = files[name][:-50]
        _with_manifest(files, lambda m: m["files"].update({name: hashlib.sha256(files[name]).hexdigest()}))

    source = rewritten(packed(), cut)
    said, warning = unpack(source, OTHER).splitlines()
    assert "1 finished runs" in said
    assert f"not taken: tiny/{BEGUN}/vae-M1-K1-s0: {CHECKPOINT}: " in warning
    done, other = jobs(OTHER)
    assert done.is_finished
    assert not (other.folder / CHECKPOINT).exists()


def test_a_run_without_weights_is_not_taken() -> None:
    done, _ = jobs()

    def without(files: dict[str, bytes]) -> None:
        folder = f"{done.digest}/{done.finished.name}"
        run = json.loads(files[f"{folder}/run.json"])
        del run["files"]["weights.safetensors"], files[f"{folder}/weights.safetensors"]
        run["sha256"] = json_sha256(run)
        files[f"{folder}/run.json"] = json.dumps(run).encode()

        def agree(manifest: dict[str, Any]) -> None:
            del manifest["files"][f"{folder}/weights.safetensors"]
            manifest["files"][f"{folder}/run.json"] = hashlib.sha256(files[f"{folder}/run.json"]).hexdigest()

        _with_manifest(files, agree)

    said = unpack(rewritten(packed(), without), OTHER)
    assert "0 finished runs" in said
    assert "run.json: does not list weights.safetensors" in said
    assert not jobs(OTHER)[0].is_finished


@pytest.mark.parametrize("kind", ["sparse", "compressed"])
def test_a_small_file_that_stands_for_a_large_one_is_not_taken(kind: str) -> None:
    """A member that claims 20 GB in a few bytes, and an archive that unpacks to more than it is."""
    source = Path("bomb.tar")
    if kind == "compressed":
        with tarfile.open(source, "w:gz") as archive:
            member = tarfile.TarInfo("0123456789abcdef/checkpoint.safetensors")
            member.size = 50_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    else:
        header = tarfile.TarInfo("0123456789abcdef/checkpoint.safetensors")
        header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(20 * 10**9)}
        content = b"1\n0\n0\n".ljust(512, b"\0")
        header.size = len(content)
        with tarfile.open(source, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(header, io.BytesIO(content))
    with pytest.raises(UserError, match=r"bomb\.tar: "):
        unpack(source, OTHER)
    assert not list(OTHER.rglob("*"))


def _header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def _pax(**records: str) -> bytes:
    """A header of a member's further properties, and the member: a file of one block."""
    header = tarfile.TarInfo("0123456789abcdef/checkpoint.safetensors")
    header.size, header.pax_headers = 512, {name.replace("_", "."): value for name, value in records.items()}
    return header.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (_header("manifest.json", 20 * 10**9, tarfile.REGTYPE), r"manifest\.json has 20,000,000,000 bytes"),
        (_header("x", 20 * 10**9, tarfile.XHDTYPE), ": x is no plain file"),
        (_header("x", 20 * 10**9, tarfile.GNUTYPE_LONGNAME), ": x is no plain file"),
        (_header("x", 0, tarfile.GNUTYPE_SPARSE), ": x is no plain file"),
        (_pax(GNU_sparse_major="1", GNU_sparse_minor="0") + b"9" * 9, "is no plain file"),
        (_pax(size="0"), "is no plain file"),
    ],
)
def test_no_header_takes_more_memory_than_it_may(start: bytes, message: str, tmp_path: Path) -> None:
    """The archive's own file has holes, so that it takes no room; what it claims to hold was read into memory."""
    source = tmp_path / "bomb.tar"
    source.write_bytes(start)
    os.truncate(source, 20 * 10**9)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from pathlib import Path; from pipeline.errors import UserError; from pipeline.launch.archive import unpack\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(source), str(OTHER)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert re.search(f"^{source}.*{message}", done.stdout), (done.stdout, done.stderr)
    assert not list(OTHER.rglob("*"))


@pytest.mark.parametrize(
    "names",
    [
        ("0123456789abcdef/x", "0123456789abcdef/x/y"),
        ("0123456789abcdef/x/y", "0123456789abcdef/x"),
        ("0123456789abcdef/x", "0123456789abcdef/x"),
        ("0123456789abcdef/" + "x" * 300,),
        ("0123456789abcdef/x\ny",),
        ("./0123456789abcdef/x",),
    ],
)
def test_names_that_pack_never_gives_are_named(names: tuple[str, ...]) -> None:
    with tarfile.open("names.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    message = r"^names\.tar: .* is no part of a run; it was not written by `pack`$"
    with pytest.raises(UserError, match=message) as caught:
        unpack(Path("names.tar"), OTHER)
    assert "\n" not in str(caught.value)
    assert not list(OTHER.rglob("*"))


def test_a_long_name_of_a_machine_arrives() -> None:
    name = "pace/" + "a-machine-" * 15 + ".json"
    (STORE / name).write_text("{}")
    unpack(packed(), OTHER)
    assert (OTHER / name).exists()


def test_two_may_unpack_into_one_store_at_once(tmp_path: Path) -> None:
    """Neither removes what the other is unpacking; a run arrives once."""
    source = packed()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                unpack(source, OTHER)
        except BaseException as error:
            errors.append(error)

    processes = [multiprocessing.get_context("fork").Process(target=_unpack_often, args=(source,)) for _ in range(3)]
    for process in processes:
        process.start()
    work()
    for process in processes:
        process.join()
    assert errors == []
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert jobs(OTHER)[0].is_finished
    assert not list(OTHER.glob(".unpacking*"))


def _unpack_often(source: Path) -> None:
    for _ in range(3):
        unpack(source, OTHER)


def test_what_a_killed_unpacker_left_is_removed() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = OTHER / f".unpacking-{owner().partition('-')[0]}-{dead.pid}.x"
    left.mkdir(parents=True)
    unpack(packed(), OTHER)
    assert not left.exists()


def test_a_run_that_is_trained_here_is_not_changed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELBO_LOCK_SECONDS", "0.1")
    source = packed()
    done, _ = jobs(OTHER)
    with run_lock(done, 0.0), pytest.raises(UserError, match="is working on it"):
        unpack(source, OTHER)
    assert not done.folder.exists()
