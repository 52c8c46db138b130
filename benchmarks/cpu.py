"""The contest on a CPU: one process and one thread each, beside the ceilings of a core."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import ceiling, kernels, ours
from benchmarks.cases import IMAGES, IMAGES_VARIABLE, Case, grey_images
from benchmarks.contest import Results, Timing, hold
from benchmarks.measure import Contestants
from benchmarks.revision import ROOT, checkout

MNIST = Path("data/binarized/mnist/train_images.npy")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
CEILINGS, KERNELS = "ceilings", "kernels"
AGAINST = "against"


@dataclass(frozen=True)
class Peer:
    """Another implementation of the same model, timed beside this one."""

    name: str
    module: str
    """With `missing()`, why it cannot be measured here, and `work(case)`."""

    @property
    def missing(self) -> str | None:
        reason: str | None = importlib.import_module(self.module).missing()
        return reason


PEERS = (
    Peer("JAX", "benchmarks.jax_peer"),
    Peer("torch.compile", "benchmarks.compile_peer"),
    Peer("plain PyTorch", "benchmarks.plain"),
    Peer("pythae", "benchmarks.peers"),
)


def images_file(folder: Path) -> tuple[Path, str]:
    """The training images that all measure, as an .npy file, and what they are."""
    if MNIST.exists():
        return MNIST.resolve(), "MNIST"
    file = folder / "images.npy"
    np.save(file, grey_images().numpy())
    return file, f"{IMAGES} random images, for {MNIST} is missing"


def run(
    cases: list[Case],
    rounds: int,
    seconds: float,
    processes: int,
    against: str | None,
    peers: tuple[Peer, ...],
    on_progress: Callable[[str], None],
) -> tuple[Results, str]:
    """Rates of all contestants, and what the training images were.

    Each contestant has one process (`processes` of them, which work at the same time) for all of its cases.

    Raises: UserError when git has no revision `against`.
    """
    with ExitStack() as stack:
        file, images = images_file(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        shared = {**ONE_THREAD, IMAGES_VARIABLE: str(file), "PYTHONPATH": _python_path(ROOT)}

        def started(entry: str, environment: dict[str, str] = shared) -> Contestants:
            contestants = Contestants(entry, environment, processes)
            stack.callback(contestants.close)
            return contestants

        our = started("benchmarks.ours:work")
        everyone = {}
        if against:
            older = {**shared, "PYTHONPATH": _python_path(stack.enter_context(checkout(against)))}
            everyone[AGAINST] = started(f"{ROOT / 'benchmarks' / 'revision.py'}:work", older)
        everyone |= {peer.name: started(f"{peer.module}:work") for peer in peers}
        contests: dict[str, dict[str, Timing]] = {}
        machine = started("benchmarks.kernels:work")
        for contest, names, missing in (
            (CEILINGS, (*ceiling.OPERATIONS, *ceiling.BYTES), ceiling.missing()),
            (KERNELS, tuple(kernels.NAMES), kernels.missing()),
        ):
            if missing is None:
                contests[contest] = {name: partial(machine.rate, name) for name in names}
        for case in cases:
            ways = list(ours.VARIANTS)[: 1 if case.is_nll else None]
            contests[case.name] = {way: partial(our.rate, {**asdict(case), "variant": way}) for way in ways}
            contests[case.name] |= {name: partial(who.rate, asdict(case)) for name, who in everyone.items()}
        return hold(contests, rounds, seconds, on_progress), images


def _python_path(root: Path) -> str:
    return os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
