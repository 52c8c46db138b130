"""Is "IWAE beats VAE" about decoders or about proposals?

The importance-weighted estimate of an NLL looks at a decoder through its own encoder's samples. Annealed importance
sampling looks at the decoder alone. Where the two give the same difference between IWAE and VAE, the decoders differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.experiments.known import BURDA_TABLE1
from pipeline.published import Setting
from pipeline.reporting.evidence.cells import standard_error

VAE, IWAE = Setting.burda("vae", 1), Setting.burda("iwae", 50)


@dataclass(frozen=True)
class Gain:
    """What IWAE k = 50 gains over VAE k = 1 on the same test images, nats, by each way of estimating log p(x)."""

    dataset: str
    layers: int
    seed: int
    images: int
    estimate: float
    estimate_se: float
    ais: float
    ais_se: float
    proposals: float
    """How much more AIS gives than the estimate: above zero, the encoders' proposals hide part of IWAE's gain."""
    proposals_se: float


def gains(opinions: Sequence[Mapping[str, Any]], runs: Mapping[str, Any]) -> list[Gain]:
    """One row per dataset, depth and seed of which both runs were looked at.

    `opinions`: what `python -m stages.ais` wrote; `runs`: `<cohort>/<run>` -> its `RunResult`.
    """
    pairs: dict[tuple[str, int, int], dict[Setting, Mapping[str, Any]]] = {}
    for opinion in opinions:
        run = runs.get(f"{opinion['cohort']}/{opinion['run']}")
        if run is not None and run.experiment == BURDA_TABLE1:
            key = (run.spec.dataset, run.spec.layers, run.spec.seed)
            pairs.setdefault(key, {})[Setting.of(run.spec)] = opinion["images"]
    rows = []
    for (dataset, layers, seed), pair in sorted(pairs.items()):
        if not {VAE, IWAE} <= pair.keys():
            continue
        by = {name: _difference(pair, f"test/{name}") for name in ("estimate", "lower")}
        if len(by["estimate"]) != len(by["lower"]) or not len(by["lower"]):
            continue
        more = by["lower"] - by["estimate"]
        values = (by["estimate"], by["lower"], more)
        numbers = [number for one in values for number in (float(one.mean()), standard_error(one))]
        rows.append(Gain(dataset, layers, seed, len(more), *numbers))
    return rows


def _difference(pair: Mapping[Setting, Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """IWAE minus VAE image by image; nothing where they were looked at on other images."""
    iwae, vae = (np.asarray(pair[setting][name], dtype=np.float64) for setting in (IWAE, VAE))
    return iwae - vae if iwae.shape == vae.shape else np.empty(0)
