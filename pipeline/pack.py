"""Carrying runs between machines in one tar file: finished runs, their evaluations, and checkpoints of unfinished ones.

    manifest.json                     specs, data digests, and the SHA-256 of every file
    <run digest>/run/...              a finished run
    <run digest>/checkpoint.safetensors, stage-<i>.safetensors
    <run digest>/evaluation-<digest>.json, .npz
    pace/...                          speeds measured on the machine

Nothing is taken from a file before it was verified, and nothing that the store already has is replaced by less.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.cohorts import binarized
from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.files import atomic_path
from pipeline.provenance import code_revision
from pipeline.spec import CohortSpec, RunSpec, digest
from pipeline.store import cohort_lock, stored_jobs
from pipeline.training.state import CHECKPOINT, RUN_JSON, Job, checkpoint_step, read_run

MANIFEST, PACE = "manifest.json", "pace"
BUSY_SECONDS = 2.0
TRIES, TRY_SECONDS = 100, 0.05


def pack(target: Path, chosen: Sequence[CohortSpec], cohorts: Mapping[str, CohortSpec], store: Path) -> str:
    """Write what the store holds of the chosen cohorts into `target`; returns a sentence that says what it was.

    Raises: UserError when there is nothing, or another process still works on one of the cohorts.
    """
    with ExitStack() as locks:
        jobs: dict[str, dict[str, Any]] = {}
        for cohort in chosen:
            if not binarized(cohort.dataset).exists():
                continue
            own = carried_jobs(cohort, cohorts, store)
            if own:
                locks.enter_context(cohort_lock(store, cohort.key, BUSY_SECONDS))
            jobs |= own
        if not jobs:
            raise UserError(f"{store}: holds no run or checkpoint of the chosen cohorts; nothing to pack")
        with atomic_path(target) as temporary, temporary.open("wb") as stream:
            write_archive(stream, jobs, store)
    finished = sum((store / own / "run" / RUN_JSON).exists() for own in jobs)
    return (
        f"{target}: {finished} finished runs, {len(jobs) - finished} checkpoints, {target.stat().st_size / 1e6:.1f} MB"
    )


def carried_jobs(cohort: CohortSpec, cohorts: Mapping[str, CohortSpec], store: Path) -> dict[str, dict[str, Any]]:
    """By digest, what the manifest says of each run of a cohort that the store holds a state of."""
    data_digest = load_dataset(binarized(cohort.dataset)).digest
    return {
        job.digest: {
            "cell": f"{cohort.key}/{job.spec.name}",
            "spec": job.spec.to_json(),
            "data": data_digest,
            "continues": None if job.continues is None else job.continues.parent.name,
        }
        for job in stored_jobs(cohort, cohorts, data_digest, store)
        if _files(job)
    }


def write_archive(stream: IO[bytes], jobs: Mapping[str, dict[str, Any]], store: Path) -> None:
    """Write the files of these jobs (of `carried_jobs`) and all speeds of the store, as `unpack` takes them."""
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=stream, mode="w") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        contents = [run_files(store / own).items() for own in jobs]
        contents.append({path: path.read_bytes() for path in sorted((store / PACE).glob("*.json"))}.items())
        for path, content in itertools.chain(*contents):
            name = path.relative_to(store).as_posix()
            sums[name] = hashlib.sha256(content).hexdigest()
            add(name, content)
        manifest = {"revision": code_revision(), "jobs": jobs, "files": sums}
        add(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def run_files(folder: Path) -> dict[Path, bytes]:
    """A run's files as they are at one moment: read again where the run ended meanwhile.

    The checkpoint comes first: weights of stages are on disk before the checkpoint that lies behind them.
    """
    for _ in range(TRIES):
        ended = (folder / "run").exists()
        with suppress(FileNotFoundError):
            found = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if _carried(path)}
            if (folder / "run").exists() == ended:
                return found
        time.sleep(TRY_SECONDS)
    raise UserError(f"{folder}: changes faster than it can be read; run again")


def _files(job: Job) -> bool:
    return job.is_finished or (job.folder / CHECKPOINT).exists()


def _carried(path: Path) -> bool:
    """A file that belongs to the state, and no left-over of a process that was killed while it wrote."""
    return path.is_file() and ".part" not in path.name and "run.part" not in path.parts


def unpack(source: Path, store: Path) -> str:
    """Verify a file that `pack` wrote and put its runs into the store; returns a sentence that says what came.

    A finished run that is here already stays; of two checkpoints the one with more updates stays.

    Raises: UserError naming what is wrong with the file; the runs in the store are then as they were.
    """
    building = store / ".unpacking"
    shutil.rmtree(building, ignore_errors=True)
    try:
        jobs = _verified(source, building)
        counts = {"finished": 0, "begun": 0, "kept": 0}
        for own in jobs:
            counts[_register(building / own, store / own)] += 1
        for path in (building / PACE).glob("*.json"):
            (store / PACE).mkdir(exist_ok=True)
            path.replace(store / PACE / path.name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return (
        f"{source}: {counts['finished']} finished runs and {counts['begun']} checkpoints registered in {store},"
        f" {counts['kept']} were here already"
    )


def _verified(source: Path, building: Path) -> dict[str, Any]:
    """Write the file's content under `building` and return the manifest's jobs once all of it has proved right."""
    manifest: dict[str, Any] = {}
    found: dict[str, str] = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is None:
                    raise UserError(f"{source}: {member.name} is no file; the archive was not written by `pack`")
                content = stream.read()
                if member.name == MANIFEST:
                    manifest = json.loads(content)
                    continue
                parts = PurePosixPath(member.name).parts
                if len(parts) < 2 or ".." in parts or parts[0].startswith(("/", ".")):
                    raise UserError(f"{source}: {member.name} is no part of a run; it was not written by `pack`")
                found[member.name] = hashlib.sha256(content).hexdigest()
                with atomic_path(building / member.name) as temporary:
                    temporary.write_bytes(content)
        jobs, sums = dict(manifest["jobs"]), dict(manifest["files"])
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a file that `pack` wrote ({error}); bring it over again") from error
    if odd := sums.keys() ^ found.keys():
        raise UserError(f"{source}: {min(odd)} is in the file or in its manifest alone; bring it over again")
    if damaged := [name for name in found if found[name] != sums[name]]:
        raise UserError(f"{source}: {damaged[0]} is damaged (its SHA-256 is not the manifest's); bring it over again")
    if strange := [name for name in found if PurePosixPath(name).parts[0] not in (*jobs, PACE)]:
        raise UserError(f"{source}: {strange[0]} is no part of a run; it was not written by `pack`")
    for own, job in jobs.items():
        if digest(RunSpec.from_json(job["spec"]), job["data"], job["continues"]) != own:
            raise UserError(f"{source}: {job['cell']}: its spec does not give its digest {own}; it is not taken")
        if (building / own / "run" / RUN_JSON).exists():
            run = read_run(building / own / "run")
            told = digest(RunSpec.from_json(run["spec"]), run["training"]["data"]["digest"], job["continues"])
            if run["digest"] != own or told != own:
                raise UserError(f"{source}: {job['cell']}: its run.json is of another run; it is not taken")
    return jobs


def _register(arrived: Path, folder: Path) -> str:
    """Move one run's files into its folder; returns what became of them."""
    kind = "finished" if (arrived / "run" / RUN_JSON).exists() else "begun"
    there = (folder / "run" / RUN_JSON).exists()
    if kind == "begun" and (there or checkpoint_step(folder / CHECKPOINT) >= checkpoint_step(arrived / CHECKPOINT)):
        return "kept"
    folder.mkdir(parents=True, exist_ok=True)
    # The checkpoint comes last of the files of an unfinished run, the run directory last of a finished one's.
    for path in sorted(arrived.iterdir(), key=lambda path: (path.name == CHECKPOINT, path.name == "run")):
        if path.is_file():
            path.replace(folder / path.name)
        elif not there:
            path.rename(folder / path.name)
    if kind == "finished":
        for left in (folder / CHECKPOINT, *folder.glob("stage-*.safetensors")):
            left.unlink(missing_ok=True)
    return "kept" if there else kind
