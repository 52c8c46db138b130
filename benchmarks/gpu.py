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
from benchmarks.cases import NLL, Case, binarized, grey_images, run_spec
from benchmarks.contest import HALF, Contestant, Results, hold
from benchmarks.measure import Layout, Tick, rate_here
from pipeline.spec import CohortSpec
from pipeline.training.device_stack import ENGINES

STACK_SIZES = (1, 5, 10, 20)
COMPARED_SIZE = 10
"""Of the stacks that compare engines."""
HERE = (Layout(1, 1),)
OURS, PYTHAE, PLAIN, TF32_PRODUCT = "ours", "pythae", "plain", "TF32 product"
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
    engines = [name for name, engine in ENGINES.items() if engine.missing(device) is None and device.type == "cuda"]
    return [StackName("auto", size) for size in sizes] + [StackName(name, COMPARED_SIZE) for name in engines]


def _stack(stack: StackName, case: Case, images: Tensor, precision: str) -> Contestant:
    runs = [run_spec(case, "published-code", seed, precision) for seed in range(stack.size)]
    # Built in the first round alone: compiling takes longer than measuring.
    built = cache(lambda: ours.stack_of(runs, images, stack.engine))

    def work(rank: int, tick: Tick) -> None:
        ours.advance(rank, tick, stack=built())

    return Contestant(str(stack), work, HERE, weight=stack.size)


def _plain(rank: int, tick: Tick, *, case: Case, images: Tensor, tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    plain.train(rank, tick, case=case, images=images)


def contestants(
    case: Case, images: Tensor, bits: Tensor, sizes: tuple[int, ...], precision: str, with_pythae: bool
) -> list[Contestant]:
    device = images.device
    if case is NLL:
        found = [Contestant(OURS, partial(ours.estimate_nll, images=images, bits=bits), HERE)]
        its_work = partial(peers.estimate_nll, bits=bits, device=device)
        plain_work = partial(plain.estimate_nll, images=images, bits=bits)
    else:
        found = [_stack(stack, case, images, precision) for stack in stacks(sizes, device)]
        its_work = partial(peers.train, case=case, bits=bits, device=device)
        plain_work = partial(_plain, case=case, images=images, tf32=precision == "tf32")
    if with_pythae:
        found.append(Contestant(PYTHAE, its_work, HERE))
    return [*found, Contestant(PLAIN, plain_work, HERE)]


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
    grey = grey_images()
    images, bits = grey.to(device), binarized(grey)
    product = partial(ceiling.multiply, shape=ceiling.CUDA_SQUARE, device=device, tf32=True)
    return hold(
        {case: contestants(case, images, bits, sizes, precision, with_pythae) for case in cases},
        [Contestant(TF32_PRODUCT, product, HERE, share=HALF)],
        rounds,
        seconds,
        lambda contestant, _, length: rate_here(contestant.work, length, device),
        on_progress,
    )


def projected_hours(
    cohorts: list[CohortSpec], device: torch.device, on_progress: Callable[[str], None]
) -> dict[str, float]:
    """Hours that each experiment would train on this device, from the speed of every one of its stacks."""
    images = grey_images().to(device)
    hours: dict[str, float] = {}
    for cohort in cohorts:
        on_progress(f"projection, {cohort.name}")
        runs = [replace(run, train_images=len(images), continues=None) for run in cohort.runs]
        stack = ours.stack_of(runs, images)
        steps = max(run.total_steps for run in cohort.runs)
        own = steps / rate_here(partial(ours.advance, stack=stack), PROJECTION_SECONDS, device) / 3600
        hours[cohort.experiment] = hours.get(cohort.experiment, 0.0) + own
    return hours
