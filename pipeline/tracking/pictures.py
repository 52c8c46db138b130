"""Pictures of a run for its page in MLflow, of the arrays in its results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.catalogue import SIDE
from pipeline.records.metrics import ACTIVE_VARIANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

TIMES = 2
"""How many times as large an image is shown."""
DECODED_ROWS = 8
"""So many decoded samples of each image are shown."""


def pixel_pictures(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Image]:
    """Name -> picture made of pixels, of what the results have."""
    made = {}
    if "samples" in arrays:
        made["samples"] = sample_grid(arrays["samples"])
    if "pictures/x" in arrays:
        made["reconstructions"] = reconstruction_sheet(arrays)
    return made


def figures(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Figure]:
    """Name -> drawn figure, of what the results have."""
    made = {}
    variances = {f"layer {l}": arrays[f"unit_variance_{l}"] for l in (1, 2) if f"unit_variance_{l}" in arrays}
    if variances:
        made["unit_variance"] = variance_histogram(variances)
    if "posterior/log_density" in arrays:
        made["posterior"] = posterior_panels(arrays)
    return made


def tiled(grid: NDArray[np.uint8]) -> Image:
    """[rows, columns, 784] grey levels as one picture."""
    from PIL import Image

    rows, columns, _ = grid.shape
    pixels = grid.reshape(rows, columns, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(rows * SIDE, columns * SIDE)
    size = (TIMES * columns * SIDE, TIMES * rows * SIDE)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def reconstruction_sheet(arrays: Mapping[str, NDArray[Any]]) -> Image:
    """A column for each image: the image, its reconstruction from q's mean, and images decoded from samples of q."""
    rows = [arrays["pictures/x"], arrays["pictures/reconstruction"]]
    rows += list(arrays["pictures/decoded"].transpose(1, 0, 2)[:DECODED_ROWS])
    return tiled(np.stack(rows))


def sample_grid(samples: NDArray[Any]) -> Image:
    """100 samples, pixel means in [0, 1], [100, 784], as a 10 x 10 picture."""
    return tiled(np.rint(255 * samples.reshape(10, 10, -1)).astype(np.uint8))


def variance_histogram(variances: Mapping[str, NDArray[Any]]) -> Figure:
    """Histogram of each layer's log10 Var(E[h|x]), one unit one count, with the threshold of an active unit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    logs = {name: np.log10(np.maximum(values, 1e-12)) for name, values in variances.items()}
    low = min(float(values.min()) for values in logs.values())
    high = max(float(values.max()) for values in logs.values())
    edges = np.linspace(low - 0.1, high + 0.1, 41)
    for name, values in logs.items():
        axes.hist(values, bins=edges.tolist(), alpha=0.6, label=name)
    threshold = math.log10(ACTIVE_VARIANCE)
    axes.axvline(threshold, color="black", linestyle="--", label=f"active above {ACTIVE_VARIANCE}")
    axes.set(xlabel="log10 variance over images of a unit's posterior mean", ylabel="units")
    axes.legend()
    return figure


def posterior_panels(arrays: Mapping[str, NDArray[Any]]) -> Figure:
    """For each image p(h | x) on its grid, and q(h | x) as the ellipses of one and two standard deviations."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

    count = len(arrays["posterior/log_p"])
    figure = Figure(figsize=(2.2 * count, 2.6), layout="constrained")
    for n, axes in enumerate(np.atleast_1d(figure.subplots(1, count))):
        center, radius = arrays["posterior/center"][n], float(arrays["posterior/radius"][n])
        left, right, bottom, top = center[0] - radius, center[0] + radius, center[1] - radius, center[1] + radius
        density = np.exp(arrays["posterior/log_density"][n].astype(float))
        axes.imshow(density, origin="lower", extent=(left, right, bottom, top), cmap="Blues")
        for sds in (1, 2):
            width, height = 2 * sds * arrays["posterior/q_sd"][n]
            axes.add_patch(
                Ellipse(tuple(arrays["posterior/q_mean"][n]), width, height, fill=False, edgecolor="#D55E00")
            )
        axes.set_title(f"KL(q‖p) = {float(arrays['posterior/kl_q_p'][n]):.1f} nats", fontsize=9)
    figure.supxlabel(
        "true posterior (blue), encoder's q at 1 and 2 standard deviations (orange); units 1 and 2", size=9
    )
    return figure
