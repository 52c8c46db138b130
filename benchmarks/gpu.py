"""The contest on a GPU: stacks of several runs, and how long the papers' experiments would take.

Runs in this process; on a CPU device too, which is how the tests reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks import ceiling, ours, peers, plain
from benchmarks.cases import Case, binarized, run_spec, training_images
from benchmarks.contest import Results, Timing, hold
from benchmarks.measure import Tick, Work, rate_here
from pipeline.experiments.choices import AUTO
from pipeline.experiments.choices import PLAIN as PLAIN_ENGINE
from pipeline.experiments.spec import CohortSpec
from pipeline.training.engines import DEVICE_ENGINES

STACK_SIZES = (1, 5, 10, 20)
COMPARED_SIZE = 10
"""Runs in the stacks that compare engines."""
CEILINGS, TF32_PRODUCT = "ceilings", "TF32 product"
OURS, PYTHAE, PLAIN = "ours", "pythae", "plain"
PROJECTION_SECONDS = 0.5
"""Measured for each cohort."""


@dataclass(frozen=True)
class StackName:
    """How a stack is called among the contestants."""

    engine: str
    size: int

    def __str__(self) -> str:
        return f"{OURS} {self.engine} {self.size}"

    @staticmethod
    def of(text: str) -> StackName:
        """The inverse of `str`."""
        _, engine, size = text.split()
        return StackName(engine, int(size))


def stacks(sizes: tuple[int, ...], device: torch.device) -> list[StackName]:
    """All sizes with the engine that is chosen by itself, then one size with each that can run here."""
    engines = [name for name, means in DEVICE_ENGINES.items() if means.missing(device) is None]
    engines += [PLAIN_ENGINE] if device.type == "cuda" else []
    return [StackName(AUTO, size) for size in sizes] + [StackName(name, COMPARED_SIZE) for name in engines]


def _stack(stack: StackName, case: Case, images: Tensor, precision: str) -> Work:
    runs = [run_spec(case, ours.PROTOCOL, seed, precision) for seed in range(stack.size)]
    # Built when it is first measured: compiling takes longer than measuring.
    built = cache(lambda: ours.updates(ours.stack_of(runs, images, stack.engine)))
    return lambda tick: built()(tick)


def _plain(case: Case, images: Tensor, tf32: bool) -> Work:
    training = plain.train(case, images)

    def run(tick: Tick) -> None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        training(tick)

    return run


def _synchronizer(device: torch.device) -> Callable[[], None]:
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def contestants(
    case: Case, images: Tensor, sizes: tuple[int, ...], precision: str, with_pythae: bool
) -> dict[str, Work]:
    """The work of each by name; one unit of a stack's is an update of every run in it."""
    device = images.device
    works: dict[str, Work] = {}
    if case.is_nll:
        works[OURS], works[PLAIN] = ours.nll(case, images), plain.nll(case, images)
    else:
        works |= {str(stack): _stack(stack, case, images, precision) for stack in stacks(sizes, device)}
        works[PLAIN] = _plain(case, images, precision == "tf32")
    if with_pythae and case.latent == peers.LATENT:
        bits = binarized(images.cpu())
        works[PYTHAE] = peers.nll(bits, device) if case.is_nll else peers.train(case, bits, device)
    return works


def run(
    cases: list[Case],
    rounds: int,
    seconds: float,
    with_pythae: bool,
    on_progress: Callable[[str], None],
    device: torch.device,
    precision: str,
    sizes: tuple[int, ...] = STACK_SIZES,
) -> Results:
    """Hold the contests of training on a GPU: each case as stacks of `sizes` runs, and the GPU's own product rate.

    `rounds`: how often each contestant has its turn, of `seconds` each. `precision`: of the stacks' products.
    """
    images = training_images().to(device)

    def measured(works: dict[str, Work]) -> dict[str, Timing]:
        return {name: partial(rate_here, work, synchronize=_synchronizer(device)) for name, work in works.items()}

    contests = {CEILINGS: measured({TF32_PRODUCT: ceiling.cuda_product(device, tf32=True)})}
    for case in cases:
        contests[case.name] = measured(contestants(case, images, sizes, precision, with_pythae))
    return hold(contests, rounds, seconds, on_progress)


def projected_hours(
    cohorts: list[CohortSpec], device: torch.device, on_progress: Callable[[str], None]
) -> dict[str, float]:
    """Hours that each experiment would train on this device, from the speed of every one of its stacks."""
    images = training_images().to(device)
    hours: dict[str, float] = {}
    for cohort in cohorts:
        on_progress(f"projection, {cohort.name}")
        runs = [replace(run, train_images=len(images), continues=None) for run in cohort.runs]
        stack = ours.stack_of(runs, images)
        steps = max(run.total_steps for run in cohort.runs)
        cohort_hours = steps / rate_here(ours.updates(stack), PROJECTION_SECONDS, _synchronizer(device)).wall / 3600
        hours[cohort.experiment] = hours.get(cohort.experiment, 0.0) + cohort_hours
    return hours
