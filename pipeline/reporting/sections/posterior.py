"""Figures of what a model does with single images: posteriors of 2-D models, latent means, reconstructions, digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse, Rectangle
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.data.catalogue import SIDE
from pipeline.experiments.known import BURDA_FROM_SCRATCH, BURDA_TABLE1, TWO_DIMENSIONAL
from pipeline.published import Setting, burda_experiment
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import (
    DATASET_NAMES,
    dataset_name,
    layers_name,
    objective_name,
    run_images,
    with_parameter,
)
from pipeline.reporting.evidence.statistics import ErrorDistribution, bootstrap_deviations
from pipeline.reporting.forms.drawing import (
    GRID,
    INK,
    INNER,
    OUTER,
    SMALL,
    Figure,
    MissingFigure,
    colour_of,
    finish,
    first_seeds,
    open_canvas,
    run_order,
)
from pipeline.reporting.forms.section import Section, folded, shown
from pipeline.reporting.report import Report

SHOWN = (Setting("vae", 1, 1), Setting("iwae", 1, 5), Setting("iwae", 1, 50))
"""The models that the figures compare."""
POINT_COLOUR = "#8a8f96"
"""Of points in a picture of pixels, which keeps its colour in the dark: seen on white and on black."""
GAUSSIAN_MASSES = {sd: 1 - np.exp(-(sd**2) / 2) for sd in (1, 2)}
"""Radius in standard deviations -> probability that a 2-D Gaussian puts within."""
POSTERIOR_COLOURS = (OUTER, INNER)
FRAME = "#c00000"
"""Of a decoded sample that shows another digit than its image."""
DIGIT_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8B4513",
    "#7B3294",
    "#777777",
)
"""The digit is drawn as itself: colour only helps."""


def model_name(run: RunResult, latent: bool = False) -> str:
    """`IWAE k = 5`, and with `latent` also `, 1 layer` or `, 2 latent units`."""
    name = f"{objective_name(run.spec.objective)} k = {run.spec.T}"
    units = "2 latent units" if run.spec.latent == (2,) else layers_name(run.spec.layers)
    return f"{name}, {units}" if latent else name


def shown_runs(results: list[RunResult], experiment: str, dataset: str, array: str, layers: int = 1) -> list[RunResult]:
    """The first seed of VAE k = 1, IWAE k = 5 and 50, of those that have the array."""
    runs = first_seeds(results, (experiment,), dataset, array)
    known = {Setting.of(run.spec): run for run in runs if run.spec.layers == layers}
    return [known[setting] for setting in SHOWN if setting in known]


def mass_levels(log_density: NDArray[np.float64], masses: list[float]) -> list[float]:
    """The density levels (relative to the peak) whose superlevel sets hold these probabilities, on an even grid."""
    density = np.sort(np.exp(log_density.ravel()))[::-1]
    held = np.cumsum(density) / density.sum()
    return [float(density[min(int(np.searchsorted(held, mass)), len(density) - 1)]) for mass in masses]


def _images_row(axes: Sequence[Axes], x: NDArray[Any]) -> None:
    """The images [images, 784] that the posteriors below are of."""
    for ax, image in zip(axes, x, strict=False):
        ax.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", interpolation="none")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("image x")


def _posteriors_of(
    run: RunResult, above: Sequence[Axes], below: Sequence[Axes], labels: NDArray[Any], half: float
) -> list[dict[str, Any]]:
    """Draw a model's posteriors, an image a column, with decoded samples below; returns their numbers, a row an image.

    `labels`: [images], the digits. `half`: half the side of a window, in prior standard deviations.
    """
    records: list[dict[str, Any]] = []
    grids = {key: run.arrays[f"posterior/{key}"].astype(float) for key in GRID_FIELDS}
    for n, (ax, decoded) in enumerate(zip(above, below, strict=True)):
        grid = {key: value[n] for key, value in grids.items()}
        _posterior_panel(ax, grid, half)
        ax.set_title(f"KL(q‖p) = {grid['kl_q_p']:.1f} nats", fontsize=8.5)
        _decoded_row(decoded, run, 2 * n)
        records.append(
            {
                "model": model_name(run),
                "cohort": run.cohort,
                "run": run.spec.name,
                "digit": int(labels[n]),
                **{f"q_mean_{i + 1}": grids["q_mean"][n, i] for i in (0, 1)},
                **{f"q_sd_{i + 1}": grids["q_sd"][n, i] for i in (0, 1)},
                **_posterior_moments(grid),
                "log_p": grids["log_p"][n],
                "kl_q_p": grids["kl_q_p"][n],
            }
        )
    return records


def posterior_contours(results: list[RunResult]) -> Figure | MissingFigure:
    """True posteriors by quadrature beside the encoder's Gaussians, and what q's samples decode to below each."""
    name, title = "posterior_contours", "Is the encoder's q wider than the true posterior?"
    runs = shown_runs(results, TWO_DIMENSIONAL, "mnist", "posterior/log_density")
    if not runs:
        return MissingFigure(name, title, "finished runs of two-dimensional")
    count = len(runs[0].arrays["posterior/log_p"])
    x, labels = runs[0].arrays["pictures/x"][::2], runs[0].arrays.get("pictures/label", np.arange(10))[::2]
    half = common_half_width(runs)
    records: list[dict[str, Any]] = []
    with open_canvas(name, 1.85 * count, 0.9 + 2.3 * len(runs)) as canvas:
        rows = canvas.subplots(1 + 2 * len(runs), count, squeeze=False, height_ratios=[0.4, *[1, 0.26] * len(runs)])
        _images_row(rows[0], x)
        for above, below, run in zip(rows[1::2], rows[2::2], runs, strict=True):
            records += _posteriors_of(run, above, below, labels, half)
            above[0].set_ylabel(model_name(run))
            below[0].set_ylabel("decoded", fontsize=SMALL, rotation=0, ha="right", va="center")
        handles = [
            Rectangle((0, 0), 1, 1, color=POSTERIOR_COLOURS[1], label="true posterior, 39 % of its mass"),
            Rectangle((0, 0), 1, 1, color=POSTERIOR_COLOURS[0], label="86 %"),
            Line2D([], [], color=INK, label="the encoder's q, the same masses (1 and 2 standard deviations)"),
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=3)
        gaps = [float(run.arrays["posterior/kl_q_p"].mean()) for run in runs]
        means = ", ".join(f"{model_name(run)} {gap:.1f}" for run, gap in zip(runs, gaps, strict=True))
        caption = (
            "Compare the ellipses of one column: all panels are windows of one size. The wider q is, the more its "
            "samples differ, and framed ones show another digit.\n"
            "p(h|x) computed on a grid (filled) and the encoder's q(h|x) (ellipses) for the test images on top, MNIST "
            "models with one layer of 2 latent units; below each panel pixel means decoded from six samples of q. "
            "KL(q‖p), "
            f"mean of the {count} images: {means} nats. A window is {2 * half:.1f} prior standard deviations wide, "
            f"centred "
            "between the two; an ellipse may reach beyond it. First seed of each model. The papers print such pictures "
            "but no numbers."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


def common_half_width(runs: list[RunResult]) -> float:
    """Half the side of a window that most posteriors and q's of the models fit in (nine of ten)."""
    needed = []
    for run in runs:
        for center, q_mean, q_sd in zip(
            *(run.arrays[f"posterior/{key}"].astype(float) for key in ("center", "q_mean", "q_sd")), strict=True
        ):
            needed.append(float((np.abs(q_mean - center) + 2 * q_sd).max()))
    return 1.05 * float(np.quantile(needed, 0.9))


def _decoded_row(ax: Axes, run: RunResult, image: int) -> None:
    """What samples of q decode to, side by side; framed where a classifier sees another digit than the label."""
    decoded = run.arrays["pictures/decoded"][image]
    ax.imshow(_tiles(decoded[None]), cmap="gray_r", vmin=0, vmax=255, interpolation="none", aspect="equal")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if "pictures/digits" in run.arrays:
        for j in np.flatnonzero(run.arrays["pictures/digits"][image] != run.arrays["pictures/label"][image]):
            _frame(ax, int(j))


def _frame(ax: Axes, column: int, row: int = 0) -> None:
    corner = (SIDE * column + 0.5, SIDE * row + 0.5)
    ax.add_patch(Rectangle(corner, SIDE - 2, SIDE - 2, fill=False, edgecolor=FRAME, lw=1.1))


def importance(results: list[RunResult]) -> Figure | MissingFigure:
    """Six samples of one image's q in the latent space, what they decode to, and how they are weighted."""
    name, title = "importance", "What does IWAE do with several samples?"
    runs = shown_runs(results, TWO_DIMENSIONAL, "mnist", "pictures/log_w")
    if not runs:
        return MissingFigure(name, title, "finished runs of two-dimensional, evaluated with the weights of samples")
    runs = [runs[0], runs[-1]] if len(runs) > 1 else runs
    image = _telling_image(runs)
    records = []
    with open_canvas(name, 10.8, 2.5 * len(runs)) as canvas:
        axes = canvas.subplots(len(runs), 3, squeeze=False, width_ratios=(1, 1, 2.6))
        for (left, middle, right), run in zip(axes, runs, strict=True):
            _means_in_latent_space(left, run, image)
            left.set_title(model_name(run))
            draw_samples_of_q(middle, run, image)
            middle.set_title("its q, enlarged")
            shares = _weighted_tiles(right, run, image)
            records += [
                {"cohort": run.cohort, "run": run.spec.name, "sample": i + 1, "h1": h[0], "h2": h[1], "weight": share}
                for i, (h, share) in enumerate(zip(run.arrays["pictures/h"][image], shares, strict=True))
            ]
        caption = (
            "VAE asks every sample to explain the image; IWAE weighs them, so that it is enough if one does: read the "
            "weights below the pictures. Framed: a sample that shows another digit.\n"
            "Left: the encoder's means of test images, each drawn as its digit; the ellipses (1 and 2 standard "
            "deviations) are q(h|x) of one image. Middle: the same q with six samples of it, each axis enlarged to "
            "fit. Right: that image, and the pixel means that the samples decode to; below them w = p(x, h) / q(h|x) "
            "as a share of the six. A VAE's gradient gives each sample one sixth whatever its weight. First seed of "
            "each model."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


def _telling_image(runs: list[RunResult]) -> int:
    """The pictured image, of those with a posterior, whose samples are weighted most unevenly by the last model."""
    log_w = runs[-1].arrays["pictures/log_w"].astype(float)[::2]
    return 2 * int(_shares(log_w).max(1).argmax())


def _shares(log_w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Self-normalized weights over the last axis."""
    w = np.exp(log_w - log_w.max(-1, keepdims=True))
    return np.asarray(w / w.sum(-1, keepdims=True))


def _means_in_latent_space(ax: Axes, run: RunResult, image: int) -> None:
    means = run.arrays["latent/mean"].astype(float)
    labels = run.arrays.get("latent/label", np.zeros(len(means), int))
    for digit in range(10):
        points = means[labels == digit]
        ax.scatter(
            points[:, 0],
            points[:, 1],
            marker=f"${digit}$",
            s=14,
            lw=0.1,
            color=POINT_COLOUR,
            alpha=0.5,
            rasterized=True,
        )
    q_mean, q_sd = _draw_q(ax, run, image)
    reach = 1.05 * max(2.0, float(np.abs(means).max()), float((np.abs(q_mean) + 2 * q_sd).max()))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])


def draw_samples_of_q(ax: Axes, run: RunResult, image: int) -> None:
    """The six samples by their numbers, which are far apart only where q alone fills the panel."""
    h = run.arrays["pictures/h"][image].astype(float)
    q_mean, q_sd = _draw_q(ax, run, image)
    ax.plot(*h.T, "o", color=colour_of(run.spec.objective), ms=4)
    for i, (a, b) in enumerate(h, 1):
        ax.annotate(str(i), (a, b), (3, 2), textcoords="offset points", fontsize=SMALL, weight="bold")
    # Room for the number of a sample at the edge.
    reach = 1.2 * np.maximum(2 * q_sd, np.abs(h - q_mean).max(0))
    (left, bottom), (right, top) = q_mean - reach, q_mean + reach
    ax.set(xlim=(left, right), ylim=(bottom, top), box_aspect=1, xticks=[], yticks=[])
    ax.spines[:].set_visible(True)


def _draw_q(ax: Axes, run: RunResult, image: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ellipses at 1 and 2 standard deviations of an image's q; returns its mean and standard deviations."""
    q_mean, q_sd = (run.arrays[f"posterior/{key}"][image // 2].astype(float) for key in ("q_mean", "q_sd"))
    for sd in GAUSSIAN_MASSES:
        ax.add_patch(Ellipse((q_mean[0], q_mean[1]), *(2 * sd * q_sd), fill=False, edgecolor=INK, lw=1.2))
    return q_mean, q_sd


def _weighted_tiles(ax: Axes, run: RunResult, image: int) -> NDArray[np.float64]:
    """Draw the image and its decoded samples with their shares of the weight, which are returned."""
    shares = _shares(run.arrays["pictures/log_w"][image].astype(float))
    tiles = np.concatenate([run.arrays["pictures/x"][image][None], run.arrays["pictures/decoded"][image]])
    ax.imshow(_tiles(tiles[None]), cmap="gray_r", vmin=0, vmax=255, interpolation="none")
    ax.set_xlim(-0.5, SIDE * len(tiles) - 0.5)
    ax.set_ylim(SIDE + 22, -6)
    ax.set_axis_off()
    ax.text(SIDE / 2, SIDE + 6, "x", ha="center")
    for i, share in enumerate(shares, 1):
        middle = SIDE * (i + 0.5)
        ax.text(middle, SIDE + 6, f"{i}: {share:.0%}", ha="center", weight="bold" if share == shares.max() else None)
        ax.add_patch(Rectangle((middle - 10, SIDE + 9), 20 * share, 3, color=colour_of(run.spec.objective)))
    if "pictures/digits" in run.arrays:
        for j in np.flatnonzero(run.arrays["pictures/digits"][image] != run.arrays["pictures/label"][image]):
            _frame(ax, int(j) + 1)
    return shares


GRID_FIELDS = ("center", "radius", "log_density", "q_mean", "q_sd", "log_p", "kl_q_p")


def _window(grid: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    side = grid["radius"] * np.linspace(-1, 1, grid["log_density"].shape[0])
    return grid["center"][0] + side, grid["center"][1] + side


def _posterior_moments(grid: dict[str, Any]) -> dict[str, float]:
    density = np.exp(grid["log_density"])
    density /= density.sum()
    moments: dict[str, float] = {}
    for i, (axis, other) in enumerate(zip(_window(grid), (0, 1), strict=True), 1):
        marginal = density.sum(other)
        mean = float(axis @ marginal)
        moments |= {f"posterior_mean_{i}": mean, f"posterior_sd_{i}": float(np.sqrt((axis - mean) ** 2 @ marginal))}
    return moments


def _posterior_panel(ax: Axes, grid: dict[str, Any], half: float) -> None:
    h1, h2 = _window(grid)
    inner, outer = mass_levels(grid["log_density"], list(GAUSSIAN_MASSES.values()))
    if outer < inner:
        ax.contourf(h1, h2, np.exp(grid["log_density"]), [outer, inner, 1.01], colors=POSTERIOR_COLOURS)
    for sd in GAUSSIAN_MASSES:
        width, height = 2 * sd * grid["q_sd"]
        ax.add_patch(Ellipse(grid["q_mean"], width, height, fill=False, edgecolor=INK, lw=1.3))
    ax.plot(*grid["q_mean"], "+", color=INK, ms=5)
    (a, b), ends = grid["center"], np.array([-half, half])
    ax.set(xlim=tuple(a + ends), ylim=tuple(b + ends), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(True)


def latent_scatter(results: list[RunResult]) -> Figure | MissingFigure:
    """Where the encoder of a 2-D model puts test images, by digit."""
    name, title = "latent_scatter", "Where does the encoder put the digits?"
    runs = shown_runs(results, TWO_DIMENSIONAL, "mnist", "latent/label")
    if not runs:
        return MissingFigure(name, title, "finished runs of two-dimensional, evaluated where digit labels are at hand")
    frames = []
    with open_canvas(name, 3.9 * len(runs), 4.5) as canvas:
        axes = canvas.subplots(1, len(runs), squeeze=False)[0]
        for ax, run in zip(axes, runs, strict=True):
            # Half of them are enough to see, and half as much to keep.
            means, labels = run.arrays["latent/mean"][::2].astype(float), run.arrays["latent/label"][::2]
            for digit, colour in enumerate(DIGIT_COLOURS):
                points = means[labels == digit]
                marker: dict[str, Any] = {"marker": f"${digit}$", "s": 20, "lw": 0.2, "color": colour}
                ax.scatter(points[:, 0], points[:, 1], rasterized=True, **marker)
            for sd in (1, 2):
                ax.add_patch(Circle((0, 0), sd, fill=False, edgecolor="#777777", lw=0.8, ls="--"))
            reach = 1.05 * max(2.0, float(np.abs(means).max()))
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="first latent unit")
            ax.set_title(f"{model_name(run)}\nnearest other image has the same digit: {neighbours(means, labels):.0%}")
            columns = {
                "model": model_name(run),
                "cohort": run.cohort,
                "run": run.spec.name,
                "h1": means[:, 0].round(2),
                "h2": means[:, 1].round(2),
                "digit": labels,
            }
            frames.append(pd.DataFrame(columns))
        axes[0].set_ylabel("second latent unit")
        caption = (
            "Digits that overlap cannot be told apart by the decoder either: look how well they separate.\n"
            f"Mean of q(h|x) of {len(frames[0]):,} MNIST test images, each drawn as its digit; dashed: 1 and 2 "
            "standard deviations of the prior. The "
            "share above a panel says how well digits separate (one tenth would be chance). First seed of each model. "
            "The papers have no such picture."
        )
        return finish(canvas, name, title, caption, pd.concat(frames, ignore_index=True))


def neighbours(points: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Share of points [n, 2] whose nearest other point has the same label."""
    nearest = np.asarray(KDTree(points).query(points, k=2)[1])[:, 1]
    return float((labels[nearest] == labels).mean())


def _tiles(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [rows, columns, 784] as one picture."""
    rows, columns, _ = images.shape
    return images.reshape(rows, columns, SIDE, SIDE).swapaxes(1, 2).reshape(rows * SIDE, columns * SIDE)


def _hexadecimal(images: NDArray[np.uint8]) -> list[str]:
    """Images [n, 784] in 16 grey levels as 784 hexadecimal digits each."""
    digits = np.array(list("0123456789abcdef"))
    return ["".join(row) for row in digits[np.rint(images / 17).astype(int)]]


def reconstruction_pictures(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Test images and what each model makes of them: decoded from the mean of q."""
    name, title = f"reconstructions_{dataset}", f"What does each model make of an image? {dataset_name(dataset)}"
    table = burda_experiment(dataset)
    runs = [
        run
        for experiment, layers in ((TWO_DIMENSIONAL, 1), (table, 1), (table, 2))
        for run in shown_runs(results, experiment, dataset, "pictures/reconstruction", layers)
    ]
    if not runs:
        return MissingFigure(name, title, f"finished runs of Burda's tables on {dataset_name(dataset)}")
    x = runs[0].arrays["pictures/x"]
    rows = [x, *(run.arrays["pictures/reconstruction"] for run in runs)]
    errors = [float(np.mean((run.arrays["pictures/reconstruction"] / 255.0 - x / 255.0) ** 2)) for run in runs]
    names = [f"{model_name(run, latent=True)} ({error:.3f})" for run, error in zip(runs, errors, strict=True)]
    data = pd.DataFrame(
        [
            {"model": heading, "cohort": cohort, "image": i, "pixels": pixels}
            for heading, cohort, images in zip(["x", *names], ["", *(run.cohort for run in runs)], rows, strict=True)
            for i, pixels in enumerate(_hexadecimal(images))
        ]
    )
    with open_canvas(name, 9.0, 0.4 + 0.62 * len(rows)) as canvas:
        # A browser may set the long labels in a wider font.
        canvas.set_layout_engine("constrained", w_pad=0.25)
        ax = canvas.subplots()
        ax.imshow(_tiles(np.stack(rows)), cmap="gray_r", vmin=0, vmax=255, interpolation="none")
        ax.set_xticks([])
        ax.set_yticks([SIDE * (i + 0.5) for i in range(len(rows))], ["test image x", *names])
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        for i in range(1, len(rows)):
            changed = i == 1 or runs[i - 1].spec.latent != runs[i - 2].spec.latent
            ax.axhline(SIDE * i - 0.5, color=INK if changed else "#dddddd", lw=1.0 if changed else 0.5)
        caption = (
            "Compare how sharp the rows are and whether they keep the digit.\n"
            "Top: binarized test images. Below: pixel means decoded from the mean of q(h1|x), white 0 to black 1; in "
            "brackets the mean squared error of the ten, which no bound here is trained on. In the CSV an image is 784 "
            "hexadecimal digits, 0 to f for 0 to 1. The "
            "papers give no numbers for this."
        )
        return finish(canvas, name, title, caption, data)


def digit_pictures(results: list[RunResult]) -> Figure | MissingFigure:
    """Decoded samples of q per digit, those framed in which a classifier sees another digit."""
    name, title = "digit_changes", "Which samples of q change the digit?"
    groups = [shown_runs(results, e, "mnist", "pictures/digits") for e in (BURDA_TABLE1, TWO_DIMENSIONAL)]
    groups = [runs for runs in groups if runs]
    if not groups:
        needs = "finished runs of burda-table1 or two-dimensional on MNIST, evaluated where digit labels are at hand"
        return MissingFigure(name, title, needs)
    records = []
    with open_canvas(name, 8.4, 3.75 * len(groups)) as canvas:
        axes = canvas.subplots(len(groups), len(SHOWN), squeeze=False)
        for row, runs in zip(axes, groups, strict=True):
            for ax in row[len(runs) :]:
                ax.set_axis_off()
            for ax, run in zip(row, runs, strict=False):
                x, decoded = run.arrays["pictures/x"], run.arrays["pictures/decoded"]
                labels, seen = run.arrays["pictures/label"], run.arrays["pictures/digits"]
                tiles = np.concatenate([x[:, None], decoded], axis=1)
                ax.imshow(_tiles(tiles), cmap="gray_r", vmin=0, vmax=255, interpolation="none")
                ax.axvline(SIDE - 0.5, color=INK, lw=1)
                for i, j in np.argwhere(seen != labels[:, None]):
                    corner = (SIDE * (j + 1) + 0.5, SIDE * i + 0.5)
                    frame = Rectangle(corner, SIDE - 2, SIDE - 2, fill=False, edgecolor=FRAME, lw=1.1)
                    ax.add_patch(frame)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(visible=True, color="#cccccc")
                share = run.metrics.get("digit_changes", np.nan)
                ax.set_title(f"{model_name(run, latent=True)}\n{share:.1%} change the digit", fontsize=9)
                records += [
                    {
                        "model": model_name(run, latent=True),
                        "cohort": run.cohort,
                        "digit": int(label),
                        "seen": int(other),
                    }
                    for label, line in zip(labels, seen, strict=True)
                    for other in line
                ]
        run = groups[0][0]
        images = int((run.arrays["digits/image"] == run.arrays["digits/label"]).sum())
        caption = (
            "Framed: a classifier sees another digit than the label. Compare how many are framed with VAE and with "
            "IWAE.\n"
            "Left of the line a test image of each digit, right of it pixel means decoded from samples of q(h1|x). "
            "The shares are of "
            f"{run.arrays['digits/decoded'].shape[1]} samples for each of {images} test images that the classifier "
            "reads rightly (one hidden layer of 160 units, trained on binarized training images; "
            f"{run.metrics['digit_reader_accuracy']:.1%} right on the binarized test set). The claim is that IWAE's "
            "samples change the digit more often than VAE's; the papers give no share."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


SPREAD_PANELS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "log_q_sd": ("spread of q(h|x)\nstandard deviation (prior: 1)", np.exp),
    "decoded_sd": ("spread of decoded samples\nstandard deviation of pixel means", lambda value: value),
    "digit_changes": ("decoded samples that\nchange the digit, %", lambda value: 100 * value),
}
"""Metric -> axis label, and what its mean is shown as."""


def posterior_spread(results: list[RunResult]) -> Figure | MissingFigure:
    """How wide q is, how much its decoded samples vary, and how often they change the digit."""
    name, title = "posterior_spread", "How wide is q, and how often do its samples change the digit?"
    groups = {
        label: runs
        for label, experiment, dataset, layers in (
            ("MNIST, 2 latent units", TWO_DIMENSIONAL, "mnist", 1),
            *(
                (f"{dataset_name(dataset)}, {layers_name(layers)}", BURDA_TABLE1, dataset, layers)
                for dataset in DATASET_NAMES
                for layers in (1, 2)
            ),
        )
        if (runs := shown_runs(results, experiment, dataset, "spread/log_q_sd", layers))
    }
    if not groups:
        return MissingFigure(name, title, "finished runs of two-dimensional or burda-table1")
    records = [
        {"group": label, "model": model_name(run), "cohort": run.cohort, "metric": metric, **_mean_interval(values)}
        for label, runs in groups.items()
        for run in runs
        for metric in SPREAD_PANELS
        if (values := run_images(run, metric)) is not None and len(values)
    ]
    data = pd.DataFrame(records)
    measures = {metric: measure for metric, measure in SPREAD_PANELS.items() if metric in set(data["metric"])}
    styles = {"VAE k = 1": ("vae", "o"), "IWAE k = 5": ("iwae", "s"), "IWAE k = 50": ("iwae", "P")}
    present = {
        label: [model for model in styles if (data.loc[data["group"] == label, "model"] == model).any()]
        for label in groups
    }
    with open_canvas(name, 10, 1.3 + 0.62 * len(groups)) as canvas:
        axes = canvas.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for ax, (metric, (label, shown)) in zip(axes, measures.items(), strict=True):
            for model, (objective, marker) in styles.items():
                intervals = data[(data["metric"] == metric) & (data["model"] == model)]
                if model not in set(data["model"]):
                    continue
                y = [height(list(groups), present, group, model) for group in intervals["group"]]
                low, value, high = (shown(intervals[key].to_numpy()) for key in ("low", "mean", "high"))
                style: dict[str, Any] = {"fmt": marker, "ms": 5, "color": colour_of(objective), "lw": 1.3}
                ax.errorbar(value, y, xerr=[value - low, high - value], label=model, **style)
            ax.set_xlabel(label)
            ax.grid(axis="x", color=GRID)
            # A marker at the edge is whole.
            ax.set_xlim(0, 1.03 * ax.get_xlim()[1])
        axes[0].set_yticks(range(len(groups)), list(groups))
        axes[0].set_ylim(len(groups) - 0.5, -0.5)
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        caption = (
            "Further right: a wider q, samples that decode to more different images, more changed digits.\n"
            "Left: standard deviation of q(h1|x), geometric mean over active units and test images. Middle: standard "
            "deviation over q's samples of the pixel means that they decode to, which does not depend on how the "
            "latent space is scaled. Right: share of those samples in which a classifier sees another digit than in "
            "the image (MNIST). Bars: 95 % bootstrap intervals over test images; first seed "
            "of each model, so that the spread over seeds is not in them. The papers give no numbers for this."
        )
        return finish(canvas, name, title, caption, data)


def height(groups: Sequence[str], present: Mapping[str, Sequence[str]], group: str, model: str) -> float:
    """Where a model's mark stands: the group's models lie around its label, one alone at it."""
    models = present[group]
    return groups.index(group) + 0.22 * (models.index(model) - (len(models) - 1) / 2)


def _mean_interval(values: NDArray[np.float64]) -> dict[str, float]:
    mean = float(values.mean())
    low, high = ErrorDistribution(bootstrap_deviations([values])[0], 0.0).interval(mean, 0.05)
    return {"mean": mean, "low": low, "high": high}


MONTAGE = 4
"""Samples of a model are shown as a square of so many by so many."""


def sample_pictures(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Images sampled from the prior of Burda's models, 25 a model."""
    name, title = f"samples_{dataset}", f"What do the models dream? {dataset_name(dataset)}"
    runs = first_seeds(results, BURDA_FROM_SCRATCH, dataset, "samples")
    if not runs:
        return MissingFigure(name, title, f"finished runs of Burda's tables on {dataset_name(dataset)}")
    columns = sorted({run_order(run)[1:4] for run in runs})
    depths = sorted({run.spec.layers for run in runs})
    digits = np.array(list("0123456789abcdef"))
    data = pd.DataFrame(
        [
            {"cohort": run.cohort, "run": run.spec.name, "sample": i, "pixels": "".join(digits[level])}
            for run in runs
            for i, level in enumerate(_levels(run))
        ]
    )
    with open_canvas(name, 2.0 * len(columns), 2.2 * len(depths)) as canvas:
        axes = canvas.subplots(len(depths), len(columns), squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for run in runs:
            ax = axes[depths.index(run.spec.layers), columns.index(run_order(run)[1:4])]
            ax.set_axis_on()
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#cccccc")
            tiles = _levels(run).reshape(MONTAGE, MONTAGE, SIDE, SIDE)
            ax.imshow(tiles.swapaxes(1, 2).reshape(SIDE * MONTAGE, SIDE * MONTAGE), cmap="gray_r", vmin=0, vmax=15)
            setting = Setting.of(run.spec)
            ax.set_title(f"{with_parameter(setting)}, k = {setting.T}\n{layers_name(run.spec.layers)}", fontsize=8)
        caption = (
            "Compare how many look like something a person would draw.\n"
            "Pixel means of images decoded from the prior, white 0 to black 1. In the CSV an image is 784 hexadecimal "
            "digits, row by row, 0 to f for 0 to 1."
        )
        return finish(canvas, name, title, caption, data)


def _levels(run: RunResult) -> NDArray[np.int64]:
    """The first samples in 16 grey levels [16, 784], so that they fit in a small text file."""
    images = run.arrays["samples"][: MONTAGE * MONTAGE]
    return np.asarray(np.rint(np.clip(images, 0, 1) * 15), dtype=np.int64)


def section(report: Report) -> Section:
    """Whether q is wider under IWAE, and whether its samples change the digit: densities, widths, decoded samples."""
    results, datasets = report.results, tuple(DATASET_NAMES)
    return Section(
        "posterior",
        "Is q wider, and do its samples change the digit?",
        "Posterior",
        "IWAE asks that some of its k samples explain the image, not that every one does: its q may be wider than the "
        "true posterior, and single samples of it may decode to something else.",
        (
            *shown(importance(results), posterior_contours(results), posterior_spread(results)),
            *folded(digit_pictures(results), latent_scatter(results)),
            *folded(*(reconstruction_pictures(results, dataset) for dataset in datasets)),
            *folded(*(sample_pictures(results, dataset) for dataset in datasets)),
        ),
    )
