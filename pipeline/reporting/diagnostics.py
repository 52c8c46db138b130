"""Figures of how estimates and training behave: bias of log-means, train minus test, convergence in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline.reporting.cells import (
    DATASET_NAMES,
    Cells,
    dataset_name,
    estimate,
    layers_name,
    with_parameter,
)
from pipeline.reporting.drawing import (
    BURDA_EXPERIMENTS,
    Figure,
    MissingFigure,
    colour_of,
    curve_style,
    decimate,
    finish,
    first_seeds,
    open_canvas,
    run_order,
)
from pipeline.reporting.latent_space import model_name, shown_runs
from pipeline.reporting.statistics import log_normal_bias
from pipeline.results import RunResult

SIGMAS = {0.5: "#56B4E9", 1.0: "#009E73", 2.0: "#CC79A7"}
"""Standard deviations of log w in the toy, and their colours."""
STYLES = {"VAE k = 1": ":", "IWAE k = 5": "--", "IWAE k = 50": "-"}
PAPER_GAPS = {"mnist": (0.62, 0.79), "omniglot": (2.39, 2.65)}
"""Test NLL minus training NLL, nats: the range that Burda et al. (2016), section 5 give over their models."""
BIAS_PANELS = (
    ("burda-table1", "MNIST, 1 layer: {} test images", 1.0),
    ("two-dimensional", "MNIST, 2 latent units: the {} test\nimages with the steadiest weights", 0.5),
)
"""Experiment, heading with room for the number of images, and the share of them: those of the steadiest w."""
FEWEST_GROUPS = 8
"""A bound with K samples is shown where the samples make at least so many groups of K."""
SMOOTHED = 9
"""Points of a training curve that are averaged: each is of one batch."""


def log_mean_bias(results: list[RunResult]) -> Figure | MissingFigure:
    """The bias of log-means against K, for log-normal weights and for trained models, with the predicted 1/K slope."""
    name, title = "log_mean_bias", "Bias of log-mean estimates against K"
    panels = [
        (heading, share, runs)
        for experiment, heading, share in BIAS_PANELS
        if (runs := shown_runs(results, experiment, "mnist", "bound_gaps"))
    ]
    if not panels:
        return MissingFigure(name, title, "finished runs of burda-table1 or two-dimensional on MNIST")
    records = []
    with open_canvas(name, 3.7 * (1 + len(panels)), 4.4) as canvas:
        toy, *others = canvas.subplots(1, 1 + len(panels), squeeze=False)[0]
        for sigma, colour in SIGMAS.items():
            known = log_normal_bias(sigma)
            predicted = known.relative_variance / (2 * known.K)
            toy.errorbar(known.K, -known.bias, yerr=2 * known.standard_error, fmt="o", ms=3.5, lw=1, color=colour)
            toy.plot(known.K, predicted, color=colour, lw=1, ls="--")
            end = (float(known.K[-1]), -float(known.bias[-1]))
            toy.annotate(f"σ = {sigma:g}", end, (-6, 9), textcoords="offset points", color=colour)
            columns = {"panel": "toy", "model": f"sigma {sigma:g}", "K": known.K, "gap": -known.bias}
            records.append(pd.DataFrame({**columns, "predicted": predicted}))
        _bias_axes(toy, "log-normal w with E[w] = 1", "−E[log of the mean of K weights], nats")
        for ax, (heading, share, runs) in zip(others, panels, strict=True):
            drawn = [_trained_bias(ax, run, share) for run in runs]
            records += drawn
            _bias_axes(ax, heading.format(drawn[0]["images"].iat[0]), "log p̂ − IWAE-K bound, nats")
        handles = [
            Line2D([], [], color="#333333", marker="o", ms=3.5, ls="", label="toy, simulated"),
            Line2D([], [], color="#333333", ls="--", lw=1, label="toy, predicted Var(w) / (2 K E[w]²)"),
        ]
        handles += [
            Line2D([], [], color=colour_of(run.spec.objective), ls=STYLES[model_name(run)], label=model_name(run))
            for run in panels[0][2]
        ]
        handles.append(Line2D([], [], color="#999999", lw=0.9, label="trained models, predicted"))
        canvas.legend(handles=handles, loc="outside lower center", ncols=3)
        data = pd.concat(records, ignore_index=True)
        caption = (
            "The log of a mean of K weights falls short of the log of their expectation by about Var(w) / (2 K E[w]²) "
            "once K exceeds the relative variance Var(w) / E[w]²: a line of slope −1 here. Left: weights whose mean is "
            "known; the wider they spread (σ of log w), the later they meet the line. Middle and right: bounds of "
            "trained models against log p̂, from the same samples. Where the relative variance exceeds the K's shown, "
            "the prediction (grey) does not hold yet: the gap is far from it and falls more slowly than 1/K; where "
            "weights are steady the gap meets it. The grey lines have 1/K − 1/N for 1/K, N the samples of log "
            "p̂, which has that bias itself. The papers give no numbers for this."
        )
        return finish(canvas, name, title, caption, data)


def _bias_axes(ax: Axes, heading: str, label: str) -> None:
    ax.set(xscale="log", yscale="log", title=heading, xlabel="K", ylabel=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
    ax.grid(color="#eeeeee")


def _trained_bias(ax: Axes, run: RunResult, share: float) -> pd.DataFrame:
    """Draw one model's gap over the images with the smallest relative variance of w, and return its numbers."""
    variance, gaps = run.arrays["relative_variance"].astype(float), run.arrays["bound_gaps"].astype(float)
    chosen = np.argsort(variance, kind="stable")[: max(1, round(share * len(variance)))]
    K = 2 ** np.arange(gaps.shape[1])
    K = K[run.metrics["num_samples"] >= K * FEWEST_GROUPS]
    gap = gaps[chosen, : len(K)].mean(0)
    predicted = variance[chosen].mean() / 2 * (1 / K - 1 / run.metrics["num_samples"])
    style: dict[str, Any] = {"ls": STYLES[model_name(run)]}
    shown = predicted < 40 * gap.max()
    ax.plot(K[shown], predicted[shown], color="#999999", lw=0.9, **style)
    ax.plot(K, np.where(gap > 0, gap, np.nan), color=colour_of(run.spec.objective), lw=1.6, **style)
    columns = {
        "panel": run.experiment,
        "cohort": run.cohort,
        "run": run.spec.name,
        "model": model_name(run),
        "images": len(chosen),
        "K": K,
    }
    return pd.DataFrame({**columns, "gap": gap, "predicted": predicted})


def generalization_gap(results: list[RunResult], cells: Cells) -> Figure | MissingFigure:
    """Test NLL minus training NLL of every cell that has both, beside the paper's range."""
    name, title = "train_minus_test", "Training minus test log-likelihood"
    rows: list[dict[str, Any]] = []
    for place, found in cells.items():
        test, train = estimate(found[0], "nll"), estimate(found[0], "train_nll")
        if test is None or train is None or place.experiment not in (*BURDA_EXPERIMENTS, "two-dimensional"):
            continue
        errors = [run.metrics.get("train_nll_se") for run in found[0].finished]
        known = [error for error in errors if error is not None]
        # The two errors are over different images; over seeds of one cell they are shared.
        se = float(np.hypot(test.se or 0.0, np.mean(known))) if known else None
        rows.append(
            {
                "experiment": place.experiment,
                "dataset": place.dataset,
                "layers": place.layers,
                "setting": f"{with_parameter(place.setting)}, k = {place.setting.T}",
                "objective": place.setting.objective,
                "rank": run_order(found[0].finished[0]),
                "gap": test.value - train.value,
                "standard_error": se,
            }
        )
    if not rows:
        return MissingFigure(name, title, "finished runs evaluated on training images (evaluation: train_images)")
    rows.sort(key=lambda row: (list(DATASET_NAMES).index(row["dataset"]), row["experiment"], row["rank"]))
    data = pd.DataFrame(rows).drop(columns="rank")
    datasets = list(dict.fromkeys(data["dataset"]))
    heights = [int((data["dataset"] == dataset).sum()) for dataset in datasets]
    counts = sorted({round(run.evaluation["train_images"]) for run in results if run.evaluation.get("train_images")})
    with open_canvas(name, 8.6, 1.1 + 0.24 * sum(heights) + 0.6 * len(datasets)) as canvas:
        axes = canvas.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, dataset in zip(axes, datasets, strict=True):
            own = data[data["dataset"] == dataset].reset_index(drop=True)
            if dataset in PAPER_GAPS:
                low, high = PAPER_GAPS[dataset]
                band = f"paper: {low} to {high}"
                ax.axvspan(low, high, color=colour_of("ciwae"), alpha=0.35, lw=0, label=band)
                ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
            for y, row in enumerate(own.to_dict("records")):
                error = None if pd.isna(row["standard_error"]) else 1.96 * row["standard_error"]
                ax.errorbar(row["gap"], y, xerr=error, fmt="o", ms=4.5, lw=1.2, color=colour_of(row["objective"]))
            labels = [
                f"{row['setting']}, " + ("2 latent units" if row["experiment"] == "two-dimensional" else depth)
                for row in own.to_dict("records")
                for depth in [layers_name(row["layers"])]
            ]
            ax.set_yticks(range(len(own)), labels, fontsize=7.5)
            ax.set_ylim(len(own) - 0.4, -0.6)
            ax.axvline(0, color="#333333", lw=0.8)
            ax.set_title(dataset_name(dataset), loc="left")
            ax.grid(axis="x", color="#eeeeee")
        axes[-1].set_xlabel("test NLL − training NLL, nats")
        caption = (
            "How much better the models know their training images: test NLL minus NLL on training images, by the same "
            f"estimator ({', '.join(map(str, counts))} training images, evenly spaced, binarized once). Right of zero: "
            "overfitting. Bars: 95 % intervals from the images on both sides, which models share: differences between "
            "models are much surer than a bar is short. Orange band: the range that Burda et al. report over their "
            "models."
        )
        return finish(canvas, name, title, caption, data)


def convergence_in_time(results: list[RunResult], dataset: str, T: int | None = None) -> Figure | MissingFigure:
    """The IWAE bound on training images against wall time: Burda's setting, or Rainforth's sweep when T is given."""
    sweep = T is not None
    name = "convergence_time_rainforth" if sweep else f"convergence_time_{dataset}"
    title = f"Convergence in time: {f'T = {T}, ' if sweep else ''}{dataset_name(dataset)}"
    experiments = ("rainforth-table1",) if sweep else BURDA_EXPERIMENTS
    runs = first_seeds(results, experiments, dataset, "history/seconds")
    if not runs:
        wanted = "rainforth-table1" if sweep else "Burda's setting"
        return MissingFigure(name, title, f"finished runs of {wanted} on {dataset_name(dataset)}")
    depths = sorted({run.spec.layers for run in runs})
    curves = {run.cell: _time_curve(run) for run in runs}
    longest = max(float(curve["seconds"].max()) for curve in curves.values())
    units = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    unit = next((unit for unit, seconds in units.items() if longest >= 2 * seconds), "seconds")
    with open_canvas(name, 5.2 * len(depths) + (0 if len(depths) > 1 else 1.5), 3.9) as canvas:
        axes = canvas.subplots(1, len(depths), squeeze=False)[0]
        for ax, layers in zip(axes, depths, strict=True):
            own = [run for run in runs if run.spec.layers == layers]
            for run in own:
                curve = curves[run.cell]
                ax.plot(curve["seconds"] / units[unit], curve["iwae"], lw=1.1, **curve_style(run, sweep))
            shown = np.concatenate([curves[run.cell]["iwae"].to_numpy() for run in own])
            low, high = np.nanpercentile(shown, [12, 100])
            ax.set(ylim=(low, high + 0.05 * (high - low)), xscale="log", xlabel=f"{unit} of training")
            ax.set_title(layers_name(layers))
            ax.grid(color="#eeeeee")
        axes[0].set_ylabel("IWAE bound, nats per training image")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
        devices = ", ".join(dict.fromkeys(str(run.training.get("device", "?")) for run in runs))
        caption = (
            "The bound with all T samples against wall time (logarithmic; the steep start is cut off below; means of "
            f"{SMOOTHED} neighbouring points), on {devices}. Runs that train as one stack on a GPU share their clock; "
            "on a CPU each run has a core. More samples cost more time a step: compare where curves stand at equal "
            "time. First seed of each cell. The papers print no times to compare with."
        )
        frames = [curve.assign(cohort=run.cohort, run=run.spec.name) for run in runs for curve in [curves[run.cell]]]
        return finish(canvas, name, title, caption, pd.concat(frames, ignore_index=True))


def _time_curve(run: RunResult) -> pd.DataFrame:
    steps: NDArray[Any] = run.arrays["history/step"]
    positive = np.flatnonzero((steps > 0) & (run.arrays["history/seconds"] > 0))
    kept = positive[decimate(steps[positive])] if len(positive) else positive
    smooth = pd.Series(run.arrays["history/iwae"][kept]).rolling(SMOOTHED, center=True, min_periods=1).mean()
    return pd.DataFrame({"seconds": run.arrays["history/seconds"][kept], "iwae": smooth})
