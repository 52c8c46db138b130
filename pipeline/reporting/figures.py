"""The figures of the report, by section; equal results give equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

mpl.use("Agg")
import seaborn as sns

from pipeline.published import Place, Setting, published_at, published_value
from pipeline.reporting import ablation, diagnostics, latent_space, later, plane
from pipeline.reporting.cells import (
    BETAS,
    METRIC_NAMES,
    NOT_RUN,
    RAINFORTH_METRICS,
    SPLITS,
    Cell,
    Cells,
    dataset_name,
    estimate,
    find,
    layers_name,
    objective_name,
    setting_name,
    with_parameter,
)
from pipeline.reporting.claims import ClaimResult, Term, contrast
from pipeline.reporting.drawing import (
    BURDA_EXPERIMENTS,
    BURDA_KS,
    COLOURS,
    MARKERS,
    Figure,
    FigureSection,
    MissingFigure,
    colour_of,
    curve_style,
    decimate,
    finish,
    first_seeds,
    heatmap,
    open_canvas,
    run_order,
)
from pipeline.reporting.tables import number
from pipeline.results import RunResult

THRESHOLD = 0.01
"""A unit is active when the variance of its posterior mean over images is above this (Burda)."""
UNITS = {
    "nats": "effect in nats",
    "units": "effect in active units",
    "%": "effect in % (logarithmic beyond ±10)",
    "slope": "slope of log SNR in log K, signed as the claim says",
    "ln ratio": "logarithm of a ratio of SNRs",
}
"""Of a claim's effect -> the axis of its panel."""
MONTAGE = 5
"""Samples of a model are shown as a square of so many by so many."""


def claims_forest(decided: list[ClaimResult]) -> Figure | MissingFigure:
    """Effects with their intervals, one line a claim, beside the paper's effects."""
    name, title = "claims", "Claims at a glance"
    known = [result for result in decided if result.effect is not None]
    if not known:
        return MissingFigure(name, title, "the finished runs of any one claim, e.g. VAE and IWAE of burda-table1")
    data = pd.DataFrame(
        {
            "family": [result.family for result in known],
            "claim": [result.statement for result in known],
            "unit": [result.unit for result in known],
            "effect": [result.effect.value for result in known if result.effect],
            "low": [result.low for result in known],
            "high": [result.high for result in known],
            "paper_effect": [result.paper_effect for result in known],
            "paper_verified": [result.paper_verified for result in known],
        }
    )
    units = [unit for unit in UNITS if (data["unit"] == unit).any()]
    heights = [(data["unit"] == unit).sum() + data.loc[data["unit"] == unit, "family"].nunique() for unit in units]
    with open_canvas(name, 9.5, 0.6 * len(units) + 0.2 * sum(heights)) as canvas:
        axes = canvas.subplots(len(units), 1, height_ratios=heights, squeeze=False)[:, 0]
        for ax, unit in zip(axes, units, strict=True):
            _forest(ax, data[data["unit"] == unit])
            ax.set_xlabel(UNITS[unit])
            if unit == "%":
                # From a few percent to some hundred.
                ax.set_xscale("symlog", linthresh=10)
                ax.xaxis.set_major_formatter("{x:g}")
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].legend(handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        caption = (
            "Dot and bar: our effect and the interval that decides the claim; diamond: the paper's effect (grey where "
            "unverified, none where the paper prints no number). Right of the line the effect has the claim's sign. "
            "A panel a unit."
        )
        return finish(canvas, name, title, caption, data)


def _forest(ax: Axes, data: pd.DataFrame) -> None:
    y, ticks, labels = 0, [], []
    for family, rows in data.groupby("family", sort=False):
        ticks.append(y)
        labels.append(str(family))
        for row in rows.to_dict("records"):
            y += 1
            ours, paper = ("ours", "paper") if y == 1 else (None, None)
            error = [[row["effect"] - row["low"]], [row["high"] - row["effect"]]]
            ax.errorbar(row["effect"], y, xerr=error, fmt="o", ms=4, color=COLOURS["iwae"], lw=1.2, label=ours)
            if not pd.isna(row["paper_effect"]):
                colour = COLOURS["ciwae"] if row["paper_verified"] else "#aaaaaa"
                ax.plot(row["paper_effect"], y, "D", ms=4.5, mfc="none", mec=colour, label=paper)
            ticks.append(y)
            labels.append(str(row["claim"]))
        y += 1
    ax.axvline(0, color="#333333", lw=0.8)
    ax.set_yticks(ticks, labels, fontsize=7.5)
    families = set(data["family"])
    for tick in ax.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in families else "normal")
    ax.set_ylim(y - 0.3, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#eeeeee")


def _burda_rows(cells: Cells, dataset: str, layers: int) -> dict[str, dict[int, Cell]]:
    """Row heading (objective and parameter) -> T -> cell, of the experiments in Burda's setting."""
    rows: dict[str, dict[int, Cell]] = {}
    for place, found in cells.items():
        if (place.dataset, place.layers) == (dataset, layers) and place.experiment in BURDA_EXPERIMENTS:
            rows.setdefault(with_parameter(place.setting), {}).setdefault(place.setting.T, found[0])
    return rows


def nll_heatmap(cells: Cells, dataset: str) -> Figure | MissingFigure:
    """NLL over objective x T (k) for both depths of a dataset, the paper's value in every cell that has one."""
    name, title = f"nll_{dataset}", f"NLL by objective and sample count: {dataset_name(dataset)}"
    depths = {layers: _burda_rows(cells, dataset, layers) for layers in (1, 2)}
    if not any(estimate(cell, "nll") for rows in depths.values() for row in rows.values() for cell in row.values()):
        experiment = "burda-table3" if dataset == "fixed-mnist" else "burda-table1 or every-objective"
        return MissingFigure(name, title, f"finished runs of {experiment} on {dataset_name(dataset)}")
    headings = ["VAE", "IWAE"] if dataset == "fixed-mnist" else ["VAE", "IWAE", "CIWAE(β=0.5)", "MIWAE", "PIWAE"]
    headings += sorted({row for rows in depths.values() for row in rows} - set(headings))
    records = []
    with open_canvas(name, 9.5, 1.1 + 0.52 * len(headings)) as canvas:
        for ax, (layers, rows) in zip(canvas.subplots(1, 2), depths.items(), strict=True):
            values = pd.DataFrame(np.nan, index=headings, columns=list(BURDA_KS))
            labels = pd.DataFrame("", index=headings, columns=list(BURDA_KS))
            for heading in headings:
                for k in BURDA_KS:
                    # At one sample every objective is the VAE's.
                    cell = rows.get("VAE" if k == 1 and heading == "IWAE" else heading, {}).get(k)
                    ours = estimate(cell, "nll")
                    experiment = "burda-table3" if dataset == "fixed-mnist" else "burda-table1"
                    setting = Setting.burda(heading.lower(), k)
                    paper = published_at(Place(experiment, dataset, layers, setting), "nll")
                    values.loc[heading, k] = ours.value if ours else np.nan
                    label = _nll_label(heading, k, cell, ours.value if ours else None)
                    labels.loc[heading, k] = f"{label}\npaper {paper.value:.2f}" if paper else label
                    records.append(
                        {
                            "experiment": cell.place.experiment if cell else None,
                            "dataset": dataset,
                            "layers": layers,
                            "objective": heading,
                            "T": k,
                            "nll": ours.value if ours else None,
                            "standard_error": ours.se if ours else None,
                            "paper": paper.value if paper else None,
                        }
                    )
            heatmap(ax, values, labels, cmap="viridis", cbar_kws={"label": "NLL in nats"})
            ax.set(title=layers_name(layers), xlabel="T (samples per image; Burda's k)")
        caption = (
            "Test NLL in nats (darker is better). MIWAE and PIWAE have M = 5 groups of K = 10 samples at T = 50; other "
            "splits are not in the grid, and at T = 1 all objectives are the VAE's."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


def _nll_label(heading: str, k: int, cell: Cell | None, value: float | None) -> str:
    if value is not None:
        return f"{value:.2f}"
    if cell is not None:
        return "diverged"
    if k == 1 and heading not in ("VAE", "IWAE"):
        return "= VAE"
    return "not in grid" if heading in ("MIWAE", "PIWAE") and k == 5 else NOT_RUN


def difference_heatmap(cells: Cells) -> Figure | MissingFigure:
    """Ours minus the paper's NLL over every cell of Burda's three tables."""
    name, title = "ours_minus_paper", "Ours minus the paper's NLL, every cell of Burda's tables"
    columns = [("vae", 1), ("vae", 5), ("iwae", 5), ("vae", 50), ("iwae", 50)]
    headings = ["VAE = IWAE\nk = 1", "VAE\nk = 5", "IWAE\nk = 5", "VAE\nk = 50", "IWAE\nk = 50"]
    kinds = [("burda-table1", "mnist"), ("burda-table1", "omniglot"), ("burda-table3", "fixed-mnist")]
    rows = {
        f"{dataset_name(dataset)}, {layers_name(layers)}": (experiment, dataset, layers)
        for experiment, dataset in kinds
        for layers in (1, 2)
    }
    rows["MNIST, 1 layer, continued\nunder this objective (Table 2)"] = ("burda-table2", "mnist", 1)
    values = pd.DataFrame(np.nan, index=list(rows), columns=headings)
    labels = pd.DataFrame("", index=list(rows), columns=headings)
    records = []
    for row, (experiment, dataset, layers) in rows.items():
        for heading, (objective, k) in zip(headings, columns, strict=True):
            place = Place(experiment, dataset, layers, Setting.burda(objective, k))
            cell, paper = find(cells, place), published_at(place, "nll")
            if paper is None:
                labels.loc[row, heading] = "not in\nthe paper"
                continue
            ours = estimate(cell, "nll")
            if ours:
                values.loc[row, heading] = ours.value - paper.value
                labels.loc[row, heading] = f"{number(ours.value - paper.value, signed=True)}\npaper {paper.value:.2f}"
            else:
                labels.loc[row, heading] = f"{'diverged' if cell else NOT_RUN}\npaper {paper.value:.2f}"
            records.append(
                {
                    "experiment": experiment,
                    "dataset": dataset,
                    "layers": layers,
                    "objective": objective,
                    "k": k,
                    "ours": ours.value if ours else None,
                    "paper": paper.value,
                    "difference": ours.value - paper.value if ours else None,
                }
            )
    if values.isna().to_numpy().all():
        return MissingFigure(name, title, "finished runs of burda-table1, burda-table2 or burda-table3")
    limit = max(1.0, float(values.abs().max().max()))
    with open_canvas(name, 9.5, 4.6) as canvas:
        ax = canvas.subplots()
        bar = {"label": "ours − paper in nats (blue: ours is better)"}
        heatmap(ax, values, labels, cmap="vlag", vmin=-limit, vmax=limit, cbar_kws=bar)
        caption = (
            "Test NLL in nats, ours minus the paper's (blue: lower, better; red: higher, worse); below it the paper's "
            "value. A faithful rerun is pale all over."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


Series = list[tuple[str, float, Setting]]
"""Points of the sweep: tick label, position and setting."""


def _sweeps() -> tuple[dict[str, Series], Series]:
    """Over M for MIWAE and PIWAE (both start as IWAE; only MIWAE ends as VAE), and over beta for CIWAE."""
    iwae, vae = ("1", 1.0, Setting("iwae", 1, 64)), ("64", 64.0, Setting("vae", 64, 1))
    over_m = {
        name: [iwae, *((str(M), float(M), Setting(name, M, K)) for M, K in SPLITS)] for name in ("miwae", "piwae")
    }
    over_m["miwae"].append(vae)
    betas = [(f"{beta:g}", beta, Setting("ciwae", 1, 64, beta)) for beta in BETAS]
    return over_m, [("0", 0.0, iwae[2]), *betas, ("1", 1.0, vae[2])]


def _rainforth_differences(cells: Cells) -> pd.DataFrame:
    """One row a point of the sweep and metric: ours and the paper's difference to IWAE(1, 64) in nats."""

    def term(weight: float, setting: Setting) -> Term:
        place = Place("rainforth-table1", "mnist", 1, setting)
        return Term(weight, place, find(cells, place))

    iwae = Setting("iwae", 1, 64)
    over_m, over_beta = _sweeps()
    records = []
    for metric in RAINFORTH_METRICS:
        paper_iwae = published_at(term(1, iwae).place, metric)
        for family, series in {**over_m, "ciwae": over_beta}.items():
            for label, position, setting in series:
                effect = contrast((term(1, setting), term(-1, iwae)), metric)
                paper = published_at(term(1, setting).place, metric)
                reference = setting == iwae
                records.append(
                    {
                        "metric": metric,
                        "family": family,
                        "label": label,
                        "position": position,
                        "M": setting.M,
                        "K": setting.K,
                        "difference": effect.value if effect else None,
                        "uncertainty": None if not effect else 0.0 if reference else effect.uncertainty,
                        "paper_difference": paper.value - paper_iwae.value if paper and paper_iwae else None,
                        "paper_verified": bool(paper is None or paper.judged),
                    }
                )
    return pd.DataFrame(records).astype({"difference": float, "uncertainty": float, "paper_difference": float})


def _no_sweep(name: str, title: str) -> MissingFigure:
    return MissingFigure(name, title, "IWAE(1, 64) and at least one other finished run of rainforth-table1")


def rainforth_heatmap(cells: Cells) -> Figure | MissingFigure:
    """Three metrics over (M, K) for MIWAE and PIWAE and over beta for CIWAE, as differences to IWAE(1, 64)."""
    name, title = "rainforth_heatmap", "T = 64: difference to IWAE over (M, K) and over β"
    data = _rainforth_differences(cells)
    if data.loc[data["position"] > 1, "difference"].isna().all() and data["difference"].count() < 4:
        return _no_sweep(name, title)
    with open_canvas(name, 10.5, 6.2) as canvas:
        axes = canvas.subplots(3, 2, width_ratios=(7, 5.4), height_ratios=(1, 1, 1))
        for (left, right), metric in zip(axes, RAINFORTH_METRICS, strict=True):
            own = data[data["metric"] == metric]
            limit = max(0.5, float(np.nanmax(np.abs(own["difference"].to_numpy()))))
            for ax, families in ((left, ("miwae", "piwae")), (right, ("ciwae",))):
                part = own[own["family"].isin(families)]
                order = list(dict.fromkeys(part.sort_values("position")["label"]))
                names = [objective_name(family) for family in families]
                values = pd.DataFrame(np.nan, index=names, columns=order)
                labels = pd.DataFrame("not\nin grid", index=names, columns=order)
                for row in part.to_dict("records"):
                    heading, tick = objective_name(row["family"]), str(row["label"])
                    values.loc[heading, tick] = row["difference"]
                    labels.loc[heading, tick] = _difference_label(row)
                label = f"{METRIC_NAMES[metric]}\n− IWAE's (nats)" if ax is right else ""
                bar = {"cbar": ax is right, "cbar_kws": {"label": label}} if ax is right else {"cbar": False}
                heatmap(ax, values, labels, cmap="vlag_r", vmin=-limit, vmax=limit, **bar)
                ax.set_title(f"{METRIC_NAMES[metric]}, nats", loc="left")
            left.set_xticklabels([f"({M}, {64 // M})" for M in (1, 2, 4, 8, 16, 32, 64)])
            left.set_xlabel("(M, K); (1, 64) is IWAE, (64, 1) is VAE" if metric == "kl_q_p" else "")
            right.set_xlabel("β; 0 is IWAE, 1 is VAE" if metric == "kl_q_p" else "")
        caption = (
            "MNIST, 1 layer. Ours minus our IWAE(1, 64) in nats; below it the paper's difference to its own IWAE ((u): "
            "unverified). Blue: better than IWAE."
        )
        return finish(canvas, name, title, caption, data)


def _difference_label(row: Mapping[Hashable, Any]) -> str:
    ours = NOT_RUN.replace(" ", "\n") if pd.isna(row["difference"]) else number(row["difference"], signed=True)
    if (row["M"], row["position"]) in ((1, 0.0), (1, 1.0)):
        return f"{ours.removeprefix('+')}\n(IWAE)"
    if pd.isna(row["paper_difference"]):
        return ours
    doubt = "" if row["paper_verified"] else " (u)"
    return f"{ours}\npaper\n{number(row['paper_difference'], signed=True)}{doubt}"


def rainforth_sweep(cells: Cells) -> Figure | MissingFigure:
    """Rainforth's sweep: each metric's difference to IWAE over M (MIWAE, PIWAE) and over beta (CIWAE)."""
    name, title = "rainforth_sweep", "T = 64: the sweep over M and β"
    data = _rainforth_differences(cells)
    if data["difference"].count() < 4:
        return _no_sweep(name, title)
    with open_canvas(name, 10.5, 5.6) as canvas:
        axes = canvas.subplots(2, 3)
        for column, metric in enumerate(RAINFORTH_METRICS):
            for ax, families in ((axes[0, column], ("miwae", "piwae")), (axes[1, column], ("ciwae",))):
                ax.axhline(0, color="#333333", lw=0.8)
                for family in families:
                    rows = data[(data["metric"] == metric) & (data["family"] == family)].sort_values("position")
                    _sweep_line(ax, rows, family)
                ax.grid(color="#eeeeee")
            axes[0, column].set_xscale("log", base=2)
            axes[0, column].set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
            axes[0, column].set(title=METRIC_NAMES[metric], xlabel="M (K = 64 / M)")
            axes[1, column].set_xlabel("β (0: IWAE, 1: VAE)")
        for row in (0, 1):
            axes[row, 0].set_ylabel("difference to IWAE(1, 64), nats")
            axes[row, 0].legend(fontsize=7.5)
        caption = (
            "Filled: ours, with 95 % intervals; hollow: the paper's values (grey where unverified). Above the line: "
            "better than IWAE. MIWAE ends at M = 64 as VAE(64, 1)."
        )
        return finish(canvas, name, title, caption, data)


def _sweep_line(ax: Axes, rows: pd.DataFrame, family: str) -> None:
    ours, paper = rows.dropna(subset="difference"), rows.dropna(subset="paper_difference")
    style: dict[str, Any] = {"color": colour_of(family), "marker": MARKERS[family], "ms": 5}
    name = objective_name(family)
    ax.errorbar(ours["position"], ours["difference"], yerr=1.96 * ours["uncertainty"], lw=1.2, label=name, **style)
    ax.plot(paper["position"], paper["paper_difference"], ls=":", mfc="none", label=f"{name}, paper", **style)
    doubtful = paper[~paper["paper_verified"]]
    grey = {**style, "color": "#aaaaaa", "mfc": "white"}
    ax.plot(doubtful["position"], doubtful["paper_difference"], ls="", zorder=3, **grey)


def _curves(runs: list[RunResult]) -> pd.DataFrame:
    """One row a run and kept point: epoch, bound, elbo, iwae in nats per training image."""
    frames = []
    for run in runs:
        steps = run.arrays["history/step"]
        positive = np.flatnonzero(steps > 0)
        kept = positive[decimate(steps[positive])]
        history = {key: run.arrays[f"history/{key}"][kept] for key in ("epoch", "bound", "elbo", "iwae")}
        frames.append(pd.DataFrame({"cohort": run.cohort, "run": run.spec.name, **history}))
    return pd.concat(frames, ignore_index=True)


CURVES = {"bound": "training bound", "elbo": "ELBO", "iwae": "IWAE bound"}


def convergence(results: list[RunResult], dataset: str, T: int | None = None) -> Figure | MissingFigure:
    """Training curves against epochs: Burda's setting on a dataset, or Rainforth's sweep when T is given."""
    sweep = T is not None
    name = "convergence_rainforth" if sweep else f"convergence_{dataset}"
    title = f"Convergence: {f'T = {T}, ' if sweep else ''}{dataset_name(dataset)}"
    experiments = ("rainforth-table1",) if sweep else BURDA_EXPERIMENTS
    runs = first_seeds(results, experiments, dataset, "history/step")
    if not runs:
        wanted = "rainforth-table1" if sweep else "Burda's setting (burda-table1, burda-table3 or every-objective)"
        return MissingFigure(name, title, f"finished runs of {wanted} on {dataset_name(dataset)}")
    depths = sorted({run.spec.layers for run in runs})
    data = _curves(runs)
    with open_canvas(name, 11, 0.5 + 3.0 * len(depths)) as canvas:
        axes = canvas.subplots(len(depths), 3, squeeze=False)
        for row, layers in zip(axes, depths, strict=True):
            own = [run for run in runs if run.spec.layers == layers]
            for ax, (key, heading) in zip(row, CURVES.items(), strict=True):
                for run in own:
                    curve = data[(data["cohort"] == run.cohort) & (data["run"] == run.spec.name)]
                    ax.plot(curve["epoch"], curve[key], lw=1.1, **curve_style(run, sweep))
                shown = data[data["cohort"].isin({run.cohort for run in own})][key].to_numpy()
                low, high = np.nanpercentile(shown, [12, 100])
                ax.set_ylim(low, high + 0.05 * (high - low))
                ax.set(xscale="log", title=f"{heading}, {layers_name(layers)}", xlabel="epoch")
                ax.grid(color="#eeeeee")
            row[0].set_ylabel("nats per training image")
            row[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7.5)
        lines = "lighter: larger M or β" if sweep else "dotted, dashed, solid: T = 1, 5, 50"
        caption = (
            f"Nats per training image against epochs (logarithmic; the steep start is cut off below); {lines}. The "
            "first seed of each cell. The papers print no curves to compare with."
        )
        return finish(canvas, name, title, caption, data)


def ess_violins(results: list[RunResult], dataset: str, T: int | None = None) -> Figure | MissingFigure:
    """Distribution over test images of the effective sample size of 64 samples, as a share of 64."""
    sweep = T is not None
    name = "ess_rainforth" if sweep else f"ess_{dataset}"
    title = f"Effective sample size: {f'T = {T}, ' if sweep else ''}{dataset_name(dataset)}"
    experiments = ("rainforth-table1",) if sweep else BURDA_EXPERIMENTS
    runs = first_seeds(results, experiments, dataset, "ess_64")
    if not runs:
        wanted = "rainforth-table1" if sweep else "Burda's setting"
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
    with open_canvas(name, 10.5, 0.4 + 2.9 * len(depths)) as canvas:
        for ax, layers in zip(canvas.subplots(len(depths), 1, squeeze=False)[:, 0], depths, strict=True):
            own = [run for run in runs if run.spec.layers == layers]
            labels = [_short_name(Setting.of(run.spec), sweep) for run in own]
            long = pd.concat(
                [
                    pd.DataFrame({"setting": label, "ess": run.arrays["ess_64"]})
                    for label, run in zip(labels, own, strict=True)
                ]
            )
            palette = {label: colour_of(run.spec.objective) for label, run in zip(labels, own, strict=True)}
            shape: dict[str, Any] = {"inner": "quart", "cut": 0, "density_norm": "width", "linewidth": 0.8}
            sns.violinplot(long, x="setting", y="ess", hue="setting", palette=palette, ax=ax, gridsize=60, **shape)
            top = min(1.0, 1.1 * max(run.arrays["ess_64"].max() for run in runs))
            ax.set(ylim=(0, top), xlabel="", ylabel="ESS / 64", title=layers_name(layers))
            ax.tick_params(axis="x", labelsize=7)
            ax.grid(axis="y", color="#eeeeee")
        caption = (
            "Effective sample size of 64 posterior samples divided by 64, one value a test image; dashed: median, "
            "dotted: quartiles. Nearer to 1 (1/64 is the least): the posterior approximation fits better. The first "
            "seed of each cell."
        )
        return finish(canvas, name, title, caption, data)


def _short_name(setting: Setting, sweep: bool) -> str:
    if sweep:
        return setting_name(setting).replace("(", "\n(")
    return f"{with_parameter(setting)}\nT = {setting.T}".replace("(", "\n(")


def unit_activity(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Histograms of the log-variance of every latent unit's posterior mean, VAE against IWAE."""
    name, title = f"units_{dataset}", f"Activity of latent units: {dataset_name(dataset)}"
    experiments = ("burda-table1", "burda-table3")
    runs = first_seeds(results, experiments, dataset, "unit_variance_1")
    rows = [(1, 1), (2, 1), (2, 2)]
    rows = [(layers, unit) for layers, unit in rows if any(run.spec.layers == layers for run in runs)]
    if not rows:
        return MissingFigure(name, title, f"finished VAE and IWAE runs of Burda's tables on {dataset_name(dataset)}")
    data = pd.concat(
        [
            pd.DataFrame(
                {
                    "cohort": run.cohort,
                    "run": run.spec.name,
                    "layer": unit,
                    "unit": range(len(run.arrays[f"unit_variance_{unit}"])),
                    "variance": run.arrays[f"unit_variance_{unit}"],
                }
            )
            for run in runs
            for unit in range(1, run.spec.layers + 1)
        ],
        ignore_index=True,
    )
    floor = 1e-8
    logs = np.log10(np.maximum(data["variance"].to_numpy(), floor))
    bins = np.linspace(np.floor(logs.min()), np.ceil(logs.max() + 1e-9), 25)
    with open_canvas(name, 10, 0.4 + 2.2 * len(rows)) as canvas:
        axes = canvas.subplots(len(rows), len(BURDA_KS), sharex=True, sharey="row", squeeze=False)
        for row, (layers, unit) in zip(axes, rows, strict=True):
            for ax, k in zip(row, BURDA_KS, strict=True):
                for run in (r for r in runs if (r.spec.layers, r.spec.T) == (layers, k)):
                    variance = np.maximum(run.arrays[f"unit_variance_{unit}"], floor)
                    paper = published_value(run, f"active_units_{unit}")
                    label = f"{objective_name(run.spec.objective)}: {run.metrics[f'active_units_{unit}']:.0f} active"
                    label += f" (paper {paper.value:.0f})" if paper else ""
                    style = {"color": colour_of(run.spec.objective), "alpha": 0.35, "lw": 1.3}
                    sns.histplot(x=np.log10(variance), bins=bins, element="step", label=label, ax=ax, **style)
                ax.axvline(np.log10(THRESHOLD), color="#333333", lw=1, ls="--")
                depth = f"{layers_name(layers)}, layer {unit}" if layers > 1 else layers_name(layers)
                ax.set(title=f"{depth}, k = {k}", ylabel="units", xlabel="")
                if ax.get_legend_handles_labels()[0]:
                    ax.legend(fontsize=7, loc="upper left", frameon=True, framealpha=1, edgecolor="none", borderpad=0.1)
        for row in axes:
            # Room for the legend above the bars.
            row[0].set_ylim(0, 1.4 * row[0].get_ylim()[1])
        for ax in axes[-1]:
            ax.set_xlabel("log10 of the variance of the unit's mean")
        caption = (
            "Number of latent units by the variance over images of their posterior mean; right of the dashed line "
            f"(variance {THRESHOLD}) a unit is active. Beside our counts the paper's. The first seed of each cell."
        )
        return finish(canvas, name, title, caption, data)


def samples(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Images sampled from the prior of Burda's models, 25 a model."""
    name, title = f"samples_{dataset}", f"Samples: {dataset_name(dataset)}"
    runs = first_seeds(results, ("burda-table1", "burda-table3"), dataset, "samples")
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
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#cccccc")
        for run in runs:
            ax = axes[depths.index(run.spec.layers), columns.index(run_order(run)[1:4])]
            tiles = _levels(run).reshape(MONTAGE, MONTAGE, 28, 28)
            ax.imshow(tiles.swapaxes(1, 2).reshape(28 * MONTAGE, 28 * MONTAGE), cmap="gray_r", vmin=0, vmax=15)
            setting = Setting.of(run.spec)
            ax.set_title(f"{with_parameter(setting)}, k = {setting.T}\n{layers_name(run.spec.layers)}", fontsize=8)
        caption = (
            "Pixel means of images decoded from the prior, white 0 to black 1. In the CSV an image is 784 hexadecimal "
            "digits, row by row, 0 to f for 0 to 1."
        )
        return finish(canvas, name, title, caption, data)


def _levels(run: RunResult) -> NDArray[np.int64]:
    """The first samples in 16 grey levels [25, 784], so that they fit in a small text file."""
    images = run.arrays["samples"][: MONTAGE * MONTAGE]
    return np.asarray(np.rint(np.clip(images, 0, 1) * 15), dtype=np.int64)


def all_figures(results: list[RunResult], cells: Cells, decided: list[ClaimResult]) -> dict[str, FigureSection]:
    """Every figure of the report by section: claims, heat maps, curves, diagnostics, beyond the papers."""
    datasets = ("mnist", "omniglot", "fixed-mnist")
    sections: dict[str, tuple[str, list[Callable[[], Figure | MissingFigure]]]] = {
        "claims": ("Claims", [lambda: claims_forest(decided)]),
        "heatmaps": (
            "Heat maps",
            [
                lambda: difference_heatmap(cells),
                *(lambda d=d: nll_heatmap(cells, d) for d in datasets),
                lambda: rainforth_heatmap(cells),
            ],
        ),
        "curves": (
            "Curves",
            [
                lambda: rainforth_sweep(cells),
                *(lambda d=d: convergence(results, d) for d in datasets),
                lambda: convergence(results, "mnist", T=64),
                *(lambda d=d: diagnostics.convergence_in_time(results, d) for d in datasets),
                lambda: diagnostics.convergence_in_time(results, "mnist", T=64),
            ],
        ),
        "diagnostics": (
            "Diagnostics",
            [
                *(lambda d=d: ess_violins(results, d) for d in datasets),
                lambda: ess_violins(results, "mnist", T=64),
                *(lambda d=d: unit_activity(results, d) for d in datasets),
                *(lambda d=d: samples(results, d) for d in datasets),
                *(lambda d=d: latent_space.reconstruction_pictures(results, d) for d in datasets),
                lambda: latent_space.digit_pictures(results),
                lambda: latent_space.posterior_spread(results),
                lambda: latent_space.posterior_contours(results),
                lambda: latent_space.latent_scatter(results),
                lambda: diagnostics.log_mean_bias(results),
                lambda: diagnostics.generalization_gap(results, cells),
            ],
        ),
        "beyond": (
            "Beyond the papers",
            [lambda: later.forest(cells), lambda: ablation.forest(cells), lambda: plane.heatmaps(cells)],
        ),
    }
    made = {}
    for key, (title, recipes) in sections.items():
        drawn = [recipe() for recipe in recipes]
        figures = tuple(figure for figure in drawn if isinstance(figure, Figure))
        made[key] = FigureSection(title, figures, tuple(f for f in drawn if isinstance(f, MissingFigure)))
    return made
