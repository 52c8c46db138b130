"""The contest on a GPU: stacks of several runs, and how long the papers' experiments would take.

Runs in this process; on a CPU device too, which is how the tests reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import ceiling, ours, peers, plain
from benchmarks.cases import NLL, Case, binarized, grey_images, run_spec
from benchmarks.contest import HALF, Contestant, Results, hold
from benchmarks.measure import Layout, Tick, rate_here
from pipeline.spec import CohortSpec

STACK_SIZES = (1, 5, 10, 20)
HERE = (Layout(1, 1),)
OURS, PYTHAE, PLAIN, TF32_PRODUCT = "ours", "pythae", "plain", "TF32 product"
PROJECTION_SECONDS = 0.5
"""Measured for each cohort."""


def stack_name(size: int) -> str:
    return f"ours, R={size}"


def _stack(size: int, case: Case, images: Tensor, precision: str) -> Contestant:
    runs = [run_spec(case, "published-code", seed, precision) for seed in range(size)]
    return Contestant(stack_name(size), partial(ours.train_stack, runs=runs, images=images), HERE, weight=size)


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
        found = [_stack(size, case, images, precision) for size in sizes]
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
        work = partial(ours.train_stack, runs=runs, images=images)
        steps = max(run.total_steps for run in cohort.runs)
        own = steps / rate_here(work, PROJECTION_SECONDS, device) / 3600
        hours[cohort.experiment] = hours.get(cohort.experiment, 0.0) + own
    return hours
