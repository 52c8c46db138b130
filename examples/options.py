"""What `one_run` is asked for: the run, its schedule and its images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.experiments.grid import check_setting
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import Stage
from pipeline.objectives import OBJECTIVES

LATENT = {1: (50,), 2: (100, 50)}
"""Units of each stochastic layer, by the number of layers: those of Burda et al. (2016), section 5."""


@dataclass(frozen=True)
class Options:
    """One run, and the images that it trains and is tested on."""

    objective: str
    M: int
    K: int
    parameter: float | None
    """beta of ciwae, alpha of dreg and vr."""
    latent: tuple[int, ...]
    """Units of each stochastic layer."""
    schedule: tuple[Stage, ...]
    images: Tensor
    """Grey training images, [N, 784] uint8."""
    test: Tensor
    """Binary test images, [N, 784] float32."""


def read_options(command: str, what_it_does: str) -> Options:
    """Read the command line; what cannot be done ends with one line that says why."""
    parser = argparse.ArgumentParser(prog=command, description=what_it_does)
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="iwae")
    parser.add_argument("--M", type=int, default=1, help="groups of samples (default: 1)")
    parser.add_argument("--K", type=int, default=5, help="samples in a group (default: 5)")
    parser.add_argument("--parameter", type=float, help="beta of ciwae, alpha of dreg and vr")
    parser.add_argument("--layers", type=int, choices=tuple(LATENT), default=1, help="stochastic layers (default: 1)")
    parser.add_argument("--stages", type=int, default=2, help="of the schedule: 1, 3, 9, ... epochs (default: 2)")
    parser.add_argument("--images", type=int, default=500, help="test images (default: 500)")
    parser.add_argument("--data", type=Path, default=Path("data/binarized/mnist"), help="default: %(default)s")
    words = parser.parse_args()
    try:
        check_setting("options", words.objective, words.M, words.K, words.parameter)
        dataset = load_dataset(words.data)
    except UserError as error:
        parser.error(str(error))
    if not 1 <= words.images <= len(dataset.test_bits):
        parser.error(f"--images: from 1 to {len(dataset.test_bits)}, not {words.images}")
    return Options(
        objective=words.objective,
        M=words.M,
        K=words.K,
        parameter=words.parameter,
        latent=LATENT[words.layers],
        schedule=burda_schedule(rounded=False)[: words.stages],
        images=torch.from_numpy(dataset.train_images),
        test=torch.from_numpy(dataset.test_bits[:: len(dataset.test_bits) // words.images]).float(),
    )
