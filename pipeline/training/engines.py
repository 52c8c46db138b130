"""Which engine makes a stack's updates: chosen by device, and tried against the plain one before it is used."""

from __future__ import annotations

import sys
from functools import cache

from torch import Tensor

from pipeline.errors import UserError
from pipeline.experiments.choices import AUTO, COMPILED, FUSED, GRAPH, PLAIN
from pipeline.experiments.spec import RunSpec
from pipeline.records.run_folder import RunState
from pipeline.training.compiled_stack import CompiledStack, why_not_compiled
from pipeline.training.device_stack import DeviceStack, Means
from pipeline.training.plain_stack import PlainStack
from pipeline.training.stack import Stack

COMPILED_ONLY = "bfloat16-backward"
"""The precision that no other engine has."""
DEVICE_ENGINES = {
    FUSED: Means(graph=True, compile=True, fuse_output=True),
    COMPILED: Means(graph=True, compile=True),
    GRAPH: Means(graph=True),
}
"""Those of a GPU, the most promising first: `auto` takes the first that runs here and agrees with the plain one."""
TRIED_STEPS = 5
TOLERANCE = 0.02
"""Share of the way that parameters go in `TRIED_STEPS` updates by which two engines may part: by rounding, no more."""


def stack_for(runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str = AUTO) -> Stack:
    """A stack of these runs on the device of `images`, advanced by the engine asked for, or by the best that works.

    Raises: UserError when an engine is asked for that cannot be used here.
    """
    on_cpu = engine == AUTO and images.device.type == "cpu"
    why = why_not_compiled(runs) if on_cpu else "it is for CPUs, and for engine auto"
    if any(run.precision == COMPILED_ONLY for run in runs) and why is not None:
        raise UserError(
            f"params.yaml: precision: only the compiled step computes in {COMPILED_ONLY}, and it cannot be used here"
            f" ({why}); choose float32 or bfloat16"
        )
    if engine == PLAIN:
        return PlainStack(runs, states, images)
    if on_cpu:
        if why is None:
            return CompiledStack(runs, states, images)
        _tell(f"training goes on in torch, more slowly: the compiled step is not used ({why})")
        return PlainStack(runs, states, images)
    return device_stack_for(runs, states, images, engine)


def device_stack_for(runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str) -> Stack:
    """As `stack_for`, among the engines of a GPU: each is tried against the plain one before it is used."""
    allowed = ", ".join((AUTO, *DEVICE_ENGINES, PLAIN))
    if engine not in (AUTO, *DEVICE_ENGINES):
        raise UserError(f"engine {engine}: there is no such engine; allowed: {allowed}")
    expected: Tensor | None = None
    for name in DEVICE_ENGINES if engine == AUTO else [engine]:
        why = DEVICE_ENGINES[name].missing(images.device)
        if why is None:
            if expected is None:
                expected = _tried(PlainStack(runs, states, images))
            try:
                stack = DeviceStack(runs, states, images, name, DEVICE_ENGINES[name])
                share = _parted(stack.buffers.flat.clone(), expected, _tried(stack))
                if share <= TOLERANCE:
                    stack.load(states)
                    return stack
                why = f"after {TRIED_STEPS} updates its parameters are {share:.1%} of their way off the plain ones"
            except Exception as error:  # Compilers and drivers fail in ways of their own; training can go on.
                why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if engine != AUTO:
            raise UserError(f"engine {name}: cannot be used here ({why}); allowed: {allowed}")
        _tell(f"engine {name} is not used: {why}")
    return PlainStack(runs, states, images)


@cache
def _tell(line: str) -> None:
    """Once in a process, not for every stack."""
    print(line, file=sys.stderr, flush=True)


def _tried(stack: Stack) -> Tensor:
    """The parameters after a few updates."""
    stack.advance(TRIED_STEPS)
    return stack.buffers.flat.clone()


def _parted(start: Tensor, expected: Tensor, reached: Tensor) -> float:
    """How far two ends of the same way are apart, as a share of its length."""
    return float((reached - expected).norm() / (expected - start).norm().clamp_min(1e-30))
