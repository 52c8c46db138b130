"""Step time and memory of a cohort, measured by training a few steps of it: alone, and with copies beside it.

What is measured is kept as `pipeline.launch.plan` keeps speeds, under the machine and the shape of the stacks:

    train <shape>            updates a second of all runs together, as the launcher remembers it
    memory <shape>           bytes that one process takes at most
    together <n> <shape>     how many times longer a step takes with n copies at once
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import model_log_weights
from pipeline.experiments.spec import CohortSpec
from pipeline.launch.plan import CORE, likelihood_shape, remember, remembered, run_shape, shape_of
from pipeline.models.networks import Parameters
from pipeline.paths import Paths
from pipeline.records.run_folder import Job
from pipeline.training.cohort import device_images, stacks
from pipeline.training.engines import stack_for
from pipeline.training.train import initial_state
from pipeline.work.machine import Machine
from pipeline.work.workers import run_parallel, start_method

MEASURED_SECONDS = 3.0
KIND_SECONDS = 1.0
BARRIER_SECONDS = 900.0
"""How long a copy waits for the others, which may still compile."""


@dataclass(frozen=True)
class CohortTiming:
    """What one cohort takes on one machine."""

    seconds: float
    """What training all of it takes, from its start."""
    peak_bytes: int
    """What the largest of its processes takes."""


@dataclass(frozen=True)
class Speeds:
    """What `measure` found of a cohort's shape."""

    shape: str
    rate: float
    """Updates a second of all runs together."""
    peak_bytes: int
    together: dict[int, float]
    """By number of copies: how many times longer a step takes than alone."""


def _advance(jobs: list[Job], send: Callable[[Any], None], *, data: Path, machine: Machine, barrier: Any) -> None:
    """Train a stack for some seconds, all copies at once; sends (seconds a step, bytes)."""
    try:
        images = device_images(data, machine.device)
        states = [initial_state(job, images) for job in jobs]
        stack = stack_for([job.spec for job in jobs], states, images, machine.engine)
        count = stack.steps_between_checks
        stack.advance(max(2, count))
    except BaseException:
        barrier.abort()
        raise
    barrier.wait(BARRIER_SECONDS)
    # A GPU works behind the host; reading a value waits for it.
    float(stack.buffers.flat[0, 0])
    # A step on a CPU is one thread's work: its own time does not tell of others on the machine.
    now = time.monotonic if machine.device.type == "cuda" else time.process_time
    start, steps = now(), 0
    while now() - start < MEASURED_SECONDS:
        stack.advance(count)
        float(stack.buffers.flat[0, 0])
        steps += count
    seconds = (now() - start) / steps
    if machine.device.type == "cuda":
        # What the GPU has given away, the CUDA context of each copy included: its allocator alone would tell less.
        free, total = torch.cuda.mem_get_info(machine.device)
        used = (total - free) // barrier.parties
    else:
        used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    send((seconds, used))


def train_steps(cohort: CohortSpec, data: Path, machine: Machine, copies: int) -> CohortTiming:
    """Time each kind of stack of a cohort with so many copies of it at once.

    On a CPU, where runs train alone, one run of each sample count; a cohort then has `machine.workers` processes.
    """
    jobs = [Job(replace(run, continues=None), "", Path(), None) for run in cohort.runs]
    on_gpu = machine.device.type == "cuda"
    kinds: dict[int, list[list[Job]]] = {}
    for stack in stacks(jobs, machine):
        kinds.setdefault(stack[0].spec.T, []).append(stack)
    seconds, peak = 0.0, 0
    for alike in kinds.values():
        barrier = multiprocessing.get_context(start_method()).Barrier(copies)
        timings: dict[int, tuple[float, int]] = {}
        task = partial(_advance, data=data, machine=machine, barrier=barrier)
        run_parallel(task, [alike[0]] * copies, copies, timings.__setitem__, name=_names)
        step = sum(duration for duration, _ in timings.values()) / copies
        steps = sum(max(job.spec.total_steps for job in stack) for stack in alike)
        seconds += step * steps / (1 if on_gpu else machine.workers)
        peak = max(peak, *(used for _, used in timings.values()))
    return CohortTiming(seconds, peak)


def time_kinds(
    to_train: Sequence[Job],
    to_evaluate: Sequence[Job],
    store: Path,
    paths: Paths,
    again: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Time, on one core, every kind of run and of likelihood among these jobs.

    `again`: also those that were timed before. `tell` gets a line for each that was timed.
    """
    runs = {run_shape(job.spec): job for job in to_train}
    kinds = {**runs, **{likelihood_shape(job.spec.latent): job for job in to_evaluate}}
    items = [(shape, job) for shape, job in kinds.items() if again or remembered(store, CORE, shape) is None]

    def keep_rate(number: int, rate: float) -> None:
        shape, _ = items[number]
        remember(store, CORE, shape, rate)
        what = "updates" if shape in runs else "samples of images"
        tell(f"{shape}: {rate:,.0f} {what} a second on a core")

    run_parallel(partial(_time_kind, paths=paths), items, 1, keep_rate, name=lambda item: item[0])


def _time_kind(item: tuple[str, Job], send: Callable[[float], None], *, paths: Paths) -> None:
    shape, job = item
    spec = replace(job.spec, continues=None)
    images = device_images(paths.binarized(spec.dataset), torch.device("cpu"))
    state = initial_state(Job(spec, job.digest, job.folder, None), images)
    if shape == run_shape(job.spec):
        stack = stack_for([spec], [state], images)
        send(_rate(lambda: stack.advance(10), 10))
        return
    some = Images(torch.zeros(20, images.shape[1]), torch.arange(20))
    log_weights = model_log_weights(Parameters(spec.latent, state.flat.unsqueeze(0)), 0)
    send(_rate(lambda: log_weights(some, 0, 50), 20 * 50))


def _rate(work: Callable[[], object], count: int) -> float:
    """How often `count` things are done in a second of this process's own time."""
    work()
    start, done = time.process_time(), 0
    while time.process_time() - start < KIND_SECONDS:
        work()
        done += count
    return done / (time.process_time() - start)


def out_of_memory(message: str) -> bool:
    """Whether a failure is one for want of memory, on a GPU or a host."""
    return "out of memory" in message.lower() or "OutOfMemoryError" in message


def _names(jobs: list[Job]) -> str:
    return ", ".join(job.spec.name for job in jobs)


def measure(cohort: CohortSpec, data: Path, machine: Machine, copies: tuple[int, ...] = ()) -> Speeds:
    """Speeds of a cohort's shape. `copies`: also so many at once, as long as memory allows on a GPU."""
    alone = train_steps(cohort, data, machine, 1)
    together = {}
    for count in copies:
        if machine.device.type == "cuda":
            _, total = torch.cuda.mem_get_info(machine.device)
            if count * alone.peak_bytes > total:
                break
        try:
            together[count] = train_steps(cohort, data, machine, count).seconds / alone.seconds
        except UserError as error:
            if not out_of_memory(str(error)):
                raise
            break
    rate = sum(run.total_steps for run in cohort.runs) / alone.seconds
    return Speeds(shape_of(cohort, len(cohort.runs)), rate, alone.peak_bytes, together)


def measure_shapes(chosen: Sequence[CohortSpec], machine: Machine, store: Path, paths: Paths) -> Iterator[str]:
    """Time each shape of stacks among the cohorts on this GPU, and say what it was; speeds go into the store.

    The data does not matter for a speed: a cohort whose dataset is here stands for those whose is not.
    """
    shapes: dict[str, CohortSpec | None] = {}
    for cohort in chosen:
        shape = shape_of(cohort, len(cohort.runs))
        if shapes.get(shape) is None:
            shapes[shape] = cohort if paths.binarized(cohort.dataset).exists() else None
    for shape, stands in shapes.items():
        if stands is None:
            yield f"{shape}: not measured; none of its datasets is here"
            continue
        speeds = measure(stands, paths.binarized(stands.dataset), machine)
        keep(store, machine, speeds)
        memory = f"{speeds.peak_bytes / 2**20:,.0f} MiB a process"
        yield f"{shape}: {speeds.rate:,.0f} updates a second of all runs, {memory}"


def keep(store: Path, machine: Machine, speeds: Speeds) -> None:
    """Remember what was measured of a shape on a machine, for forecasts of later calls.

    Kept are updates per second, peak bytes, and how much longer an update takes beside others, by their number.
    """
    remember(store, machine, f"train {speeds.shape}", speeds.rate)
    remember(store, machine, f"memory {speeds.shape}", speeds.peak_bytes)
    for count, longer in speeds.together.items():
        remember(store, machine, f"together {count} {speeds.shape}", longer)


def kept(store: Path, machine: Machine, shape: str, copies: tuple[int, ...] = ()) -> Speeds | None:
    """None where the shape was not measured on such a machine."""
    rate, peak = remembered(store, machine, f"train {shape}"), remembered(store, machine, f"memory {shape}")
    if rate is None or peak is None:
        return None
    times = {count: remembered(store, machine, f"together {count} {shape}") for count in copies}
    return Speeds(shape, rate, int(peak), {count: longer for count, longer in times.items() if longer is not None})
