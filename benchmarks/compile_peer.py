"""torch.compile over the whole update: draws, log-weights, gradient and Adam as one compiled function.

The network is that of `benchmarks.plain`; batches and lagged Adam are those of ours under `published-code`.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp

from benchmarks.cases import Case, training_images
from benchmarks.measure import Tick, Work
from benchmarks.plain import PlainModel
from pipeline.experiments.spec import BATCH_SIZE

Named = dict[str, Tensor]


def missing() -> str | None:
    """Why it cannot be measured here."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler, and there is no {compiler}"


def _weights(case: Case, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """What each sample counts for the decoder and for the encoder, [T, B]."""
    if case.objective == "vae":
        uniform = torch.full_like(log_w, 1 / case.T)
        return uniform, uniform
    within = torch.softmax(log_w.view(case.M, case.K, -1), 1).view_as(log_w) / case.M
    return (torch.softmax(log_w, 0), within) if case.objective == "piwae" else (within, within)


class CalledModel(PlainModel):
    """What `functional_call` calls."""

    forward = PlainModel.log_weights


def _update(model: CalledModel, case: Case) -> Any:
    """(parameters, m, v, grey images [B, 784], step size): one update in place."""

    def log_w_of(parameters: Named, x: Tensor, eps: list[Tensor]) -> Tensor:
        log_w: Tensor = functional_call(model, parameters, (x, eps))
        return log_w

    def update(parameters: Named, m: Named, v: Named, grey: Tensor, size: Tensor) -> None:
        x = (torch.rand_like(grey) < grey).float()
        eps = [torch.randn(case.T, BATCH_SIZE, units) for units in case.latent]
        log_w, pull_back, *_ = vjp(lambda p: log_w_of(p, x, eps), parameters)
        theta, phi = _weights(case, log_w)
        (gradient,) = pull_back(phi)
        if theta is not phi:
            gradient |= {name: part for name, part in pull_back(theta)[0].items() if name.startswith("decoder")}
        for name, g in gradient.items():
            parameters[name].add_(size * m[name] / (v[name].sqrt() + 1e-4))
            m[name].add_(0.01 * (g - m[name]))
            v[name].add_(0.001 * (g * g - v[name]))

    return update


def work(value: dict[str, Any]) -> Work:
    """Units: updates.

    Raises: NotImplementedError for the likelihood, which is not written for it.
    """
    case = Case.of(value)
    if case.is_nll:
        raise NotImplementedError("its likelihood is not written")
    torch.manual_seed(0)
    model = CalledModel(case.latent)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    m = {name: torch.zeros_like(value) for name, value in parameters.items()}
    v = {name: torch.ones_like(value) for name, value in parameters.items()}
    grey = (training_images().float() / 255).split(BATCH_SIZE)
    # Every case compiles the same function anew, which by default a process may do eight times.
    torch._dynamo.config.recompile_limit = 100
    # The C++ wrapper calls the kernels without Python in between.
    update: Any = torch.compile(_update(model, case), fullgraph=True, options={"cpp_wrapper": True})
    done = 0

    def run(tick: Tick) -> None:
        nonlocal done
        with torch.no_grad():
            while True:
                t = done + 1
                size = 1e-3 * (1 - 0.999**t) ** 0.5 / (1 - 0.99**t)
                update(parameters, m, v, grey[done % len(grey)], torch.tensor(size))
                done += 1
                tick(1)

    return run
