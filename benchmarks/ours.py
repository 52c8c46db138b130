"""This project's training loop and likelihood, called as the pipeline calls them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from benchmarks.cases import NLL_SAMPLES, TRAINING, Case, run_spec
from benchmarks.measure import Tick
from pipeline.evaluation.likelihood import IMAGES_PER_BLOCK, SAMPLES_PER_PASS, likelihoods, model_log_weights
from pipeline.spec import RunSpec
from pipeline.training.state import Job
from pipeline.training.train import STEPS_BETWEEN_CHECKS, Stack, initial_state

BOUND_SAMPLES = 64
"""The bound that the evaluation reports beside the NLL."""


def stack_of(runs: list[RunSpec], images: Tensor) -> Stack:
    """Runs at their start, as one stack on the device of `images` ([N, 784] uint8)."""
    states = [initial_state(Job(run, "", Path(), None), images) for run in runs]
    return Stack(runs, states, images)


def train_stack(rank: int, tick: Tick, *, runs: list[RunSpec], images: Tensor) -> None:
    """Units: stacked steps."""
    stack = stack_of(runs, images)
    while True:
        stack.advance(STEPS_BETWEEN_CHECKS)
        tick(STEPS_BETWEEN_CHECKS)


def train(rank: int, tick: Tick, *, case: Case, images: Tensor, protocol_name: str) -> None:
    """Units: steps of one run; each process has its own."""
    train_stack(rank, tick, runs=[run_spec(case, protocol_name, seed=rank)], images=images)


def estimate_nll(rank: int, tick: Tick, *, images: Tensor, bits: Tensor) -> None:
    """Units: images, under the initial weights of a run. `bits`: `images` binarized, on any device."""
    stack = stack_of([run_spec(TRAINING[0], "published-code", seed=rank)], images)
    share = IMAGES_PER_BLOCK * SAMPLES_PER_PASS / NLL_SAMPLES
    likelihoods(
        model_log_weights(stack.parameters, rank),
        bits.to(images.device),
        NLL_SAMPLES,
        BOUND_SAMPLES,
        between_passes=lambda: tick(share),
    )
