"""The cases: an objective with its sample counts, or the 5000-sample NLL, on the networks of both papers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.catalogue import PIXELS
from pipeline.experiments.grid import LATENT
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import BATCH_SIZE, NLL_SAMPLES, RunSpec
from pipeline.models.networks import Layer, network

LATENTS = tuple(LATENT.values())
"""Units of the stochastic layers: the 1-layer and the 2-layer network."""
IMAGES = 20_000
"""Training images: 1,000 steps an epoch."""
NLL_NAME = "nll"
IMAGES_VARIABLE = "BENCHMARK_IMAGES"
"""Names the .npy file of the training images that every measuring process reads."""


@dataclass(frozen=True)
class Case:
    """What is timed: updates of an objective on one network, or the NLL of its images."""

    name: str
    title: str
    objective: str
    M: int
    K: int
    latent: tuple[int, ...] = LATENTS[0]

    @property
    def T(self) -> int:
        return self.M * self.K

    @property
    def is_nll(self) -> bool:
        return self.objective == NLL_NAME

    @property
    def unit(self) -> str:
        return "images" if self.is_nll else "updates"

    @staticmethod
    def of(value: dict[str, Any]) -> Case:
        """From its fields, after a journey as JSON."""
        return Case(**{**value, "latent": tuple(value["latent"])})


def _cases() -> dict[str, Case]:
    kinds = (
        ("k1", "VAE, k=1", "vae", 1, 1),
        ("k5", "IWAE, k=5", "iwae", 1, 5),
        ("k50", "IWAE, k=50", "iwae", 1, 50),
        ("miwae", "MIWAE 8x8", "miwae", 8, 8),
        ("piwae", "PIWAE 8x8", "piwae", 8, 8),
        (NLL_NAME, f"NLL, {NLL_SAMPLES} samples", NLL_NAME, 1, NLL_SAMPLES),
    )
    cases = {}
    for latent in LATENTS:
        depth = "1 layer" if len(latent) == 1 else f"{len(latent)} layers"
        for name, title, objective, M, K in kinds:
            key = f"{name}-{len(latent)}L"
            cases[key] = Case(key, f"{title}, {depth}", objective, M, K, latent)
    return cases


CASES = _cases()
TRAINING = tuple(case for case in CASES.values() if not case.is_nll)


def run_spec(case: Case, protocol_name: str, seed: int, precision: str = "float32") -> RunSpec:
    """A run of the full schedule; of the NLL's case one that is as good as any other."""
    return RunSpec(
        name=f"{case.name}-s{seed}",
        objective="iwae" if case.is_nll else case.objective,
        M=case.M,
        K=case.K,
        parameter=None,
        seed=seed,
        dataset="mnist",
        latent=case.latent,
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
    grey = rng.integers(0, 256, (IMAGES, PIXELS), dtype=np.uint8)
    grey[rng.random(grey.shape, dtype=np.float32) < 0.8] = 0
    return torch.from_numpy(grey)


def training_images() -> Tensor:
    """[N, 784] uint8: those of the file that IMAGES_VARIABLE names, or random ones where none is named."""
    file = os.environ.get(IMAGES_VARIABLE)
    return torch.from_numpy(np.load(Path(file))[:IMAGES]) if file else grey_images()


def binarized(images: Tensor) -> Tensor:
    """One draw of {0, 1}, float32. In numpy: a process that is to be forked must not start torch's threads."""
    grey = images.numpy()
    rng = np.random.default_rng(1)
    return torch.from_numpy((rng.integers(0, 255, grey.shape, dtype=np.uint8) < grey).astype(np.float32))


def glorot_layers(latent: tuple[int, ...]) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Weights [inputs, outputs] and zero biases by layer, float32."""
    rng = np.random.default_rng(0)
    layers = {}
    for layer in network(latent):
        bound = (6 / (layer.inputs + layer.outputs)) ** 0.5
        weight = rng.uniform(-bound, bound, (layer.inputs, layer.outputs)).astype(np.float32)
        layers[layer.name] = weight, np.zeros(layer.outputs, np.float32)
    return layers


def _rows(layer: Layer, case: Case, images: int) -> int:
    """Rows that a layer sees: the lowest encoder works once an image, all else once a sample."""
    return images if layer.name.startswith("q1.") else images * case.T


def step_flops(case: Case) -> int:
    """Floating-point operations of the matrix products of one update: forward, to the weights, to the inputs."""
    total = 0
    for layer in network(case.latent):
        products = 2 if layer.name == "q1.hidden1" else 3
        total += products * 2 * _rows(layer, case, BATCH_SIZE) * layer.inputs * layer.outputs
    return total


def nll_flops(case: Case) -> int:
    """Floating-point operations of the matrix products of one image's NLL."""
    return sum(2 * _rows(layer, case, 1) * layer.inputs * layer.outputs for layer in network(case.latent))


def unit_flops(case: Case) -> int:
    """Floating-point operations of one unit of the case's work: an update, or an image."""
    return nll_flops(case) if case.is_nll else step_flops(case)
