"""This project's training loop and likelihood, called as the pipeline calls them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, binarized, run_spec, training_images
from benchmarks.measure import Tick, Work
from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import PASS_SIZES, likelihoods, model_log_weights
from pipeline.experiments.choices import AUTO
from pipeline.experiments.spec import BOUND_SAMPLES, NLL_SAMPLES, RunSpec
from pipeline.models import compiled_step
from pipeline.models.networks import Parameters
from pipeline.records.run_folder import Job
from pipeline.training.compiled_stack import CompiledStack, why_not_compiled
from pipeline.training.engines import stack_for
from pipeline.training.stack import Stack
from pipeline.training.train import initial_state
from pipeline.work.memory import keep_freed_memory

PROTOCOL = "published-code"


def stack_of(runs: list[RunSpec], images: Tensor, engine: str = AUTO) -> Stack:
    """Runs at their start, as one stack on the device of `images` ([N, 784] uint8)."""
    states = [initial_state(Job(run, "", Path(), None), images) for run in runs]
    return stack_for(runs, states, images, engine)


def compiled_stack(
    case: Case, images: Tensor, precision: str = "float32", least_weight: float = compiled_step.LEAST_WEIGHT
) -> Stack:
    """A run of the compiled step. Raises: NotImplementedError where it cannot be had."""
    run = run_spec(case, PROTOCOL, seed=0, precision=precision)
    why = why_not_compiled([run])
    if why is not None:
        raise NotImplementedError(why)
    return CompiledStack([run], [initial_state(Job(run, "", Path(), None), images)], images, least_weight)


def updates(stack: Stack) -> Work:
    """Units: updates of every run of a stack."""

    def run(tick: Tick) -> None:
        while True:
            stack.advance(stack.steps_between_checks)
            tick(stack.steps_between_checks)

    return run


def nll(case: Case, images: Tensor) -> Work:
    """Units: images, under the initial weights of a run."""
    stack = stack_of([run_spec(case, PROTOCOL, seed=0)], images)
    p = Parameters(case.latent, stack.buffers.flat)
    x = Images(binarized(images.cpu()).to(images.device), torch.arange(len(images), device=images.device))
    block = PASS_SIZES[images.device.type]
    share = block.images * block.samples / NLL_SAMPLES

    def run(tick: Tick) -> None:
        likelihoods(model_log_weights(p, 0), x, NLL_SAMPLES, BOUND_SAMPLES, between_passes=lambda: tick(share))

    return run


def _by_default(case: Case, images: Tensor) -> Stack:
    return stack_of([run_spec(case, PROTOCOL, seed=0)], images)


def _all_rows(case: Case, images: Tensor) -> Stack:
    """This project's step with the backward pass of every sample, however small its weight."""
    return compiled_stack(case, images, least_weight=0.0)


DEFAULT = "ours"
VARIANTS: dict[str, Callable[[Case, Tensor], Stack]] = {
    DEFAULT: _by_default,
    "ours, all rows": _all_rows,
    "ours, bfloat16 backward": partial(compiled_stack, precision="bfloat16-backward"),
    "ours, bfloat16": partial(compiled_stack, precision="bfloat16"),
}
"""Ways to train."""


def work(value: dict[str, Any]) -> Work:
    """Units: updates or images, on the CPU. `value`: the fields of a case, and perhaps the `variant`.

    Raises: NotImplementedError for a variant that cannot be had, and for ways to train where the case is the NLL.
    """
    variant = value.pop("variant", DEFAULT)
    case, images = Case.of(value), training_images()
    keep_freed_memory()
    if not case.is_nll:
        return updates(VARIANTS[variant](case, images))
    if variant != DEFAULT:
        raise NotImplementedError("it is a way to train")
    return nll(case, images)
