"""The compiled training step of one run, and its forward pass for likelihoods (pipeline/models/compiled/step.c).

It is compiled the first time that it is needed, into the user's cache folder. That takes a C compiler (`cc`, or what CC
names) and a processor with AVX-512 or AVX2; without them, or with ELBO_COMPILED=off, torch does the work, more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.experiments.spec import BATCH_SIZE
from pipeline.files import cache_folder
from pipeline.models.networks import HIDDEN_WIDTHS, count_parameters

SWITCH = "ELBO_COMPILED"
FOLDER = Path(__file__).with_name("compiled")
SOURCES = ("step.c", "products.h", "draws.h", "simd.h")
# No -ffast-math, no contraction: every rounding is written out, so that results do not depend on the compiler.
FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"),
    *(f"-DIMAGES={BATCH_SIZE}", f"-DPIXELS={PIXELS}"),
)
COMPILE_SECONDS = 120
LEAST_WEIGHT = 2.0**-24
"""Samples whose weights are all smaller are left out of the backward pass: float32 resolves no more of a sum near 1."""
TERMS, SUMS = 4, 5
_STATE = {"flat": 0, "m": 1, "v": 2}


@dataclass(frozen=True)
class Coefficients:
    """An estimator in the terms of the compiled step.

    `theta`, `path` and `score` are the factors of (1 / T, w, w over all T samples, M w^2) in each weight, where w is
    w^power, normalized within a group of K samples and divided by M, or, with `greatest`, 1 / M at a group's largest
    sample alone. `bound`: the factors of (the ELBO, the groups' mean bound, the IWAE bound over all samples).
    """

    theta: tuple[float, ...]
    path: tuple[float, ...]
    score: tuple[float, ...]
    bound: tuple[float, ...]
    power: float = 1.0
    greatest: bool = False


class _Estimator(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float * TERMS) for name in ("theta", "path", "score")),
        ("bound", ctypes.c_float * 3),
        ("power", ctypes.c_float),
        ("greatest", ctypes.c_int),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int),
        ("units", ctypes.c_int * len(HIDDEN_WIDTHS)),
        ("widths", ctypes.c_int * len(HIDDEN_WIDTHS)),
        ("M", ctypes.c_int),
        ("K", ctypes.c_int),
        ("forward_only", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("least", ctypes.c_float),
        ("words_forward", ctypes.c_int),
        ("words_backward", ctypes.c_int),
        ("estimator", _Estimator),
    )


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def build(path: Path, compiler: list[str], others: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile the step into `path`, whole or not at all. `others`: flags that come last.

    Raises: CalledProcessError, OSError or TimeoutExpired.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as building:
        built = Path(building) / path.name
        command = [*compiler, *FLAGS, *others, "-o", str(built), str(FOLDER / SOURCES[0])]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        built.replace(path)
    return _with_types(ctypes.CDLL(str(path)))


@lru_cache
def library() -> ctypes.CDLL | str:
    """The compiled step, from the user's cache folder or compiled into it; where it cannot be had, why."""
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH} is off"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    texts = [(FOLDER / name).read_text() for name in SOURCES]
    key = "\n".join([*texts, *compiler, *FLAGS, platform.machine(), _processor()])
    try:
        path = cache_folder() / f"step-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
        return _loaded(path) or build(path, compiler)
    except FileNotFoundError:
        return f"there is no C compiler {compiler[0]!r}; install one or name it in CC"
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        return f"{compiler[0]} does not compile it: {lines[0] if lines else error}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)


def _loaded(path: Path) -> ctypes.CDLL | None:
    """The library that was built into `path`; None where there is none, or one that was cut short."""
    try:
        return _with_types(ctypes.CDLL(str(path))) if path.exists() else None
    except (OSError, AttributeError):
        return None


def _with_types(lib: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    lib.model_new.restype, lib.model_new.argtypes = pointer, [ctypes.POINTER(_Settings)]
    lib.model_free.restype, lib.model_free.argtypes = None, [pointer]
    lib.model_count.restype, lib.model_count.argtypes = integer, [pointer]
    lib.model_copy.restype, lib.model_copy.argtypes = None, [pointer, ctypes.c_int, pointer, ctypes.c_int]
    lib.model_advance.restype = None
    lib.model_advance.argtypes = [
        *(pointer, integer, ctypes.c_uint64, pointer, pointer, pointer, pointer),
        *(real, real, ctypes.c_int, pointer, pointer),
    ]
    lib.model_activate.restype, lib.model_activate.argtypes = None, [pointer, pointer]
    lib.model_encode.restype, lib.model_encode.argtypes = None, [pointer, pointer]
    lib.model_log_weights.restype = None
    lib.model_log_weights.argtypes = [pointer, pointer, integer, integer, pointer, pointer]
    lib.normal_numbers.restype = None
    lib.normal_numbers.argtypes = [pointer, integer, ctypes.c_uint64, pointer]
    return lib


@dataclass(frozen=True)
class Updates:
    """What a stretch of updates needs beside the model's state.

    `position`: the number of the first, for its draws. `order`: [steps, 20] int64, the images of each. `sizes`, `eps`:
    [steps] float32, Adam's. `keys`: the streams' keys, of the binarization and of each layer's noise, two words each.
    """

    position: int
    order: NDArray[np.int64]
    sizes: NDArray[np.float32]
    eps: NDArray[np.float32]
    beta1: float
    beta2: float
    lagged: bool
    keys: NDArray[np.uint32]


@dataclass(frozen=True)
class Rounding:
    """Which products but the first layer's are made of operands rounded to bfloat16, and summed in float32."""

    forward: bool = False
    backward: bool = False


def rounds_to_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16, and the compiled step with it."""
    lib = library()
    return isinstance(lib, ctypes.CDLL) and bool(lib.has_bfloat16())


class _Model:
    """A model on the other side, freed with this."""

    def __init__(
        self,
        latent: tuple[int, ...],
        M: int,
        K: int,
        forward_only: bool = False,
        scale: float = 1.0,
        estimator: _Estimator | None = None,
        rounding: Rounding | None = None,
        least_weight: float = LEAST_WEIGHT,
    ) -> None:
        lib = library()
        assert isinstance(lib, ctypes.CDLL), lib
        self._lib = lib
        integers = ctypes.c_int * len(HIDDEN_WIDTHS)
        architecture = len(latent), integers(*latent), integers(*HIDDEN_WIDTHS)
        words = rounding or Rounding()
        assert rounds_to_bfloat16() or words == Rounding()
        settings = _Settings(
            *(*architecture, M, K, forward_only, scale, least_weight),
            *(words.forward, words.backward, estimator or _Estimator()),
        )
        self._handle = lib.model_new(ctypes.byref(settings))
        if not self._handle:
            raise MemoryError(f"no memory for the buffers of {M * K} samples per image")
        self.close = weakref.finalize(self, lib.model_free, self._handle)
        assert lib.model_count(self._handle) == count_parameters(latent)

    def _copy(self, name: str, row: Tensor, out_of: bool) -> None:
        assert row.dtype == torch.float32
        assert row.is_contiguous()
        self._lib.model_copy(self._handle, _STATE[name], row.data_ptr(), out_of)


class CompiledModel(_Model):
    """Parameters and Adam's moments of one run in the compiled step's own layout, and what makes updates of them."""

    def __init__(
        self,
        latent: tuple[int, ...],
        M: int,
        K: int,
        scale: float,
        estimator: Coefficients,
        rounding: Rounding | None = None,
        least_weight: float = LEAST_WEIGHT,
    ) -> None:
        """`scale`: of every weight, 1 or, for the gradient of a batch's mean, 1 / 20. `least_weight`: see LEAST_WEIGHT.

        Raises: MemoryError.
        """
        terms = _Estimator(
            *((ctypes.c_float * TERMS)(*row) for row in (estimator.theta, estimator.path, estimator.score)),
            (ctypes.c_float * 3)(*estimator.bound),
            estimator.power,
            estimator.greatest,
        )
        super().__init__(latent, M, K, scale=scale, estimator=terms, rounding=rounding, least_weight=least_weight)

    def put(self, name: str, row: Tensor) -> None:
        """Take over a row of `Parameters.flat` (`flat`) or of one of Adam's moments (`m`, `v`), [count] float32."""
        self._copy(name, row, out_of=False)

    def get(self, name: str, row: Tensor) -> None:
        """The inverse of `put`, into `row`."""
        self._copy(name, row, out_of=True)

    def advance(self, images: Tensor, updates: Updates) -> NDArray[np.float64]:
        """Make the updates. `images`: [N, 784] uint8 grey values.

        Gives the totals over updates of the history's averaged columns, [5].
        """
        u = updates
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert u.order.dtype == np.int64
        assert 0 <= u.order.min() <= u.order.max() < len(images)
        arrays = [
            np.ascontiguousarray(a, t) for a, t in ((u.order, "i8"), (u.sizes, "f4"), (u.eps, "f4"), (u.keys, "u4"))
        ]
        order, sizes, eps, keys = arrays
        assert order.shape == (len(sizes), BATCH_SIZE)
        sums = np.zeros(SUMS)
        self._lib.model_advance(
            *(self._handle, len(sizes), u.position, images.data_ptr()),
            *(order.ctypes.data, sizes.ctypes.data, eps.ctypes.data),
            *(u.beta1, u.beta2, u.lagged, keys.ctypes.data, sums.ctypes.data),
        )
        return sums


SAMPLES_AT_ONCE = 5
"""Of `CompiledLogWeights`: the hidden units of so many samples of 20 images stay in a core's second-level cache,
160 kB, beside the weights; and 50 samples, a pass of `pipeline.evaluation.likelihood`, are ten times as many."""


class CompiledLogWeights(_Model):
    """log w of samples of up to 20 images under one model: the forward pass of the compiled step."""

    def __init__(self, latent: tuple[int, ...], flat: Tensor, active: Tensor) -> None:
        """`flat`: a row of `Parameters.flat`, [count] float32. `active`: 1 for the units of all layers that are in the
        model, 0 for those taken out of it, [units] float32.

        Raises: MemoryError.
        """
        super().__init__(latent, 1, SAMPLES_AT_ONCE, forward_only=True)
        self._copy("flat", flat, out_of=False)
        assert active.dtype == torch.float32
        assert active.shape == (sum(latent),)
        self._lib.model_activate(self._handle, active.contiguous().data_ptr())
        self._count = 0

    def encode(self, bits: Tensor) -> None:
        """Take the images whose samples are asked for next, [B, 784] in {0, 1}, B up to 20."""
        self._count = len(bits)
        whole = torch.zeros(BATCH_SIZE, PIXELS)
        whole[: self._count] = bits
        self._lib.model_encode(self._handle, whole.data_ptr())

    def of(self, numbers: NDArray[np.int64], first: int, samples: int, keys: NDArray[np.uint32]) -> Tensor:
        """log w, [samples, B] float32 nats, of samples first ... first + samples - 1 of each image.

        The noise of layer l is that of draw `numbers` [B] in the stream of `keys[l]` [2]: element s * units + u is
        unit u of sample s.
        """
        padded = np.zeros(BATCH_SIZE, np.int64)
        padded[: self._count] = numbers
        words = np.ascontiguousarray(keys, np.uint32)
        log_w = torch.empty(samples, BATCH_SIZE)
        self._lib.model_log_weights(
            self._handle, padded.ctypes.data, first, samples, words.ctypes.data, log_w.data_ptr()
        )
        return log_w[:, : self._count]
