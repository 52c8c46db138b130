"""A stack on a GPU: its updates are captured as CUDA graphs and replayed, many in a row without the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pipeline.experiments.spec import RunSpec
from pipeline.models import fused
from pipeline.models.products import torch_in_tf32
from pipeline.records.run_folder import RunState
from pipeline.training.stack import Buffers, Stack
from pipeline.training.update import Update

STEPS_IN_A_GRAPH = 20


@dataclass(frozen=True)
class Means:
    """How updates are run. `graph`: as replayed CUDA graphs. `compile`: through torch.compile, which fuses elementwise
    passes. `fuse_output`: the output layer by the Triton kernel of `pipeline.models.fused`."""

    graph: bool = False
    compile: bool = False
    fuse_output: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Why they cannot be had here; None where they can."""
        if self.graph and device.type != "cuda":
            return "CUDA graphs need a GPU"
        if self.fuse_output and not fused.available():
            return "Triton is not installed"
        return None


@final
class DeviceStack(Stack):
    """Makes the updates of `Update` as `means` say."""

    steps_between_checks = 1000

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str, means: Means) -> None:
        super().__init__(runs, states, images)
        self.engine = engine
        self._device = images.device
        self._update = Update(runs, self.buffers, self.earlier, images, means.fuse_output)
        self._run = _runner(self._update, self.buffers, means, runs[0].precision == "tf32")

    def advance(self, steps: int) -> None:
        for count in self._update.stretches(self.step, steps):
            self._run(count)
        self._count(steps)
        if self._device.type == "cuda":
            # The host would otherwise run ahead by millions of launches, and its clock mean nothing.
            torch.cuda.synchronize(self._device)


def _runner(update: Update, buffers: Buffers, means: Means, tf32: bool) -> Callable[[int], None]:
    """What makes n updates. The state is as before afterwards, though updates are run to warm up."""
    one: Callable[[], None] = update.__call__
    if means.compile:
        # The cached table of layers is the same at every call.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        one = torch.compile(one, dynamic=False, fullgraph=True)

    def one_by_one(steps: int) -> None:
        with torch_in_tf32(tf32):
            for _ in range(steps):
                one()

    if not means.graph:
        return one_by_one
    with torch_in_tf32(tf32):
        graphs = {count: _captured(one, count, buffers) for count in (STEPS_IN_A_GRAPH, 1)}

    def replayed(steps: int) -> None:
        for count, graph in graphs.items():
            for _ in range(steps // count):
                graph.replay()
            steps %= count

    return replayed


def _captured(update: Callable[[], None], count: int, buffers: Buffers) -> torch.cuda.CUDAGraph:
    """`count` updates as one graph."""
    before = buffers.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    buffers.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            update()
    return graph
