"""What the pipeline finds for the run of `one_run`, in the same units."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.options import Options
from pipeline.evaluation.active_units import BURDA_IMAGES, posterior_means, unit_variances
from pipeline.evaluation.images import Images, binarize_once
from pipeline.evaluation.likelihood import likelihoods, model_log_weights
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import BOUND_SAMPLES, NLL_SAMPLES, RunSpec
from pipeline.models.networks import Parameters
from pipeline.records.metrics import ACTIVE_VARIANCE
from pipeline.records.run_folder import Job
from pipeline.training.engines import stack_for
from pipeline.training.train import initial_state


@dataclass(frozen=True)
class Outcome:
    """What was found of one trained model."""

    log_p: Tensor
    """Estimated log p(x) of every test image, [N] nats."""
    active: list[int]
    """Active units of each stochastic layer."""
    seconds: float
    """Time that training took."""


ROWS: dict[str, Callable[[Outcome], str]] = {
    "NLL, nats per image": lambda outcome: f"{-outcome.log_p.mean():.2f}",
    "its standard error": lambda outcome: f"{outcome.log_p.std() / len(outcome.log_p) ** 0.5:.2f}",
    "active units": lambda outcome: " + ".join(map(str, outcome.active)),
    "seconds of training": lambda outcome: f"{outcome.seconds:.0f}",
}


def pipeline_run(options: Options) -> Outcome:
    """Train and evaluate one run as the pipeline does, under the protocol that the paper's text describes."""
    images, test = options.images, options.test
    run = RunSpec(
        name="one-run",
        objective=options.objective,
        M=options.M,
        K=options.K,
        parameter=options.parameter,
        seed=0,
        dataset="mnist",
        latent=options.latent,
        train_images=len(images),
        protocol_name="paper-text",
        protocol=PROTOCOLS["paper-text"],
        schedule=options.schedule,
        max_steps=None,
        precision="float32",
        continues=None,
        algorithm_version=0,
    )
    start = time.monotonic()
    stack = stack_for([run], [initial_state(Job(run, "", Path(), None), images)], images)
    while stack.step < run.total_steps:
        stack.advance(min(stack.steps_between_checks, run.total_steps - stack.step))
    seconds = time.monotonic() - start
    p = Parameters(options.latent, stack.buffers.flat)
    x = Images(test, torch.arange(len(test)))
    estimates = likelihoods(model_log_weights(p, seed=0), x, NLL_SAMPLES, BOUND_SAMPLES)
    seen = binarize_once(images.numpy(), np.arange(BURDA_IMAGES), 0, "active units", test.device)
    variances = [unit_variances(means) for means in posterior_means(p, seen, seed=0)]
    active = [int((variance > ACTIVE_VARIANCE).sum()) for variance in variances]
    return Outcome(torch.from_numpy(estimates.log_p_hat), active, seconds)


def print_beside_the_pipeline(options: Options, ours: Outcome) -> None:
    """Make the same run with the pipeline and print a table of both outcomes."""
    print("the pipeline: the same run from its own seed", flush=True)
    theirs = pipeline_run(options)
    print(f"\n{'':28}{'this file':>16}{'the pipeline':>16}")
    for title, of in ROWS.items():
        print(f"{title:28}{of(ours):>16}{of(theirs):>16}")
