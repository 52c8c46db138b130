"""Carrying runs between machines in one tar file: their waypoints, evaluations, and checkpoints on the way.

    manifest.json                     specs, data digests, and the SHA-256 of every file
    <run digest>/waypoint-<updates>/...
    <run digest>/checkpoint.safetensors
    <run digest>/evaluation-<digest>.json, .npz
    pace/...                          speeds measured on the machine

A light one has only run.json and the curve of waypoints that a deeper state follows and that need no evaluation any
more: all that a run needs to go on, in an eighth of the room.

Nothing is taken from a file before it was verified, and nothing that the store already has is replaced by less.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cohort import evaluation_at, waypoint_run
from pipeline.experiments.spec import CohortSpec, EvaluationSpec, RunSpec, digest
from pipeline.files import ASIDE, MALFORMED, atomic_path, content_of, disk_error, owner, remove, set_aside, sweep
from pipeline.paths import Paths
from pipeline.records.provenance import code_revision
from pipeline.records.run_folder import (
    CHECKPOINT,
    OPTIMIZER,
    PART,
    WAYPOINT,
    WEIGHTS,
    Job,
    checkpoint_step,
    is_thinned,
    is_whole,
    load_checkpoint,
    read_run,
    stored_waypoints,
    verify_waypoint,
    waypoint_name,
)
from pipeline.records.store import BUSY_SECONDS, Marks, cohort_lock, depths, lock_seconds, stored_jobs
from pipeline.work.locks import locked

MANIFEST, PACE, UNPACKING = "manifest.json", "pace", ".unpacking"
MEMBER = re.compile(r"([0-9a-f]{16}|pace)(/\w[\w.-]{0,199}){1,2}", re.ASCII)
"""Names in an archive: of a run's files, and of those in its waypoints; of speeds."""
MOST_MANIFEST, MOST_HEADER = 1 << 26, 1 << 12
"""Bytes. The manifest of a thousand runs has some millions; a header that holds a long name, some hundreds."""
LONG_NAME = re.compile(rb"[0-9]+ path=[^\n]*\n")
TRIES, TRY_SECONDS = 100, 0.05


def pack(
    target: Path,
    chosen: Sequence[CohortSpec],
    cohorts: Mapping[str, CohortSpec],
    store: Path,
    paths: Paths,
    light: Mapping[str, EvaluationSpec] | None = None,
) -> str:
    """Write what the store holds of the chosen cohorts into `target`; returns a sentence that says what it was.

    `light`: by cohort, how its runs are evaluated; states of waypoints that were evaluated so, and that a deeper state
    follows, are then left out.

    Raises: UserError when there is nothing, or another process still works on one of the cohorts.
    """
    marks = depths(cohorts)
    with ExitStack() as locks:
        jobs: dict[str, dict[str, Any]] = {}
        passed: set[Path] = set()
        ends: set[Path] = set()
        for cohort in chosen:
            if not paths.binarized(cohort.dataset).exists():
                continue
            carried = carried_jobs(cohort, cohorts, store, marks, paths)
            if carried:
                locks.enter_context(cohort_lock(store, cohort.key, BUSY_SECONDS))
            jobs |= carried
            if light is not None:
                behind, last = passed_states(cohort, cohorts, light[cohort.key], store, marks, paths)
                passed |= behind
                ends |= last
        if not jobs:
            raise UserError(f"{store}: holds no run or checkpoint of the chosen cohorts; nothing to pack")
        with atomic_path(target) as temporary, temporary.open("wb") as stream:
            without = {folder / name for folder in passed - ends for name in (WEIGHTS, OPTIMIZER)}
            write_archive(stream, jobs, store, code_revision(paths.root), without)
    finished = sum(_is_finished(store / run_digest, job) for run_digest, job in jobs.items())
    return (
        f"{target}: {finished} finished runs, {len(jobs) - finished} begun ones, {target.stat().st_size / 1e6:.1f} MB"
    )


def passed_states(
    cohort: CohortSpec,
    cohorts: Mapping[str, CohortSpec],
    spec: EvaluationSpec,
    store: Path,
    marks: Marks,
    paths: Paths,
) -> tuple[set[Path], set[Path]]:
    """The waypoints of a cohort's runs whose states nothing of it needs any more, since a deeper state follows and what
    `spec` wants measured was measured; and those at the runs' depths."""
    data_digest = load_dataset(paths.binarized(cohort.dataset)).digest
    jobs = stored_jobs(cohort, cohorts, data_digest, store, "cpu", marks)

    def is_measured(job: Job, run: RunSpec, steps: int) -> bool:
        asked = evaluation_at(spec, run, steps)
        waypoint = waypoint_run(job, run, steps, store, asked)
        return asked is None or (waypoint is not None and waypoint.is_evaluated)

    passed = {
        job.waypoint(steps)
        for job, run in zip(jobs, cohort.runs, strict=True)
        for steps in job.waypoints
        if steps < job.steps_done and is_measured(job, run, steps)
    }
    return passed, {job.finished for job in jobs}


def _is_finished(folder: Path, job: Mapping[str, Any]) -> bool:
    """Whether a run of a manifest is as deep in this folder as its cohort takes it."""
    return is_whole(folder / waypoint_name(RunSpec.from_json(job["spec"]).total_steps))


def carried_jobs(
    cohort: CohortSpec, cohorts: Mapping[str, CohortSpec], store: Path, marks: Marks, paths: Paths
) -> dict[str, dict[str, Any]]:
    """By digest, what the manifest says of each run of a cohort that the store holds a state of.

    `marks`: of `depths(cohorts)`.
    """
    data_digest = load_dataset(paths.binarized(cohort.dataset)).digest
    # What a GPU trained as well as what a CPU did.
    devices = ("cuda", "cpu")
    jobs = [job for device in devices for job in stored_jobs(cohort, cohorts, data_digest, store, device, marks)]
    return {
        job.digest: {
            "cell": f"{cohort.key}/{job.spec.name}",
            "spec": job.spec.to_json(),
            "data": data_digest,
            "origin": job.origin,
        }
        for job in jobs
        if job.steps_done
    }


def write_archive(
    stream: IO[bytes],
    jobs: Mapping[str, dict[str, Any]],
    store: Path,
    revision: str | None,
    without: Set[Path] = frozenset(),
) -> None:
    """Write the files of these jobs (of `carried_jobs`) and all speeds of the store, as `unpack` takes them.

    `revision`: of the code that made them, None where it is not known. `without`: waypoints or single files of theirs
    to be left out, since whoever unpacks it has them or does not need them.
    """
    sums: dict[str, str] = {}
    with tarfile.open(fileobj=stream, mode="w") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        contents = [
            {path: text for path, text in run_files(store / run).items() if not {path, path.parent} & without}.items()
            for run in jobs
        ]
        contents.append({path: path.read_bytes() for path in sorted((store / PACE).glob("*.json"))}.items())
        for path, content in itertools.chain(*contents):
            name = path.relative_to(store).as_posix()
            sums[name] = hashlib.sha256(content).hexdigest()
            add(name, content)
        manifest = {"revision": revision, "jobs": jobs, "files": sums}
        add(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def run_files(folder: Path) -> dict[Path, bytes]:
    """A run's files as they are at one moment: read again where it came to a waypoint meanwhile."""
    for _ in range(TRIES):
        before = stored_waypoints(folder)
        with suppress(FileNotFoundError):
            files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if _carried(path, folder)}
            if stored_waypoints(folder) == before:
                return files
        time.sleep(TRY_SECONDS)
    raise UserError(f"{folder}: changes faster than it can be read; run again")


def _carried(path: Path, folder: Path) -> bool:
    """A file that belongs to the state: no left-over of a process that was killed while it wrote, nothing set aside."""
    parts = path.relative_to(folder).parts
    return path.is_file() and ASIDE not in parts and not any(PART in part for part in parts)


def unpack(source: Path, store: Path) -> str:
    """Verify a file that `pack` wrote and put its runs into the store; returns a sentence that says what came.

    A waypoint that is here already stays; of two checkpoints the one with more updates stays.

    Raises: UserError naming what is wrong with the file; the runs in the store are then as they were.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        sweep(store, f"{UNPACKING}-")
        # Named after its owner: others may unpack into the same store at the same time.
        building = Path(tempfile.mkdtemp(prefix=f"{UNPACKING}-{owner()}.", dir=store))
    except OSError as error:
        raise disk_error(store, "written", error) from error
    try:
        jobs, refused = _verified(source, building)
        counts = {"finished": 0, "begun": 0, "kept": 0}
        for run_digest, job in jobs.items():
            # A run that is trained here now, or that another archive brings, is not changed under its owner's hands.
            with locked(store / "locks" / f"{run_digest}.lock", job["cell"], lock_seconds()):
                counts[_register(building / run_digest, store / run_digest, job)] += 1
        for path in (building / PACE).glob("*.json"):
            (store / PACE).mkdir(exist_ok=True)
            path.replace(store / PACE / path.name)
    finally:
        remove(building)
    said = (
        f"{source}: {counts['finished']} finished runs and {counts['begun']} begun ones registered in {store},"
        f" {counts['kept']} were here already"
    )
    return "\n".join([said, *(f"warning: not taken: {line}" for line in refused)])


def _verified(source: Path, building: Path) -> tuple[dict[str, Any], list[str]]:
    """Write the file's content under `building` and return the manifest's jobs once all of it has proved right.

    States that were damaged before they were packed are removed there; a line for each is returned.
    """
    manifest: dict[str, Any] = {}
    written: dict[str, str] = {}
    folders: set[str] = set()
    try:
        _check_headers(source)
        # Not compressed, not sparse: what is written is no more than what was read.
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is None:
                    raise UserError(f"{source}: {_shown(member.name)} is no plain file; it was not written by `pack`")
                if member.name == MANIFEST:
                    if member.size > MOST_MANIFEST:
                        raise UserError(f"{source}: {MANIFEST} has {member.size:,} bytes; it was not written by `pack`")
                    manifest = json.loads(stream.read())
                    continue
                above = {str(path) for path in PurePosixPath(member.name).parents}
                # One path cannot be a file and a folder.
                collides = member.name in written or member.name in folders or not written.keys().isdisjoint(above)
                if collides or not MEMBER.fullmatch(member.name):
                    raise UserError(
                        f"{source}: {_shown(member.name)} is no part of a run; it was not written by `pack`"
                    )
                folders |= above
                written[member.name] = _written(stream, building / member.name)
        jobs, sums = dict(manifest["jobs"]), dict(manifest["files"])
    except OSError as error:
        raise disk_error(source, "read", error) from error
    except (tarfile.TarError, *MALFORMED) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{source}: not a file that `pack` wrote ({told}); bring it over again") from error
    if odd := sums.keys() ^ written.keys():
        raise UserError(f"{source}: {min(odd)} is in the file or in its manifest alone; bring it over again")
    if damaged := [name for name in written if written[name] != sums[name]]:
        raise UserError(f"{source}: {damaged[0]} is damaged (its SHA-256 is not the manifest's); bring it over again")
    if strange := [name for name in written if PurePosixPath(name).parts[0] not in (*jobs, PACE)]:
        raise UserError(f"{source}: {strange[0]} is no part of a run; it was not written by `pack`")
    refused: list[str] = []
    for run_digest, job in jobs.items():
        with content_of(source, "a file that `pack` wrote", "bring it over again"):
            told = digest(RunSpec.from_json(job["spec"]), job["data"], job["origin"])
            cell = str(job["cell"])
        if told != run_digest:
            raise UserError(f"{source}: {cell}: its spec does not give its digest {run_digest}; it is not taken")
        refused += [f"{cell}: {what}" for what in _without_damaged_states(building / run_digest, run_digest)]
        for steps in stored_waypoints(building / run_digest):
            run = read_run(building / run_digest / waypoint_name(steps))
            if (
                digest(RunSpec.from_json(run["spec"]), job["data"], job["origin"]) != run_digest
                or run["steps"] != steps
            ):
                raise UserError(f"{source}: {cell}: its run.json is of another run; it is not taken")
    return jobs, refused


def _check_headers(source: Path) -> None:
    """Look at all headers of an archive before tarfile does, which takes one of any size into memory.

    Raises: UserError where a member is no plain file; TarError where the file is no archive.
    """
    with source.open("rb") as stream:
        while any(block := stream.read(tarfile.BLOCKSIZE)):
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            padding = -member.size % tarfile.BLOCKSIZE
            if member.type == tarfile.XHDTYPE and 0 <= member.size <= MOST_HEADER:
                # All that `pack` says of a file in this way is a long name.
                plain = LONG_NAME.fullmatch(stream.read(member.size)) is not None
                stream.seek(padding, os.SEEK_CUR)
            else:
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.size >= 0
                stream.seek(member.size + padding if plain else 0, os.SEEK_CUR)
            if not plain:
                raise UserError(f"{source}: {_shown(member.name)} is no plain file; it was not written by `pack`")


def _shown(name: str) -> str:
    """A member's name as a message has it, whatever letters it has."""
    return ascii(name)[1:-1]


def _written(stream: IO[bytes], path: Path) -> str:
    """Write a stream into a file and return the SHA-256 of what came."""
    sha256 = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as out:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            out.write(chunk)
    return sha256.hexdigest()


def _without_damaged_states(folder: Path, run_digest: str) -> list[str]:
    """Remove the waypoints and checkpoints that are not what was written for this run; returns a line for each."""
    told = []
    paths = [folder / waypoint_name(steps) for steps in stored_waypoints(folder)]
    for path in (*paths, *folder.glob("checkpoint*.safetensors")):
        try:
            if path in paths:
                if not is_thinned(path, run_digest):
                    verify_waypoint(path, run_digest)
            else:
                load_checkpoint(path, run_digest)
        except UserError as error:
            told.append(str(error).removeprefix(f"{folder}/"))
            remove(path)
    return told


def _is_state(path: Path) -> bool:
    return path.name.startswith((WAYPOINT, "checkpoint")) and not is_thinned(path)


def _register(arrived: Path, folder: Path, job: Mapping[str, Any]) -> str:
    """Move one run's files into its folder; returns what became of them."""
    if not arrived.exists():
        return "kept"
    # Evaluations of waypoints that came before may come alone; without any state a run is none.
    if not stored_waypoints(folder) and not any(_is_state(path) for path in arrived.iterdir()):
        return "kept"
    was_finished = _is_finished(folder, job)
    folder.mkdir(parents=True, exist_ok=True)
    new = False
    for steps in reversed(stored_waypoints(arrived)):
        source, target = arrived / waypoint_name(steps), folder / waypoint_name(steps)
        if is_whole(target) or (is_thinned(target) and is_thinned(source)):
            continue
        if is_thinned(target):
            remove(target)
        elif target.exists():
            set_aside(target, f"{target}: not whole")
        source.rename(target)
        new = True
    deepest = max(stored_waypoints(folder), default=0)
    for path in (path for path in arrived.iterdir() if path.is_file()):
        if not path.name.startswith("checkpoint"):
            path.replace(folder / path.name)
        elif checkpoint_step(path) > max(deepest, checkpoint_step(folder / path.name)):
            path.replace(folder / path.name)
            new = True
    if checkpoint_step(folder / CHECKPOINT) <= deepest:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    if not new:
        return "kept"
    return "finished" if _is_finished(folder, job) and not was_finished else "begun"
