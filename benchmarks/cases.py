"""The cases: an objective with its sample counts, or the 5000-sample NLL, on the 1-layer network of both papers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.models.networks import Layer, network
from pipeline.protocol import PROTOCOLS
from pipeline.schedule import burda_schedule
from pipeline.spec import BATCH_SIZE, RunSpec

LATENT = (50,)
IMAGES = 20_000
"""Training images: 1,000 steps an epoch."""
NLL_SAMPLES = 5000


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    objective: str
    M: int
    K: int

    @property
    def T(self) -> int:
        return self.M * self.K


TRAINING = (
    Case("k1", "VAE, k=1", "vae", 1, 1),
    Case("k5", "IWAE, k=5", "iwae", 1, 5),
    Case("k50", "IWAE, k=50", "iwae", 1, 50),
    Case("miwae", "MIWAE 8x8", "miwae", 8, 8),
    Case("piwae", "PIWAE 8x8", "piwae", 8, 8),
)
NLL = Case("nll", f"NLL, {NLL_SAMPLES} samples", "iwae", 1, NLL_SAMPLES)
CASES = {case.name: case for case in (*TRAINING, NLL)}


def run_spec(case: Case, protocol_name: str, seed: int, precision: str = "float32") -> RunSpec:
    """A run of the full schedule."""
    return RunSpec(
        name=f"{case.name}-s{seed}",
        objective=case.objective,
        M=case.M,
        K=case.K,
        parameter=None,
        seed=seed,
        dataset="mnist",
        latent=LATENT,
        train_images=IMAGES,
        protocol_name=protocol_name,
        protocol=PROTOCOLS[protocol_name],
        schedule=burda_schedule(rounded=True),
        max_steps=None,
        precision=precision,
        continues=None,
        algorithm_version=0,
    )


def grey_images() -> Tensor:
    """[IMAGES, 784] uint8, four pixels in five black, as in MNIST."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (IMAGES, 784), dtype=np.uint8)
    grey[rng.random(grey.shape, dtype=np.float32) < 0.8] = 0
    return torch.from_numpy(grey)


def binarized(images: Tensor) -> Tensor:
    """One draw of {0, 1}, float32. In numpy: a process that is to be forked must not start torch's threads."""
    grey = images.numpy()
    rng = np.random.default_rng(1)
    return torch.from_numpy((rng.integers(0, 255, grey.shape, dtype=np.uint8) < grey).astype(np.float32))


def _multiplications(layer: Layer, rows: int) -> int:
    return rows * layer.inputs * layer.outputs


def _rows(layer: Layer, case: Case, images: int) -> int:
    """Rows that a layer sees: the lowest encoder works once an image, all else once a sample."""
    return images if layer.name.startswith("q1.") else images * case.T


def step_flops(case: Case, latent: tuple[int, ...] = LATENT) -> int:
    """Floating-point operations of the matrix products of one run-step: forward, to the weights, to the inputs."""
    total = 0
    for layer in network(latent):
        products = 2 if layer.name == "q1.hidden1" else 3
        total += products * 2 * _multiplications(layer, _rows(layer, case, BATCH_SIZE))
    return total


def nll_flops(latent: tuple[int, ...] = LATENT) -> int:
    """Floating-point operations of the matrix products of one image's NLL."""
    return sum(2 * _multiplications(layer, _rows(layer, NLL, 1)) for layer in network(latent))


def unit_flops(case: Case) -> int:
    """Of one unit of the case's work: a run-step, or an image."""
    return nll_flops() if case is NLL else step_flops(case)
