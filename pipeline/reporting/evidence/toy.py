"""The numbers of Rainforth's Gaussian toy, as its stage wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.array_files import read_arrays
from pipeline.files import read_object
from pipeline.records.results import ARRAYS, METRICS, TOY
from pipeline.records.sums import check_sums


@dataclass(frozen=True)
class ToyResult:
    """What the `toy` stage wrote; see `pipeline.evaluation.gaussian_toy.measure_toy`."""

    metrics: dict[str, float]
    arrays: dict[str, NDArray[Any]]

    @property
    def samples(self) -> NDArray[np.int64]:
        return np.asarray(self.arrays["samples"])

    def rms(self, key: str) -> NDArray[np.float64]:
        """Root mean square over parameters of the measured SNR, unbiased in the square [samples]; NaN below zero."""
        squares = np.asarray(self.arrays[f"{key}/square"], dtype=np.float64)
        return np.sqrt(np.where(squares > 0, squares, np.nan))

    def rms_error(self, key: str) -> NDArray[np.float64]:
        return np.asarray(self.arrays[f"{key}/square_se"] / (2 * self.rms(key)))

    def closed_form(self, key: str) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.square(self.arrays[f"{key}/snr_closed_form"].astype(np.float64)).mean(1)))


def load_toy(results: Path) -> ToyResult | None:
    """The toy's numbers under `reports/<scale>/results`; None before its stage has run."""
    folder = results / TOY
    if not (folder / METRICS).exists():
        return None
    remedy = f"run `python -m stages.toy {results.parent.name}`, or `git checkout {folder}` where it is committed"
    check_sums(folder, (ARRAYS, METRICS), remedy)
    return ToyResult(read_object(folder / METRICS, remedy), read_arrays(folder / ARRAYS, remedy))
