"""This project's training loop and likelihood, called as the pipeline calls them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from benchmarks.cases import NLL_SAMPLES, TRAINING, Case, run_spec
from benchmarks.measure import Tick
from pipeline.evaluation.likelihood import BLOCKS, likelihoods, model_log_weights
from pipeline.spec import RunSpec
from pipeline.training.device_stack import stack_for
from pipeline.training.stack import Stack
from pipeline.training.state import Job
from pipeline.training.train import initial_state

BOUND_SAMPLES = 64
"""The bound that the evaluation reports beside the NLL."""


def stack_of(runs: list[RunSpec], images: Tensor, engine: str = "auto") -> Stack:
    """Runs at their start, as one stack on the device of `images` ([N, 784] uint8)."""
    states = [initial_state(Job(run, "", Path(), None), images) for run in runs]
    return stack_for(runs, states, images, engine)


def advance(rank: int, tick: Tick, *, stack: Stack) -> None:
    """Units: stacked steps."""
    while True:
        stack.advance(stack.steps_between_checks)
        tick(stack.steps_between_checks)


def train(rank: int, tick: Tick, *, case: Case, images: Tensor, protocol_name: str) -> None:
    """Units: steps of one run; each process has its own."""
    advance(rank, tick, stack=stack_of([run_spec(case, protocol_name, seed=rank)], images))


def estimate_nll(rank: int, tick: Tick, *, images: Tensor, bits: Tensor) -> None:
    """Units: images, under the initial weights of a run. `bits`: `images` binarized, on any device."""
    stack = stack_of([run_spec(TRAINING[0], "published-code", seed=rank)], images)
    block = BLOCKS[images.device.type]
    share = block.images * block.samples / NLL_SAMPLES
    likelihoods(
        model_log_weights(stack.parameters, rank),
        bits.to(images.device),
        NLL_SAMPLES,
        BOUND_SAMPLES,
        between_passes=lambda: tick(share),
    )
