"""How training went: curves against epochs and time, train minus test, what every run's evaluation says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pipeline.experiments.known import RAINFORTH_TABLE1, TWO_DIMENSIONAL
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import (
    DATASET_NAMES,
    Cells,
    dataset_name,
    estimate,
    layers_name,
    objective_name,
    with_parameter,
)
from pipeline.reporting.evidence.claims import OVERFITTING_NATS
from pipeline.reporting.forms.drawing import (
    BURDA_EXPERIMENTS,
    GRID,
    INK,
    SMALL,
    Figure,
    MissingFigure,
    colour_of,
    curve_style,
    decimate,
    finish,
    first_seeds,
    open_canvas,
    plain_log_axis,
    run_order,
)
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.tables import Table, bits_per_dimension, count


def diagnostics(results: list[RunResult]) -> Table:
    """One row per run: pruning, overfitting, effective sample size and active units on the whole test set."""
    rows: list[dict[str, Any]] = []
    for run in results:
        nll, pruned, train = (value_of(run.metrics, metric) for metric in ("nll", "nll_pruned", "train_nll"))
        units = [value_of(run.metrics, f"active_units_test_{layer}") for layer in range(1, run.spec.layers + 1)]
        rows.append(
            {
                "cohort": run.cohort,
                "run": run.spec.name,
                "status": run.status,
                "nll": nll,
                "bits_per_dimension": None if nll is None else bits_per_dimension(nll),
                "pruned_minus_full": pruned - nll if pruned is not None and nll is not None else None,
                "test_minus_train": nll - train if train is not None and nll is not None else None,
                "ess_64": value_of(run.metrics, "ess_64"),
                "bits_sd_nll": value_of(run.metrics, "bits_sd_nll"),
                "active_units_test_1": units[0],
                "active_units_test_2": units[1] if len(units) > 1 else None,
            }
        )
    columns = ["cohort", "run", "status", "nll", "bits_per_dimension", "pruned_minus_full", "test_minus_train"]
    columns += ["ess_64", "bits_sd_nll"]
    data = pd.DataFrame(rows, columns=[*columns, "active_units_test_1", "active_units_test_2"])
    display = pd.DataFrame(
        {
            "run": [row["run"] for row in rows],
            "status": [row["status"] for row in rows],
            "NLL": [number(row["nll"]) for row in rows],
            "bits per dimension": [
                DASH if row["bits_per_dimension"] is None else f"{row['bits_per_dimension']:.4f}" for row in rows
            ],
            "pruned − full": [number(row["pruned_minus_full"], signed=True) for row in rows],
            "test − train": [number(row["test_minus_train"], signed=True) for row in rows],
            "ESS / 64": [number(row["ess_64"]) for row in rows],
            "sd by test bits": [DASH if row["bits_sd_nll"] is None else f"{row['bits_sd_nll']:.3f}" for row in rows],
            "active units, test set": [
                "+".join(count(row[f"active_units_test_{layer}"]) for layer in range(1, run.spec.layers + 1))
                for row, run in zip(rows, results, strict=True)
            ],
        }
    )
    caption = (
        "One row per run.\nNLL in nats, and as bits per pixel. Pruned − full: change of the NLL when inactive units "
        "are removed (Burda: below 0.06). Test − train: NLL on test minus on training images (Burda: 0.62 to 0.79 on "
        "MNIST, 2.39 to 2.65 on OMNIGLOT). ESS / 64: mean effective sample size of 64 posterior samples as a share of "
        "64. Sd by test bits: what one draw of the test set's bits moves the NLL by (standard deviation, nats), where "
        "it was measured. Active units here are counted on the whole test set, in the tables above on Burda's 500 "
        "training images."
    )
    groups = tuple(run.cohort for run in results)
    return Table("diagnostics", "What else was measured of every run?", caption, data, display, groups)


def _curves(runs: list[RunResult]) -> pd.DataFrame:
    """One row per run and kept point: epoch, bound, elbo, iwae in nats per training image."""
    frames = []
    for run in runs:
        steps = run.arrays["history/step"]
        positive = np.flatnonzero(steps > 0)
        kept = positive[decimate(steps[positive])]
        history = {key: run.arrays[f"history/{key}"][kept] for key in ("epoch", "bound", "elbo", "iwae")}
        frames.append(pd.DataFrame({"cohort": run.cohort, "run": run.spec.name, **history}))
    return pd.concat(frames, ignore_index=True)


SWEPT = ("miwae", "piwae", "ciwae")
CURVE_TITLES = {"bound": "training bound", "elbo": "ELBO", "iwae": "IWAE bound"}


def convergence(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Training curves against epochs in Burda's setting on a dataset."""
    name, title = f"convergence_{dataset}", f"How did training go? {dataset_name(dataset)}"
    runs = first_seeds(results, BURDA_EXPERIMENTS, dataset, "history/step")
    if not runs:
        wanted = "Burda's setting (burda-table1, burda-table3 or every-objective)"
        return MissingFigure(name, title, f"finished runs of {wanted} on {dataset_name(dataset)}")
    depths = sorted({run.spec.layers for run in runs})
    data = _curves(runs)
    with open_canvas(name, 11, 0.5 + 3.0 * len(depths)) as canvas:
        axes = canvas.subplots(len(depths), 3, squeeze=False)
        for row, layers in zip(axes, depths, strict=True):
            runs_of_depth = [run for run in runs if run.spec.layers == layers]
            for ax, (key, heading) in zip(row, CURVE_TITLES.items(), strict=True):
                for run in runs_of_depth:
                    curve = data[(data["cohort"] == run.cohort) & (data["run"] == run.spec.name)]
                    ax.plot(curve["epoch"], smoothed(curve[key]), lw=1.1, **curve_style(run, sweep=False))
                shown = data[data["cohort"].isin({run.cohort for run in runs_of_depth})][key].to_numpy()
                low, high = np.nanpercentile(shown, [12, 100])
                ax.set_ylim(low, high + 0.05 * (high - low))
                ax.set(xscale="log", title=f"{heading}, {layers_name(layers)}", xlabel="epoch")
                plain_log_axis(ax.xaxis)
                ax.grid(color=GRID)
            row[0].set_ylabel("nats per training image")
            row[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=SMALL)
        caption = (
            "Curves that still rise at the right end would gain from more training.\n"
            "Nats per training image against epochs (logarithmic; the steep start is cut off below), means of "
            f"{SMOOTHED} neighbouring points; dotted, dashed, solid: T = 1, 5, 50. The first seed of each cell. The "
            "papers print no curves to compare with."
        )
        return finish(canvas, name, title, caption, data)


def sweep_convergence(results: list[RunResult]) -> Figure | MissingFigure:
    """Training curves of Rainforth's sweep as differences to IWAE's, a panel a family."""
    name, title = "convergence_rainforth", "How did training go, beside IWAE's? (T = 64)"
    runs = first_seeds(results, (RAINFORTH_TABLE1,), "mnist", "history/step")
    iwae = next((run for run in runs if run.spec.objective == "iwae"), None)
    families = [family for family in SWEPT if any(run.spec.objective == family for run in runs)]
    if iwae is None or not families:
        wanted = "IWAE(1, 64) and at least one MIWAE, PIWAE or CIWAE of rainforth-table1"
        return MissingFigure(name, title, f"finished runs of {wanted}")
    data = _curves(runs)
    reference = data[data["run"] == iwae.spec.name]["iwae"].to_numpy()
    with open_canvas(name, 3.6 * len(families), 3.6) as canvas:
        axes = canvas.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for ax, family in zip(axes, families, strict=True):
            for run in (run for run in runs if run.spec.objective in (family, "vae")):
                curve = data[(data["cohort"] == run.cohort) & (data["run"] == run.spec.name)]
                if len(curve) == len(reference):
                    difference = smoothed(curve["iwae"] - reference)
                    ax.plot(curve["epoch"], difference, lw=1.2, **curve_style(run, sweep=True))
            ax.axhline(0, color=INK, lw=0.8)
            ax.set(xscale="log", title=objective_name(family), xlabel="epoch")
            plain_log_axis(ax.xaxis)
            ax.grid(color=GRID)
            ax.legend(fontsize=SMALL)
        axes[0].set_ylabel("IWAE-64 bound minus that of\nIWAE(1, 64), nats per image")
        caption = (
            "Above the line a setting is ahead of IWAE at that moment of training.\n"
            "The bound of all 64 samples on training images minus that of the run that trains on it, means of "
            f"{SMOOTHED} neighbouring points; lighter: larger M or β. The first seed of each cell. The papers print no "
            "curves to compare with."
        )
        return finish(canvas, name, title, caption, data)


def smoothed(values: pd.Series[float]) -> pd.Series[float]:
    """Means of neighbouring points of a training curve."""
    return values.rolling(SMOOTHED, center=True, min_periods=1).mean()


SMOOTHED = 9
"""Points of a training curve that are averaged: each is of one batch."""


def _gaps(cells: Cells) -> list[dict[str, Any]]:
    """Test NLL minus training NLL, nats, of every cell of Burda's networks that has both, in the order of the rows."""
    rows: list[dict[str, Any]] = []
    for place, place_cells in cells.items():
        test, train = estimate(place_cells[0], "nll"), estimate(place_cells[0], "train_nll")
        if test is None or train is None or place.experiment not in (*BURDA_EXPERIMENTS, TWO_DIMENSIONAL):
            continue
        errors = [run.metrics.get("train_nll_se") for run in place_cells[0].finished]
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
                "rank": run_order(place_cells[0].finished[0]),
                "gap": test.value - train.value,
                "standard_error": se,
            }
        )
    return sorted(rows, key=lambda row: (list(DATASET_NAMES).index(row["dataset"]), row["experiment"], row["rank"]))


def _gap_panel(ax: Axes, gaps: list[dict[Any, Any]], dataset: str) -> None:
    """The gaps of a dataset, a row a cell, over the range that Burda et al. report."""
    if dataset in OVERFITTING_NATS:
        low, high = OVERFITTING_NATS[dataset]
        band = f"paper: {low} to {high}"
        ax.axvspan(low, high, color=colour_of("ciwae"), alpha=0.35, lw=0, label=band)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    labels = []
    for y, row in enumerate(gaps):
        error = None if pd.isna(row["standard_error"]) else 1.96 * row["standard_error"]
        ax.errorbar(row["gap"], y, xerr=error, fmt="o", ms=4.5, lw=1.2, color=colour_of(row["objective"]))
        network = "2 latent units" if row["experiment"] == TWO_DIMENSIONAL else layers_name(row["layers"])
        labels.append(f"{row['setting']}, {network}")
    ax.set_yticks(range(len(gaps)), labels, fontsize=SMALL)
    ax.set_ylim(len(gaps) - 0.4, -0.6)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_title(dataset_name(dataset), loc="left")
    ax.grid(axis="x", color=GRID)


def generalization_gap(results: list[RunResult], cells: Cells) -> Figure | MissingFigure:
    """Test NLL minus training NLL of every cell that has both, beside the paper's range."""
    name, title = "train_minus_test", "Do the models overfit?"
    rows = _gaps(cells)
    if not rows:
        return MissingFigure(name, title, "finished runs evaluated on training images (evaluation: train_images)")
    data = pd.DataFrame(rows).drop(columns="rank")
    datasets = list(dict.fromkeys(data["dataset"]))
    heights = [int((data["dataset"] == dataset).sum()) for dataset in datasets]
    counts = sorted({round(run.evaluation["train_images"]) for run in results if run.evaluation.get("train_images")})
    with open_canvas(name, 8.6, 1.1 + 0.24 * sum(heights) + 0.6 * len(datasets)) as canvas:
        axes = canvas.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, dataset in zip(axes, datasets, strict=True):
            _gap_panel(ax, data[data["dataset"] == dataset].to_dict("records"), dataset)
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
    title = f"What does a bound cost in time? {f'T = {T}, ' if sweep else ''}{dataset_name(dataset)}"
    experiments = (RAINFORTH_TABLE1,) if sweep else BURDA_EXPERIMENTS
    every = first_seeds(results, experiments, dataset, "history/seconds")
    # A run that was over before its clock showed anything has no point to draw.
    curves = {run.cell: curve for run in every if np.isfinite((curve := _time_curve(run))["iwae"]).any()}
    runs = [run for run in every if run.cell in curves]
    if not runs:
        wanted = RAINFORTH_TABLE1 if sweep else "Burda's setting"
        return MissingFigure(name, title, f"finished runs of {wanted} on {dataset_name(dataset)}")
    depths = sorted({run.spec.layers for run in runs})
    longest = max(float(curve["seconds"].max()) for curve in curves.values())
    units = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    unit = next((unit for unit, seconds in units.items() if longest >= 2 * seconds), "seconds")
    with open_canvas(name, 5.2 * len(depths) + (0 if len(depths) > 1 else 1.5), 3.9) as canvas:
        axes = canvas.subplots(1, len(depths), squeeze=False)[0]
        for ax, layers in zip(axes, depths, strict=True):
            runs_of_depth = [run for run in runs if run.spec.layers == layers]
            for run in runs_of_depth:
                curve = curves[run.cell]
                ax.plot(curve["seconds"] / units[unit], curve["iwae"], lw=1.1, **curve_style(run, sweep))
            shown = np.concatenate([curves[run.cell]["iwae"].to_numpy() for run in runs_of_depth])
            low, high = np.nanpercentile(shown, [12, 100])
            ax.set(ylim=(low, high + 0.05 * (high - low)), xscale="log", xlabel=f"{unit} of training")
            plain_log_axis(ax.xaxis)
            ax.set_title(layers_name(layers))
            ax.grid(color=GRID)
        axes[0].set_ylabel("IWAE bound, nats per training image")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=SMALL)
        devices = ", ".join(dict.fromkeys(str(run.training.get("device", "?")) for run in runs))
        caption = (
            "Compare where curves stand at equal time: more samples cost more time a step.\n"
            "The bound with all T samples against wall time (logarithmic; the steep start is cut off below; means of "
            f"{SMOOTHED} neighbouring points), on {devices}. Runs that train as one stack on a GPU share their clock; "
            "on a CPU each run has a core. First seed of each cell. The papers print no times to compare with."
        )
        frames = [curve.assign(cohort=run.cohort, run=run.spec.name) for run in runs for curve in [curves[run.cell]]]
        return finish(canvas, name, title, caption, pd.concat(frames, ignore_index=True))


def _time_curve(run: RunResult) -> pd.DataFrame:
    steps: NDArray[Any] = run.arrays["history/step"]
    positive = np.flatnonzero((steps > 0) & (run.arrays["history/seconds"] > 0))
    kept = positive[decimate(steps[positive])] if len(positive) else positive
    smooth = smoothed(pd.Series(run.arrays["history/iwae"][kept]))
    return pd.DataFrame({"seconds": run.arrays["history/seconds"][kept], "iwae": smooth})
