"""The matrix products of the compiled step by themselves, to be held to the peak of multiply-adds."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from benchmarks import ceiling
from benchmarks.ceiling import compiled, repeated
from benchmarks.measure import Work
from pipeline.models import compiled_step

SOURCE = Path(__file__).with_name("kernels.c")
LAYERS = ("50x200", "200x200", "200x784")
PASSES = ("forward", "to the inputs", "to the weights, with Adam")
SAMPLES = (1, 50)
BFLOAT16_SUFFIX = ", bfloat16"
WORDS = {"": False, BFLOAT16_SUFFIX: True}
NAMES = {
    f"{layer} {what}, {20 * T} rows{suffix}": (T, words, l, which)
    for suffix, words in WORDS.items()
    for T in SAMPLES
    for l, layer in enumerate(LAYERS)
    for which, what in enumerate(PASSES)
}


@cache
def library() -> ctypes.CDLL | str:
    """kernels.c, compiled as the step itself is; or why it cannot be."""
    step = compiled_step.library()
    if isinstance(step, str):
        return step
    kernels = compiled(SOURCE, ("-march=native", *compiled_step.FLAGS, f"-I{compiled_step.FOLDER}"))
    if isinstance(kernels, ctypes.CDLL):
        kernels.kernels_new.restype = ctypes.c_void_p
        kernels.kernels_run.restype = ctypes.c_double
        kernels.kernels_run.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 2]
    return kernels


def missing() -> str | None:
    """Why they cannot be measured here."""
    outcome = library()
    return outcome if isinstance(outcome, str) else None


def work(name: str) -> Work:
    """Units: floating-point operations of one of `NAMES`; of other names those of `ceiling.work`."""
    if name not in NAMES:
        return ceiling.work(name)
    kernels = library()
    assert isinstance(kernels, ctypes.CDLL), kernels
    T, words, layer, which = NAMES[name]
    if words and not compiled_step.rounds_to_bfloat16():
        raise NotImplementedError("this processor has no instruction that multiplies bfloat16")
    model = kernels.kernels_new(T, words)
    assert model, "out of memory"
    return repeated(lambda: kernels.kernels_run(model, layer, which))
