"""The Triton kernel compiled for a GPU that need not be there: `python -m benchmarks.ahead_of_time [--capability 90]`.

Prints what the assembler says: the registers of a thread, the bytes that did not fit into them (spills), and the shared
memory of a program beside what one may have. Needs Triton, which brings its assembler, and neither CUDA nor a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import LATENTS
from benchmarks.table import markdown
from pipeline.data.catalogue import PIXELS
from pipeline.errors import UserError
from pipeline.experiments.spec import BATCH_SIZE
from pipeline.models import fused
from pipeline.models.networks import HIDDEN_WIDTHS, LOGITS, Parameters, count_parameters

SAMPLES = 50
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""The most that a program may have: A100, RTX 40, H100 and H200."""
ALIGNMENT = 16
"""Triton compiles a kernel of its own for pointers and integers that are multiples of it."""


@dataclass(frozen=True)
class Usage:
    """What a thread and a program of the compiled kernel take of the GPU."""

    registers: int
    spill_stores: int
    spill_loads: int
    """Bytes of a thread."""
    shared: int
    """Bytes of a program."""


def _launched(latent: tuple[int, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """The kernel's arguments where one run of this network trains: pointers, in bytes from an aligned one; integers."""
    p = Parameters(latent, torch.empty(1, count_parameters(latent), device="meta"))
    weight, bias = p.weight[LOGITS], p.bias[LOGITS]
    views = {"weight": 4 * int(weight.storage_offset()), "bias": 4 * int(bias.storage_offset())}
    strides = {"weight_stride": weight.stride(0), "bias_stride": bias.stride(0), "x_stride": BATCH_SIZE * PIXELS}
    pointers = dict.fromkeys(("hidden", "x", "log_px", "residual", "d_hidden"), 0) | views
    return pointers, {"rows": SAMPLES * BATCH_SIZE, "images": BATCH_SIZE, **strides}


def usage(latent: tuple[int, ...], tf32: bool, capability: int) -> Usage:
    """What the kernel takes as a run of this network needs it, k = 50.

    Raises: UserError where Triton is missing or too old to be asked.
    """
    if not fused.available():
        raise UserError(
            "Triton is not installed; CUDA builds of torch bring it, elsewhere: pip install --no-deps triton"
        )
    triton: Any = importlib.import_module("triton")
    compiler: Any = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    pointers, integers = _launched(latent)
    known = fused.constants(HIDDEN_WIDTHS[0], PIXELS, tf32)
    types = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(integers, "i32") | dict.fromkeys(known, "constexpr")
    kernel: Any = fused._output_layer
    at = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    source = compiler.ASTSource(
        kernel,
        {name: types[name] for name in at},
        {at[name]: value for name, value in known.items()},
        {
            at[name]: [["tt.divisibility", ALIGNMENT]]
            for name, value in (pointers | integers).items()
            if value % ALIGNMENT == 0
        },
    )
    if not hasattr(getattr(triton, "knobs", None), "nvidia"):
        raise UserError(f"Triton {triton.__version__} does not show what its assembler says; 3.4 and later do")
    said = io.StringIO()
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as folder, knobs.nvidia.scope(), knobs.cache.scope():
        # A folder of its own: a kernel that was found in the cache would not be assembled.
        knobs.cache.dir, knobs.nvidia.dump_ptxas_log = folder, True
        with contextlib.redirect_stdout(said):
            made = triton.compile(source, target=target, options=dict(fused.LAUNCH))
    return parsed(said.getvalue(), int(made.metadata.shared))


def parsed(said: str, shared: int) -> Usage:
    """From what `ptxas -v` says of one kernel."""
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert registers, said
    assert spills, said
    return Usage(int(registers[1]), int(spills[1]), int(spills[2]), shared)


def main(words: list[str] | None = None) -> None:
    """Print, for each precision and network, what Triton's kernel needs of a GPU that need not be there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead_of_time", description=__doc__)
    parser.add_argument(
        "--capability", type=int, choices=list(SHARED_BYTES), default=90, help="of the GPU (default: 90, an H100)"
    )
    capability = parser.parse_args(words).capability
    head = ["precision", "layers", "registers", "spill stores, bytes", "spill loads, bytes", "shared memory, bytes"]
    rows = [head]
    for precision in ("float32", "tf32"):
        for latent in LATENTS:
            resources = usage(latent, precision == "tf32", capability)
            numbers = resources.registers, resources.spill_stores, resources.spill_loads, resources.shared
            rows.append([precision, str(len(latent)), *map(str, numbers)])
    print(f"{markdown(rows)}\n\nA program may have {SHARED_BYTES[capability]} bytes of shared memory.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
