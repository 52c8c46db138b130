"""The contest on a CPU: all cores, however each contestant uses them best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import ceiling, ours, peers, plain
from benchmarks.cases import NLL, Case, binarized, grey_images
from benchmarks.contest import HALF, Contestant, Results, hold
from benchmarks.measure import Layout, rate
from pipeline.device import resolve_workers

CPU = torch.device("cpu")
OURS, OURS_ALONE, OURS_PAPER = "ours", "ours, 1 process", "ours, protocol paper"
PYTHAE, PYTHAE_APART, PLAIN = "pythae", "pythae, a process a core", "plain"
PRODUCT, PRODUCT_ALONE = "product", "product, 1 process"
COPY, COPY_ALONE = "copy", "copy, 1 process"


def contestants(case: Case, images: Tensor, bits: Tensor, with_pythae: bool) -> list[Contestant]:
    cores = resolve_workers("auto", CPU)
    apart, together, single = Layout(cores, 1), Layout(1, torch.get_num_threads()), Layout(1, 1)
    workers, worker = Layout(cores, 1, keep_memory=True), Layout(1, 1, keep_memory=True)
    if case is NLL:
        our_nll = partial(ours.estimate_nll, images=images, bits=bits)
        its_work = partial(peers.estimate_nll, bits=bits, device=CPU)
        plain_work = partial(plain.estimate_nll, images=images, bits=bits)
        found = [Contestant(OURS, our_nll, (workers,)), Contestant(OURS_ALONE, our_nll, (worker,), share=HALF)]
    else:
        train = partial(ours.train, case=case, images=images)
        code, paper = partial(train, protocol_name="published-code"), partial(train, protocol_name="paper")
        its_work = partial(peers.train, case=case, bits=bits, device=CPU)
        plain_work = partial(plain.train, case=case, images=images)
        found = [
            Contestant(OURS, code, (workers,)),
            Contestant(OURS_ALONE, code, (worker,), share=HALF),
            Contestant(OURS_PAPER, paper, (workers,), share=HALF),
        ]
    if with_pythae:
        # First its one process, with the threads that suit it; then what a user has who starts one on every core.
        found.append(Contestant(PYTHAE, its_work, (together, single)))
        found.append(Contestant(PYTHAE_APART, its_work, (apart,), share=HALF))
    return [*found, Contestant(PLAIN, plain_work, (together, apart))]


def ceilings() -> list[Contestant]:
    cores = resolve_workers("auto", CPU)
    every, one = (Layout(cores, 1),), (Layout(1, 1),)
    multiply = partial(ceiling.multiply, shape=ceiling.OUTPUT_LAYER, device=CPU)
    copy = partial(ceiling.copy, device=CPU)
    return [
        Contestant(PRODUCT, multiply, every, share=HALF),
        Contestant(PRODUCT_ALONE, multiply, one, share=HALF),
        Contestant(COPY, copy, every, share=HALF),
        Contestant(COPY_ALONE, copy, one, share=HALF),
    ]


def run(
    cases: list[Case], rounds: int, seconds: float, with_pythae: bool, on_progress: Callable[[str], None]
) -> Results:
    images = grey_images()
    bits = binarized(images)
    plain.load()
    if with_pythae:
        peers.load()
    return hold(
        {case: contestants(case, images, bits, with_pythae) for case in cases},
        ceilings(),
        rounds,
        seconds,
        lambda contestant, layout, length: rate(contestant.work, length, layout),
        on_progress,
    )
