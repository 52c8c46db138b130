"""What do the samples do to the bound? The bias of log-means, and how evenly samples are weighted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline.experiments.known import BURDA_TABLE1, RAINFORTH_TABLE1, TWO_DIMENSIONAL
from pipeline.published import Setting
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import (
    DATASET_NAMES,
    dataset_name,
    layers_name,
    setting_name,
    with_parameter,
)
from pipeline.reporting.evidence.statistics import RESAMPLING_SEED, log_normal_bias
from pipeline.reporting.forms.drawing import (
    BURDA_EXPERIMENTS,
    GRID,
    INK,
    MARKERS,
    OTHER_COLOUR,
    SMALL,
    Figure,
    MissingFigure,
    colour_of,
    finish,
    first_seeds,
    open_canvas,
    plain_log_axis,
)
from pipeline.reporting.forms.section import Section, folded, shown
from pipeline.reporting.report import Report
from pipeline.reporting.sections.posterior import model_name, shown_runs

SIGMAS = {0.5: "o", 1.0: "s", 2.0: "^"}
"""Standard deviations of log w in the toy, and their markers."""
STYLES = {"VAE k = 1": ":", "IWAE k = 5": "--", "IWAE k = 50": "-"}
BIAS_PANELS = (
    (BURDA_TABLE1, "MNIST, 1 layer: {} test images", 1.0),
    (TWO_DIMENSIONAL, "MNIST, 2 latent units: the {} test\nimages with the steadiest weights", 0.5),
)
"""Experiment, heading with room for the number of images, and the share of them: those of the steadiest w."""
FEWEST_GROUPS = 8
"""A bound with K samples is shown where the samples make at least so many groups of K."""


SHOWN_SIGMA = 1.5
"""Standard deviation of log w where the two ways of averaging are shown."""
MOST_WEIGHTS = 64
DRAWS = 2**17


def log_mean(results: list[RunResult]) -> Figure:
    """Averaging M logarithms beside averaging K weights: for known weights, and for trained models on MNIST."""
    name, title = "log_mean", "Why average inside the logarithm?"
    runs = shown_runs(results, BURDA_TABLE1, "mnist", "bound_gaps")
    counts = 2 ** np.arange(int(np.log2(MOST_WEIGHTS)) + 1)
    records = []
    with open_canvas(name, 9.6 if runs else 5.4, 3.9) as canvas:
        axes = canvas.subplots(1, 2 if runs else 1, squeeze=False)[0]
        for objective, label, average in (
            ("vae", "mean of M logs", _mean),
            (
                "iwae",
                "log of a mean of K weights",
                lambda log_w: np.logaddexp.reduce(log_w, 1) - np.log(log_w.shape[1]),
            ),
        ):
            intervals = [_of_estimates(average(_log_weights(int(count)))) for count in counts]
            mean, low, high = (np.array([one[key] for one in intervals]) for key in ("mean", "low", "high"))
            colour = colour_of(objective)
            axes[0].fill_between(counts, low, high, color=colour, alpha=0.18, lw=0)
            axes[0].plot(counts, mean, color=colour, marker=MARKERS[objective], ms=5, label=label)
            columns = {"panel": "known weights", "what": label, "samples": counts, "estimate_minus_truth": mean}
            records.append(pd.DataFrame({**columns, "low": low, "high": high}))
        axes[0].set(title=f"known weights (σ of log w = {SHOWN_SIGMA:g})", ylabel="estimate minus log p(x), nats")
        for run in runs:
            gap = -run.arrays["bound_gaps"].astype(float).mean(0)[: len(counts)]
            style: dict[str, Any] = {"color": colour_of(run.spec.objective), "ls": STYLES[model_name(run)]}
            axes[1].plot(counts, gap, lw=1.6, label=model_name(run), **style)
            axes[1].axhline(gap[0], lw=0.8, **style)
            columns = {"panel": "trained", "cohort": run.cohort, "run": run.spec.name, "what": model_name(run)}
            records.append(pd.DataFrame({**columns, "samples": counts, "estimate_minus_truth": gap}))
        if runs:
            axes[1].plot([], [], color=INK, lw=0.8, label="flat: mean of M logs")
            axes[1].set(title="trained models, MNIST, 1 layer", ylabel="bound minus log p̂, nats")
        for ax in axes:
            ax.axhline(0, color=INK, lw=0.8)
            ax.set_xscale("log", base=2)
            ax.set_xticks(counts, [str(count) for count in counts])
            ax.set_xlabel("samples, M or K")
            ax.grid(color=GRID)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        caption = (
            "Averaging M logarithms steadies the estimate but leaves it equally far below log p(x); averaging K "
            "weights inside the logarithm closes the gap.\n"
            "Left: log-normal weights whose mean is known, bands hold 90 % of "
            f"{DRAWS:,} single estimates. Right: thick, the bound with K samples inside the logarithm; thin and flat, "
            "with M outside: the same ELBO whatever M is. Averages over up to 100 test images."
        )
        return finish(canvas, name, title, caption, pd.concat(records, ignore_index=True))


def _log_weights(samples: int) -> NDArray[np.float64]:
    """log w of log-normal weights with mean 1, [DRAWS, samples]; the same numbers at every call."""
    rng = np.random.default_rng([RESAMPLING_SEED, samples])
    return SHOWN_SIGMA * rng.standard_normal((DRAWS // samples, samples)) - SHOWN_SIGMA**2 / 2


def _mean(log_w: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(log_w.mean(1))


def _of_estimates(values: NDArray[np.float64]) -> dict[str, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def log_mean_bias(results: list[RunResult]) -> Figure | MissingFigure:
    """The bias of log-means against K, for log-normal weights and for trained models, with the predicted 1/K slope."""
    name, title = "log_mean_bias", "How fast does the gap close?"
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
        for sigma, marker in SIGMAS.items():
            known = log_normal_bias(sigma)
            predicted = known.relative_variance / (2 * known.K)
            toy.errorbar(
                known.K, -known.bias, yerr=2 * known.standard_error, fmt=marker, ms=4, lw=1, color=OTHER_COLOUR
            )
            toy.plot(known.K, predicted, color=OTHER_COLOUR, lw=1, ls="--")
            end = (float(known.K[-1]), -float(known.bias[-1]))
            toy.annotate(f"σ = {sigma:g}", end, (-6, 9), textcoords="offset points")
            columns = {"panel": "toy", "model": f"sigma {sigma:g}", "K": known.K, "gap": -known.bias}
            records.append(pd.DataFrame({**columns, "predicted": predicted}))
        _bias_axes(toy, "log-normal w with E[w] = 1", "−E[log of the mean of K weights], nats")
        for ax, (heading, share, runs) in zip(others, panels, strict=True):
            drawn = [_trained_bias(ax, run, share) for run in runs]
            records += drawn
            _bias_axes(ax, heading.format(drawn[0]["images"].iat[0]), "log p̂ − IWAE-K bound, nats")
        handles = [
            Line2D([], [], color=INK, marker="o", ms=3.5, ls="", label="toy, simulated"),
            Line2D([], [], color=INK, ls="--", lw=1, label="toy, predicted Var(w) / (2 K E[w]²)"),
        ]
        handles += [
            Line2D([], [], color=colour_of(run.spec.objective), ls=STYLES[model_name(run)], label=model_name(run))
            for run in panels[0][2]
        ]
        handles.append(Line2D([], [], color="#999999", lw=0.9, label="trained models, predicted"))
        canvas.legend(handles=handles, loc="outside lower center", ncols=3)
        data = pd.concat(records, ignore_index=True)
        caption = (
            "Once K exceeds the relative variance of the weights the gap halves when K doubles; before, it closes more "
            "slowly.\n"
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
    plain_log_axis(ax.yaxis)
    ax.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
    ax.grid(color=GRID)


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


def ess_violins(results: list[RunResult], dataset: str, T: int | None = None) -> Figure | MissingFigure:
    """Distribution over test images of the effective sample size of 64 samples, as a share of 64."""
    sweep = T is not None
    name = "ess_rainforth" if sweep else f"ess_{dataset}"
    title = f"How evenly are samples weighted? {f'T = {T}, ' if sweep else ''}{dataset_name(dataset)}"
    experiments = (RAINFORTH_TABLE1,) if sweep else BURDA_EXPERIMENTS
    runs = first_seeds(results, experiments, dataset, "ess_64")
    if not runs:
        wanted = RAINFORTH_TABLE1 if sweep else "Burda's setting"
        return MissingFigure(name, title, f"finished runs of {wanted} on {dataset_name(dataset)}")
    depths = sorted({run.spec.layers for run in runs})
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    data = pd.DataFrame(
        [
            {
                "cohort": run.cohort,
                "run": run.spec.name,
                "mean": run.arrays["ess_64"].mean(),
                **{f"quantile_{q:g}": np.quantile(run.arrays["ess_64"], q) for q in shares},
            }
            for run in runs
        ]
    )
    most = max(sum(run.spec.layers == layers for run in runs) for layers in depths)
    # A violin that is alone is no wider than one of many.
    with open_canvas(name, min(10.5, 2.2 + 1.1 * most), 0.4 + 2.9 * len(depths)) as canvas:
        for ax, layers in zip(canvas.subplots(len(depths), 1, squeeze=False)[:, 0], depths, strict=True):
            runs_of_depth = [run for run in runs if run.spec.layers == layers]
            labels = [_short_name(Setting.of(run.spec), sweep) for run in runs_of_depth]
            long = pd.concat(
                [
                    pd.DataFrame({"setting": label, "ess": run.arrays["ess_64"]})
                    for label, run in zip(labels, runs_of_depth, strict=True)
                ]
            )
            palette = {label: colour_of(run.spec.objective) for label, run in zip(labels, runs_of_depth, strict=True)}
            shape: dict[str, Any] = {"inner": "quart", "cut": 0, "density_norm": "width", "linewidth": 0.8}
            sns.violinplot(long, x="setting", y="ess", hue="setting", palette=palette, ax=ax, gridsize=60, **shape)
            top = min(1.0, 1.1 * max(run.arrays["ess_64"].max() for run in runs))
            ax.set(ylim=(0, top), xlabel="", ylabel="ESS / 64", title=layers_name(layers))
            ax.tick_params(axis="x", labelsize=SMALL)
            ax.grid(axis="y", color=GRID)
        caption = (
            "The nearer to 1, the better the encoder fits the posterior: compare VAE with what averages inside the "
            "logarithm.\nEffective sample size of 64 posterior samples divided by 64, one value a test image; dashed: "
            "median, dotted: quartiles; 1/64 is the least. The first seed of each cell."
        )
        return finish(canvas, name, title, caption, data)


def _short_name(setting: Setting, sweep: bool) -> str:
    if sweep:
        return setting_name(setting).replace("(", "\n(")
    return f"{with_parameter(setting)}\nT = {setting.T}".replace("(", "\n(")


def section(report: Report) -> Section:
    """What more samples do to the bound: log-means of weights against their number, and effective sample sizes."""
    datasets = tuple(DATASET_NAMES)
    return Section(
        "bias",
        "What do more samples do to the bound?",
        "Bias",
        "The log of a mean of K weights falls short of log p(x), and less so the larger K is; a mean of M logs falls "
        "short by the same whatever M is.",
        (
            *shown(log_mean(report.results)),
            *folded(log_mean_bias(report.results)),
            *folded(*(ess_violins(report.results, dataset) for dataset in datasets)),
            *folded(ess_violins(report.results, "mnist", T=64)),
        ),
    )
