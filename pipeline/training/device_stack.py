"""A stack that lives on its device: between two updates nothing is left for the host to do.

Batches, binarization, noise, learning rates and Adam's constants are functions of a counter in device memory, so that
an update, or many, can be captured as one CUDA graph and replayed. How it is run is an `Engine`; each is held to the
plain one, on this machine and before the first update.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models import fused
from pipeline.models.kernels import AdamConstants, adam_ascent_in_torch
from pipeline.models.networks import Parameters
from pipeline.models.philox import normal, stream_key, uniform
from pipeline.models.products import product_precision
from pipeline.randomness import Randomness
from pipeline.spec import BATCH_SIZE, RunSpec
from pipeline.training.stack import Stack, gradient_estimate
from pipeline.training.state import RunState

STEPS_IN_A_GRAPH = 20
TRIED_STEPS = 5
TOLERANCE = 0.02
"""Of the way that parameters go in `TRIED_STEPS` updates: two engines may part by rounding, no further."""


@dataclass(frozen=True)
class Engine:
    """How updates are run. `graph`: as replayed CUDA graphs. `compile`: through torch.compile, which fuses elementwise
    passes. `fuse_output`: the output layer by the Triton kernel of `pipeline.models.fused`."""

    graph: bool = False
    compile: bool = False
    fuse_output: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.graph and device.type != "cuda":
            return "CUDA graphs need a GPU"
        if self.fuse_output and not fused.available():
            return "Triton is not installed"
        return None


PLAIN = "plain"
ENGINES = {
    "fused": Engine(graph=True, compile=True, fuse_output=True),
    "compiled": Engine(graph=True, compile=True),
    "graph": Engine(graph=True),
    PLAIN: Engine(),
}
"""The most promising first: `auto` takes the first that runs here and agrees with the plain one."""


class Draws(NamedTuple):
    """Streams of random numbers and who uses them: C classes of runs with equal (seed, earlier steps, ...)."""

    keys: dict[str, Tensor]
    """By purpose, [C, 2]; see `pipeline.models.philox`."""
    earlier: Tensor
    """[C]: updates made before step 0, by the run that these continue."""
    of_run: Tensor
    """[R]: each run's class."""

    def for_runs(self, drawn: Tensor) -> Tensor:
        """[C, ...] -> [R, ...], without a copy where all is one."""
        if drawn.shape[0] == 1:
            return drawn.expand(len(self.of_run), *drawn.shape[1:])
        return drawn[self.of_run]


def _draws(classes: Sequence[tuple[int, ...]], purposes: list[str], device: torch.device) -> Draws:
    """`classes`: each run's (seed, earlier steps, whatever else tells draws apart)."""
    distinct = list(dict.fromkeys(classes))
    keys = {
        purpose: torch.tensor([stream_key(seed, purpose) for seed, *_ in distinct], device=device)
        for purpose in purposes
    }
    earlier = torch.tensor([earlier for _, earlier, *_ in distinct], device=device)
    return Draws(keys, earlier, torch.tensor([distinct.index(own) for own in classes], device=device))


class DeviceStack(Stack):
    """As `Stack`; its random numbers are others (Philox on the device), the same for every engine."""

    steps_between_checks = 1000

    def __init__(self, runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str = "auto") -> None:
        super().__init__(runs, states, images)
        device = self.device = images.device
        self.grey = images
        latent = runs[0].latent
        self.noise = _draws(
            [(run.seed, earlier) for run, earlier in zip(runs, self.earlier, strict=True)],
            [f"noise{l}" for l in range(1, len(latent) + 1)],
            device,
        )
        batches = [
            (run.seed, earlier, run.train_images, int(run.protocol.shuffle))
            for run, earlier in zip(runs, self.earlier, strict=True)
        ]
        self.batch = _draws(batches, ["binarization"], device)
        self.orders = Orders(list(dict.fromkeys(batches)), device)
        self.counter = torch.tensor(self.step, device=device)
        self.earlier_steps = torch.tensor(self.earlier, dtype=torch.float64, device=device)
        self.schedule = DeviceSchedule(runs, device)

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)

        p = self.protocols
        self.adam = AdamConstants(
            sizes=column([0.0] * len(p)),
            eps=column([own.adam_eps for own in p]),
            beta1=column([own.adam_beta1 for own in p]),
            beta2=column([own.adam_beta2 for own in p]),
            lagged=column([own.adam_lagged for own in p]),
        )
        self.eps_uncorrected = column([own.adam_eps_uncorrected for own in p])
        self.engine, self._run = self._choose(engine)

    @property
    def _state(self) -> tuple[Tensor, ...]:
        """All that an update changes."""
        return self.parameters.flat, self.m, self.v, self.sums, self.counter

    def _draw(self) -> tuple[Tensor, list[Tensor]]:
        position = self.counter + self.batch.earlier
        grey = self.grey[self.orders.indices(position)].to(torch.float32) / 255
        u = uniform(grey[0].numel(), self.batch.keys["binarization"], position).view_as(grey)
        x = self.batch.for_runs((u < grey).to(self.dtype))
        position = self.counter + self.noise.earlier
        eps = []
        for units, keys in zip(self.parameters.latent, self.noise.keys.values(), strict=True):
            shape = (len(keys), self.runs[0].T, BATCH_SIZE, units)
            drawn = normal(self.runs[0].T * BATCH_SIZE * units, keys, position).view(shape)
            eps.append(self.noise.for_runs(drawn.to(self.dtype)))
        return x, eps

    def _adam_constants(self) -> AdamConstants:
        """Those of this update; see `pipeline.training.optimizer.adam_ascent`."""
        t = (self.earlier_steps + self.counter + 1).unsqueeze(1)
        root = torch.sqrt(1 - self.adam.beta2**t)
        rate = self.schedule.rate(self.counter).unsqueeze(1)
        eps = self.adam.eps * torch.where(self.eps_uncorrected > 0, torch.ones_like(root), root)
        now = self.adam._replace(sizes=rate * root / (1 - self.adam.beta1**t), eps=eps)
        return AdamConstants(*(column.to(self.dtype) for column in now))

    def _update_on_device(self) -> None:
        # Made anew from the buffer: torch.compile would take views kept from outside for inputs of their own.
        p = Parameters(self.parameters.latent, self.parameters.flat)
        x, eps = self._draw()
        gradient, terms = gradient_estimate(p, x, eps, self.groups, self.scale)
        adam_ascent_in_torch(p.flat, self.m, self.v, gradient.pieces(p.latent), self._adam_constants())
        self.sums.add_(terms)
        self.counter.add_(1)

    def advance(self, steps: int) -> None:
        # No further than an epoch at once: two epochs' orders are on the device at a time.
        chunk = min(steps, self.orders.shortest_epoch)
        for done in range(0, steps, chunk):
            own = min(chunk, steps - done)
            self.orders.load(self.step, own)
            self._run(own)
            self.step += own
            self.summed = [count + own for count in self.summed]
        if self.device.type == "cuda":
            # The host would otherwise run ahead by millions of launches, and its clock mean nothing.
            torch.cuda.synchronize(self.device)

    def _runner(self, engine: Engine) -> Callable[[int], None]:
        """What makes n updates. State is as before afterwards, though updates are run to warm up."""
        contexts = partial(_contexts, self.runs[0].precision, engine.fuse_output)
        update: Callable[[], None] = self._update_on_device
        if engine.compile:
            # The cached table of layers is the same at every call.
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
            update = torch.compile(update, dynamic=False, fullgraph=True)

        def one_by_one(steps: int) -> None:
            with contexts():
                for _ in range(steps):
                    update()

        if not engine.graph:
            return one_by_one
        with contexts():
            graphs = {count: _captured(update, count, self._state) for count in (STEPS_IN_A_GRAPH, 1)}

        def replayed(steps: int) -> None:
            for count, graph in graphs.items():
                for _ in range(steps // count):
                    graph.replay()
                steps %= count

        return replayed

    def _trial(self, run: Callable[[int], None]) -> Tensor:
        """The parameters after a few updates; state is as before afterwards."""
        before = [tensor.clone() for tensor in self._state]
        self.orders.load(self.step, TRIED_STEPS)
        run(TRIED_STEPS)
        after = self.parameters.flat.clone()
        for tensor, value in zip(self._state, before, strict=True):
            tensor.copy_(value)
        return after

    def _choose(self, name: str) -> tuple[str, Callable[[int], None]]:
        """The engine asked for, or the first that runs here and agrees with the plain one.

        Raises: UserError when the one asked for does not.
        """
        plain = self._runner(ENGINES[PLAIN])
        candidates = ENGINES if name == "auto" else [name]
        expected = None
        for candidate in candidates:
            if candidate == PLAIN:
                break
            why = ENGINES[candidate].missing(self.device)
            if why is None:
                if expected is None:
                    expected = self._trial(plain)
                try:
                    run = self._runner(ENGINES[candidate])
                    parted = _parted(self.parameters.flat, expected, self._trial(run))
                    if parted <= TOLERANCE:
                        return candidate, run
                    why = f"after {TRIED_STEPS} updates its parameters are {parted:.1%} of their way off the plain ones"
                except Exception as error:  # Compilers and drivers fail in ways of their own; training can go on.
                    why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if name != "auto":
                raise UserError(f"engine {candidate}: cannot be used here ({why}); allowed: auto, {', '.join(ENGINES)}")
            if self.device.type == "cuda":
                print(f"engine {candidate} is not used: {why}", file=sys.stderr)
        return PLAIN, plain


def _contexts(precision: str, fuse_output: bool) -> ExitStack:
    with ExitStack() as stack:
        stack.enter_context(product_precision(precision))
        stack.enter_context(fused.fused_output(fuse_output))
        return stack.pop_all()


def _captured(update: Callable[[], None], count: int, state: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
    """`count` updates as one graph."""
    before = [tensor.clone() for tensor in state]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            update()
    return graph


def _parted(start: Tensor, expected: Tensor, found: Tensor) -> float:
    """How far two ends of the same way are apart, as a share of its length."""
    return float((found - expected).norm() / (expected - start).norm().clamp_min(1e-30))


class Orders:
    """The order of the training images in the current and the next epoch, of each class of runs, on the device."""

    def __init__(self, classes: Sequence[tuple[int, int, int, int]], device: torch.device) -> None:
        """`classes`: (seed, earlier steps, training images, whether shuffled) each."""
        self._classes = classes
        per_epoch = [count // BATCH_SIZE for _, _, count, _ in classes]
        self.shortest_epoch = min(per_epoch)
        self._per_epoch = torch.tensor(per_epoch, device=device)
        self._order = torch.zeros(len(classes), 2, max(count for _, _, count, _ in classes), device=device).long()
        self._epochs: dict[tuple[int, int], int] = {}
        self._window = torch.arange(BATCH_SIZE, device=device)
        self._rows = torch.arange(len(classes), device=device)
        self._randomness = Randomness(torch.device("cpu"))

    def load(self, step: int, steps: int) -> None:
        """Have the orders of updates step ... step + steps - 1 on the device; they may touch two epochs."""
        for c, (seed, earlier, count, shuffled) in enumerate(self._classes):
            length = count // BATCH_SIZE
            for epoch in {(earlier + step) // length, (earlier + step + steps - 1) // length}:
                if self._epochs.get((c, epoch % 2)) == epoch:
                    continue
                order = self._randomness.permutation(count, seed, "order", epoch) if shuffled else torch.arange(count)
                self._order[c, epoch % 2, :count] = order.to(self._order.device)
                self._epochs[c, epoch % 2] = epoch

    def indices(self, position: Tensor) -> Tensor:
        """The images of a batch, [C, 20]; `position`: each class's number of the update, [C]."""
        epoch = position // self._per_epoch
        batch = position - epoch * self._per_epoch
        return self._order[self._rows, epoch % 2].gather(1, batch.unsqueeze(1) * BATCH_SIZE + self._window)


class DeviceSchedule:
    """The learning rates of R runs as a function of the update's number on the device."""

    def __init__(self, runs: list[RunSpec], device: torch.device) -> None:
        longest = max(len(run.schedule) for run in runs)
        ends, rates = [], []
        for run in runs:
            lengths = [stage.epochs * run.steps_per_epoch for stage in run.schedule]
            # The last stage has no end: a run stops before it.
            own = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
            ends.append(own + [torch.iinfo(torch.int64).max] * (longest - 1 - len(own)))
            own_rates = [stage.learning_rate for stage in run.schedule]
            rates.append(own_rates + [own_rates[-1]] * (longest - len(own_rates)))
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device).view(len(runs), longest - 1)
        self._rates = torch.tensor(rates, dtype=torch.float64, device=device)

    def rate(self, step: Tensor) -> Tensor:
        """[R] float64."""
        stage = (self._ends <= step).sum(1, keepdim=True)
        return self._rates.gather(1, stage).squeeze(1)


def stack_for(runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str) -> Stack:
    """A stack as fits the device of `images`: on a CPU the compiled kernels and the host do best."""
    if images.device.type == "cpu":
        return Stack(runs, states, images)
    return DeviceStack(runs, states, images, engine)
