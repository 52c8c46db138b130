"""Figures of what a model does with single images: posteriors of 2-D models, latent means, reconstructions, digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse, Rectangle
from numpy.typing import NDArray
from scipy.spatial import KDTree

from pipeline.published import Setting
from pipeline.reporting.cells import dataset_name, layers_name, objective_name, run_images
from pipeline.reporting.drawing import COLOURS, Figure, MissingFigure, colour_of, finish, first_seeds, open_canvas
from pipeline.reporting.statistics import ErrorDistribution, bootstrap_deviations
from pipeline.results import RunResult

TWO_DIMENSIONAL = "two-dimensional"
SHOWN = (Setting("vae", 1, 1), Setting("iwae", 1, 5), Setting("iwae", 1, 50))
"""The models that the figures compare."""
GAUSSIAN_MASSES = {sd: 1 - np.exp(-(sd**2) / 2) for sd in (1, 2)}
"""Radius in standard deviations -> probability that a 2-D Gaussian puts within."""
POSTERIOR_COLOURS = ("#c6dbef", "#6baed6")
Q_COLOUR = COLOURS["ciwae"]
PIXELS = 28
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


def posterior_contours(results: list[RunResult]) -> Figure | MissingFigure:
    """True posteriors by quadrature beside the encoder's Gaussians, a row a model, a column a test image."""
    name, title = "posterior_contours", "Posteriors of 2-D models: the true one and the encoder's"
    runs = shown_runs(results, TWO_DIMENSIONAL, "mnist", "posterior/log_density")
    if not runs:
        return MissingFigure(name, title, "finished runs of two-dimensional")
    count = len(runs[0].arrays["posterior/log_p"])
    x, labels = runs[0].arrays["pictures/x"][::2], runs[0].arrays.get("pictures/label", np.arange(10))[::2]
    records = []
    with open_canvas(name, 2.05 * count, 2.3 * len(runs) + 1.4) as canvas:
        top, *axes = canvas.subplots(1 + len(runs), count, squeeze=False, height_ratios=[0.4, *[1] * len(runs)])
        for n, ax in enumerate(top):
            ax.imshow(x[n].reshape(PIXELS, PIXELS), cmap="gray_r", interpolation="none")
            ax.set_axis_off()
        for row, run in zip(axes, runs, strict=True):
            own = {key: run.arrays[f"posterior/{key}"].astype(float) for key in GRID_FIELDS}
            for n, ax in enumerate(row):
                _posterior_panel(ax, {key: value[n] for key, value in own.items()})
                ax.set_title(f"KL(q‖p) = {own['kl_q_p'][n]:.1f} nats", fontsize=8.5)
                records.append(
                    {
                        "model": model_name(run),
                        "cohort": run.cohort,
                        "run": run.spec.name,
                        "digit": int(labels[n]),
                        **{f"q_mean_{i + 1}": own["q_mean"][n, i] for i in (0, 1)},
                        **{f"q_sd_{i + 1}": own["q_sd"][n, i] for i in (0, 1)},
                        **_posterior_moments({key: value[n] for key, value in own.items()}),
                        "log_p": own["log_p"][n],
                        "kl_q_p": own["kl_q_p"][n],
                    }
                )
            row[0].set_ylabel(f"{model_name(run)}\nsecond latent unit")
        for ax in axes[-1]:
            ax.set_xlabel("first latent unit")
        handles = [
            Rectangle((0, 0), 1, 1, color=POSTERIOR_COLOURS[1], label="true posterior, 39 % of its mass"),
            Rectangle((0, 0), 1, 1, color=POSTERIOR_COLOURS[0], label="86 %"),
            Line2D([], [], color=Q_COLOUR, label="encoder's q, the same masses (1 and 2 standard deviations)"),
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=3)
        gaps = [float(run.arrays["posterior/kl_q_p"].mean()) for run in runs]
        caption = (
            "p(h|x) computed on a grid (blue) and the encoder's q(h|x) (orange ellipses) for the test images on top, "
            "MNIST models with one layer of 2 latent units. See how far the ellipses reach: IWAE asks that some of its "
            "k samples meet the posterior, not every one, so that its q may be wider and KL(q‖p) larger "
            f"(mean of the {count} images: "
            + ", ".join(f"{model_name(run)} {gap:.1f}" for run, gap in zip(runs, gaps, strict=True))
            + " nats). The papers print such pictures but no numbers. First seed of each model; panels differ in scale."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


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


def _posterior_panel(ax: Axes, grid: dict[str, Any]) -> None:
    h1, h2 = _window(grid)
    inner, outer = mass_levels(grid["log_density"], list(GAUSSIAN_MASSES.values()))
    if outer < inner:
        ax.contourf(h1, h2, np.exp(grid["log_density"]), [outer, inner, 1.01], colors=POSTERIOR_COLOURS)
    for sd in GAUSSIAN_MASSES:
        width, height = 2 * sd * grid["q_sd"]
        ax.add_patch(Ellipse(grid["q_mean"], width, height, fill=False, edgecolor=Q_COLOUR, lw=1.4))
    ax.plot(*grid["q_mean"], "+", color=Q_COLOUR, ms=5)
    ax.set(xlim=(h1[0], h1[-1]), ylim=(h2[0], h2[-1]), aspect="equal")
    ax.locator_params(nbins=4)
    ax.tick_params(labelsize=7)


def latent_scatter(results: list[RunResult]) -> Figure | MissingFigure:
    """Where the encoder of a 2-D model puts test images, by digit."""
    name, title = "latent_scatter", "Latent space of 2-D models by digit"
    runs = shown_runs(results, TWO_DIMENSIONAL, "mnist", "latent/label")
    if not runs:
        return MissingFigure(name, title, "finished runs of two-dimensional, evaluated where digit labels are at hand")
    frames = []
    with open_canvas(name, 3.9 * len(runs), 4.5) as canvas:
        axes = canvas.subplots(1, len(runs), squeeze=False)[0]
        for ax, run in zip(axes, runs, strict=True):
            means, labels = run.arrays["latent/mean"].astype(float), run.arrays["latent/label"]
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
                "h1": means[:, 0],
                "h2": means[:, 1],
                "digit": labels,
            }
            frames.append(pd.DataFrame(columns))
        axes[0].set_ylabel("second latent unit")
        caption = (
            f"Mean of q(h|x) of {len(frames[0]):,} MNIST test images, each drawn as its digit; dashed: 1 and 2 "
            "standard deviations of the prior. Digits that overlap cannot be told apart by the decoder either. The "
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
    return images.reshape(rows, columns, PIXELS, PIXELS).swapaxes(1, 2).reshape(rows * PIXELS, columns * PIXELS)


def _hexadecimal(images: NDArray[np.uint8]) -> list[str]:
    """Images [n, 784] in 16 grey levels as 784 hexadecimal digits each."""
    digits = np.array(list("0123456789abcdef"))
    return ["".join(row) for row in digits[np.rint(images / 17).astype(int)]]


def reconstruction_pictures(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Test images and what each model makes of them: decoded from the mean of q."""
    name, title = f"reconstructions_{dataset}", f"Reconstructions: {dataset_name(dataset)}"
    table = "burda-table3" if dataset == "fixed-mnist" else "burda-table1"
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
        ax.set_yticks([PIXELS * (i + 0.5) for i in range(len(rows))], ["test image x", *names])
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
        for i in range(1, len(rows)):
            changed = i == 1 or runs[i - 1].spec.latent != runs[i - 2].spec.latent
            ax.axhline(PIXELS * i - 0.5, color="#333333" if changed else "#dddddd", lw=1.0 if changed else 0.5)
        caption = (
            "Top: binarized test images. Below: pixel means decoded from the mean of q(h1|x), white 0 to black 1; in "
            "brackets the mean squared error of the ten, which no bound here is trained on: compare how sharp they are "
            "and whether they keep the digit. In the CSV an image is 784 hexadecimal digits, 0 to f for 0 to 1. The "
            "papers give no numbers for this."
        )
        return finish(canvas, name, title, caption, data)


def digit_pictures(results: list[RunResult]) -> Figure | MissingFigure:
    """Decoded samples of q per digit, those framed in which a classifier sees another digit."""
    name, title = "digit_changes", "Decoded samples of q, and when they change the digit"
    groups = [shown_runs(results, e, "mnist", "pictures/digits") for e in ("burda-table1", TWO_DIMENSIONAL)]
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
                ax.axvline(PIXELS - 0.5, color="#333333", lw=1)
                for i, j in np.argwhere(seen != labels[:, None]):
                    corner = (PIXELS * (j + 1) + 0.5, PIXELS * i + 0.5)
                    frame = Rectangle(corner, PIXELS - 2, PIXELS - 2, fill=False, edgecolor=Q_COLOUR, lw=1.1)
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
            "Left of the line a test image of each digit, right of it pixel means decoded from samples of q(h1|x); "
            "framed: a plain classifier sees another digit than the label. The shares are of "
            f"{run.arrays['digits/decoded'].shape[1]} samples for each of {images} test images that the classifier "
            "reads rightly (one hidden layer of 160 units, trained on binarized training images; "
            f"{run.metrics['digit_reader_accuracy']:.1%} right on the binarized test set). The claim is that IWAE's "
            "samples change the digit more often than VAE's; the papers give no share."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


MEASURES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "log_q_sd": ("spread of q(h|x)\nstandard deviation (prior: 1)", np.exp),
    "decoded_sd": ("spread of decoded samples\nstandard deviation of pixel means", lambda value: value),
    "digit_changes": ("decoded samples that\nchange the digit, %", lambda value: 100 * value),
}
"""Metric -> axis label, and what its mean is shown as."""


def posterior_spread(results: list[RunResult]) -> Figure | MissingFigure:
    """How wide q is, how much its decoded samples vary, and how often they change the digit."""
    name, title = "posterior_spread", "Spread of q: VAE against IWAE"
    groups = {
        label: runs
        for label, experiment, dataset, layers in (
            ("MNIST, 2 latent units", TWO_DIMENSIONAL, "mnist", 1),
            ("MNIST, 1 layer", "burda-table1", "mnist", 1),
            ("MNIST, 2 layers", "burda-table1", "mnist", 2),
            ("OMNIGLOT, 1 layer", "burda-table1", "omniglot", 1),
            ("OMNIGLOT, 2 layers", "burda-table1", "omniglot", 2),
        )
        if (runs := shown_runs(results, experiment, dataset, "spread/log_q_sd", layers))
    }
    if not groups:
        return MissingFigure(name, title, "finished runs of two-dimensional or burda-table1")
    records = [
        {"group": label, "model": model_name(run), "cohort": run.cohort, "metric": metric, **_mean_interval(values)}
        for label, runs in groups.items()
        for run in runs
        for metric in MEASURES
        if (values := run_images(run, metric)) is not None and len(values)
    ]
    data = pd.DataFrame(records)
    styles = {"VAE k = 1": ("vae", "o"), "IWAE k = 5": ("iwae", "s"), "IWAE k = 50": ("iwae", "D")}
    with open_canvas(name, 10, 1.3 + 0.62 * len(groups)) as canvas:
        axes = canvas.subplots(1, len(MEASURES), sharey=True)
        for ax, (metric, (label, shown)) in zip(axes, MEASURES.items(), strict=True):
            for model, (objective, marker) in styles.items():
                own = data[(data["metric"] == metric) & (data["model"] == model)]
                y = [list(groups).index(group) + 0.22 * (list(styles).index(model) - 1) for group in own["group"]]
                low, value, high = (shown(own[key].to_numpy()) for key in ("low", "mean", "high"))
                style: dict[str, Any] = {"fmt": marker, "ms": 5, "color": colour_of(objective), "lw": 1.3}
                if model == "IWAE k = 5":
                    style["mfc"] = "white"
                ax.errorbar(value, y, xerr=[value - low, high - value], label=model, **style)
            ax.set_xlabel(label)
            ax.grid(axis="x", color="#eeeeee")
            ax.set_xlim(left=0)
        axes[0].set_yticks(range(len(groups)), list(groups))
        axes[0].set_ylim(len(groups) - 0.5, -0.5)
        axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        caption = (
            "Left: standard deviation of q(h1|x), geometric mean over active units and test images. Middle: standard "
            "deviation over q's samples of the pixel means that they decode to, which does not depend on how the "
            "latent space is scaled. Right: share of those samples in which a classifier sees another digit than in "
            "the image (MNIST). Further right: a wider q. Bars: 95 % bootstrap intervals over test images; first seed "
            "of each model, so that the spread over seeds is not in them. The papers give no numbers for this."
        )
        return finish(canvas, name, title, caption, data)


def _mean_interval(values: NDArray[np.float64]) -> dict[str, float]:
    mean = float(values.mean())
    low, high = ErrorDistribution(bootstrap_deviations([values])[0], 0.0).interval(mean, 0.05)
    return {"mean": mean, "low": low, "high": high}
