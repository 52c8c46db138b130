"""What the machine can do at best: multiply-adds, cache and memory of one core; matrix products on a GPU."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Tick, Work

SOURCE = Path(__file__).with_name("ceilings.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
CUDA_SQUARE = (4096, 4096, 4096)
"""On a GPU a product of the papers' size measures launching, not multiplying."""
FMA, BFLOAT16 = "float32 multiply-adds", "bfloat16 dot products"
SIZES = {"24 KiB": 24 << 10, "512 KiB": 512 << 10, "4 MiB": 4 << 20, "256 MiB": 256 << 20}
"""Buffers that fit the first, the second and the last cache of today's processors, and none of them."""
READS = {f"read {name}": size for name, size in SIZES.items()}
UPDATES = {f"read and write {name}": size for name, size in SIZES.items()}
OPERATIONS, BYTES = (FMA, BFLOAT16), (*READS, *UPDATES)
ALIGNMENT = 64


def compiled(source: Path, flags: Sequence[str]) -> ctypes.CDLL | str:
    """A C file as a library, or why it cannot be one."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.stem}.so"
        try:
            subprocess.run([*compiler, *flags, "-o", str(path), str(source)], check=True, capture_output=True)
            return ctypes.CDLL(str(path))
        except FileNotFoundError:
            return f"there is no C compiler {compiler[0]!r}; install one or name it in CC"
        except (OSError, subprocess.CalledProcessError) as error:
            return f"{compiler[0]} does not compile {source.name}: {error}"


@cache
def library() -> ctypes.CDLL | str:
    """ceilings.c compiled, or why it cannot be."""
    ceilings = compiled(SOURCE, FLAGS)
    if isinstance(ceilings, ctypes.CDLL):
        for name in ("multiply_add", "bfloat16_dot", "read_bytes", "update_bytes"):
            getattr(ceilings, name).restype = ctypes.c_double
    return ceilings


def missing() -> str | None:
    """Why the ceilings cannot be measured here."""
    outcome = library()
    return outcome if isinstance(outcome, str) else None


def work(name: str) -> Work:
    """Units: floating-point operations or bytes, of one of `OPERATIONS` or `BYTES`.

    Raises: NotImplementedError where the processor has no such instruction.
    """
    ceilings = library()
    assert isinstance(ceilings, ctypes.CDLL), ceilings
    if name in OPERATIONS:
        function = ceilings.multiply_add if name == FMA else ceilings.bfloat16_dot
        if function() == 0:
            raise NotImplementedError(f"this processor has none: {name}")
        return repeated(lambda: function())
    size = (READS | UPDATES)[name]
    memory = torch.ones((size + ALIGNMENT) // 4)
    address = memory.data_ptr() + -memory.data_ptr() % ALIGNMENT
    function = ceilings.read_bytes if name in READS else ceilings.update_bytes
    # `move` holds on to the memory, of which C knows the address alone.

    def move(owner: Tensor = memory) -> float:
        return float(function(ctypes.c_void_p(address), ctypes.c_size_t(size)))

    return repeated(move)


def repeated(unit_of_work: Callable[[], float]) -> Work:
    """The same again and again; it gives its units."""

    def run(tick: Tick) -> None:
        while True:
            tick(unit_of_work())

    return run


def cuda_product(device: torch.device, tf32: bool) -> Work:
    """Units: floating-point operations of a square matrix product."""
    rows, inner, columns = CUDA_SQUARE
    left, right = torch.rand(rows, inner, device=device), torch.rand(inner, columns, device=device)

    def multiply() -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.mm(left, right)
        return 2.0 * rows * inner * columns

    return repeated(multiply)
