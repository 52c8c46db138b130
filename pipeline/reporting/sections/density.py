"""Does the objective make a better density model? Burda's tables, and every objective in Burda's setting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from pipeline.data.catalogue import DATASETS
from pipeline.experiments.known import BURDA_FROM_SCRATCH, BURDA_TABLE1, BURDA_TABLE2, BURDA_TABLE3, EVERY_OBJECTIVE
from pipeline.published import Place, Setting, burda_experiment, burda_table, published_at, published_value
from pipeline.records.metrics import ACTIVE_VARIANCE
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import (
    DATASET_NAMES,
    NOT_RUN,
    Cell,
    Cells,
    dataset_name,
    estimate,
    find,
    first_stage,
    gather,
    layers_name,
    objective_name,
    setting_name,
    with_parameter,
)
from pipeline.reporting.evidence.claims import Effect, Term, contrast
from pipeline.reporting.evidence.verdicts import IN_CAPTIONS
from pipeline.reporting.forms.drawing import (
    BURDA_EXPERIMENTS,
    BURDA_KS,
    GRID,
    INK,
    MARKERS,
    SMALL,
    Figure,
    MissingFigure,
    colour_of,
    finish,
    first_seeds,
    heatmap,
    legend_handles,
    open_canvas,
    panel_title,
    whole_numbers,
)
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.section import Section, folded, shown
from pipeline.reporting.forms.tables import (
    Row,
    Table,
    beyond_rows,
    build_table,
    dropped_columns,
    images_note,
    our_units,
    published_units,
)
from pipeline.reporting.report import Report
from pipeline.reporting.sections import active_units as threshold
from pipeline.reporting.sections import depth
from pipeline.reporting.sections.ais import ais_tables, gains_table

CHARDATA_VARIANT = "chardata.mat"
"""Burda et al.'s file of OMNIGLOT, as `training.data.variant` names it."""
EVERY_OBJECTIVE_SETTINGS = (
    Setting("ciwae", 1, 5, 0.5),
    Setting("ciwae", 1, 50, 0.5),
    Setting("miwae", 5, 10),
    Setting("piwae", 5, 10),
)


def omniglot_note(rows: Iterable[Row]) -> str:
    """Says where the OMNIGLOT runs of a table do not have Burda's own file; ends in a space where it says anything."""
    runs = [run for row in rows if row.cell for run in row.cell.finished if run.spec.dataset == "omniglot"]
    named = (run.training.get("data", {}).get("variant") for run in runs)
    variants = {variant for variant in named if variant is not None} - {CHARDATA_VARIANT}
    if not variants:
        return ""
    used = ", ".join(sorted(variants))
    return f"OMNIGLOT here is {used}: not the file {CHARDATA_VARIANT} that the paper's numbers rest on. "


def burda(cells: Cells, experiment: str, scale: str) -> Table:
    """Burda's Table 1 or 3: NLL and active units for VAE and IWAE at k = 1, 5, 50."""
    published = burda_table(experiment)
    rows, notes = [], []
    for record in published.to_dict("records"):
        dataset, layers, k = record["dataset"], record["layers"], record["k"]
        setting = Setting.burda(record["objective"], k)
        place = Place(experiment, dataset, layers, setting)
        group = f"{dataset_name(dataset)}, {layers_name(layers)}"
        paper = published_at(place, "nll")
        if record["objective"] == "iwae" and k == 1:
            vae = Place(experiment, dataset, layers, Setting.burda("vae", 1))
            other = published_at(vae, "nll")
            if paper and other and paper.value != other.value:
                notes.append(
                    f"{group}, k = 1: compared with the paper's VAE column ({number(other.value)} / "
                    f"{published_units(vae)}); its IWAE column, the same algorithm, has {number(paper.value)} / "
                    f"{published_units(place)}."
                )
            continue
        name = "VAE = IWAE" if k == 1 else with_parameter(setting)
        rows.append(Row(group, f"{name}, k = {k}", place, find(cells, place), "nll", paper, scale))
    rows += beyond_rows(cells, experiment, rows, ("nll",), scale)
    numeral = experiment.removeprefix("burda-table")
    caption = (
        "Every cell of the table with its error, the paper's value and the verdict.\nNLL in nats (lower is better) and "
        f"active units (bottom layer first). {images_note(cells, experiment)}{omniglot_note(rows)}"
        f"SE: standard error over test images. {IN_CAPTIONS} VAE and IWAE are one algorithm at k = 1: one run."
    )
    fixed = ", MNIST with fixed binarization" if experiment == BURDA_TABLE3 else ""
    title = f"Burda et al., Table {numeral}: density estimation{fixed}"
    return build_table(f"burda_table{numeral}", title, caption, rows, dropped_columns(rows, units=True), notes)


def burda_table2(cells: Cells, scale: str) -> Table:
    """Burda's Table 2: training goes on under the other objective, from weights and optimizer state."""
    rows = []
    published = burda_table(BURDA_TABLE2)
    second_stages = published[published["first_objective"].notna()]
    for record in second_stages.to_dict("records"):
        dataset, layers = record["dataset"], record["layers"]
        first = Setting.burda(record["first_objective"], int(record["first_k"]))
        second = Setting.burda(record["objective"], record["k"])
        second_place = Place(BURDA_TABLE2, dataset, layers, second)
        first_place = Place(BURDA_TABLE1, dataset, layers, first)
        second_cell = find(cells, second_place)
        first_cell = first_stage(cells, second_cell, first_place)
        names = [f"{with_parameter(first)} k = {first.T}", f"{with_parameter(second)} k = {second.T}"]
        group = f"{dataset_name(dataset)}, {layers_name(layers)}: {names[0]}, then {names[1]}"
        for label, place, cell in (
            (f"first stage: {names[0]}", first_place, first_cell),
            (f"second stage: {names[1]}", second_place, second_cell),
        ):
            rows.append(Row(group, label, place, cell, "nll", published_at(place, "nll"), scale))
    rows += beyond_rows(cells, BURDA_TABLE2, rows, ("nll",), scale)
    caption = (
        "A model that goes on under the other objective drifts towards what that one gives: by objective, not by "
        "start.\nNLL in nats (lower is better) and active units after each stage. The second stage starts from the "
        "first one's weights and Adam state and trains under the other objective. "
        f"{images_note(cells, 'burda-table2')}Verdicts as in Table 1."
    )
    title = "Burda et al., Table 2: continuing under the other objective"
    return build_table("burda_table2", title, caption, rows, dropped_columns(rows, units=True), ())


def every_objective(cells: Cells, scale: str) -> Table:
    """The objectives of Rainforth in Burda's setting, where no paper has a number; beside them IWAE at equal T."""
    rows = [
        Row(
            f"{dataset_name(dataset)}, {layers_name(layers)}",
            f"{setting_name(setting)}, T = {setting.T}",
            place := Place(EVERY_OBJECTIVE, dataset, layers, setting),
            find(cells, place),
            "nll",
            None,
            scale,
        )
        for dataset in ("mnist", "omniglot")
        for layers in (1, 2)
        for setting in EVERY_OBJECTIVE_SETTINGS
    ]
    rows += beyond_rows(cells, EVERY_OBJECTIVE, rows, ("nll",), scale)
    caption = (
        "Below zero in the last column is better than IWAE with as many samples.\nNLL in nats, lower is better. The "
        "last column is the NLL minus IWAE's at the same T ± its standard error, paired by test image. "
        f"{images_note(cells, 'every-objective')}"
        f"{omniglot_note(rows)}"
    )
    drop = [*dropped_columns(rows, units=True), "paper", "difference", "90 % interval", "paper's units"]
    table = build_table("every_objective", "Every objective in Burda's setting", caption.strip(), rows, drop, ())
    to_iwae = [_minus_iwae(cells, row) for row in rows]
    data = table.data.copy()
    data["minus_iwae"] = pd.Series([effect.value if effect else None for effect in to_iwae], dtype=float)
    data["minus_iwae_se"] = pd.Series([effect.image_se if effect else None for effect in to_iwae], dtype=float)
    shown = [f"{number(e.value, signed=True)} ± {number(e.image_se)}" if e else DASH for e in to_iwae]
    display = table.display.assign(**{"minus IWAE": shown})
    return Table(table.name, table.title, table.caption, data, display, table.groups, table.greyed, table.notes)


def _minus_iwae(cells: Cells, row: Row) -> Effect | None:
    iwae = Place(BURDA_TABLE1, row.place.dataset, row.place.layers, Setting("iwae", 1, row.place.setting.T))
    return contrast((Term(1, row.place, row.cell), Term(-1, iwae, find(cells, iwae))), "nll")


def _burda_rows(cells: Cells, dataset: str, layers: int) -> dict[str, dict[int, Cell]]:
    """Row heading (objective and parameter) -> T -> cell, of the experiments in Burda's setting."""
    rows: dict[str, dict[int, Cell]] = {}
    for place, place_cells in cells.items():
        if (place.dataset, place.layers) == (dataset, layers) and place.experiment in BURDA_EXPERIMENTS:
            rows.setdefault(with_parameter(place.setting), {}).setdefault(place.setting.T, place_cells[0])
    return rows


def cell_in_burda(cells: Cells, dataset: str, layers: int, objective: str, k: int) -> Cell | None:
    """The run of an objective in Burda's setting; at one sample every objective is the VAE."""
    heading = "VAE" if k == 1 else objective
    return _burda_rows(cells, dataset, layers).get(heading, {}).get(k)


@dataclass(frozen=True)
class _Line:
    """A row of Burda's Table 1 or 3: what is shown, and the exact numbers."""

    group: str
    shown: dict[str, str]
    record: dict[str, Any]
    greyed: tuple[str, ...]
    """Headings of what is still on its way."""
    best: str | None
    """Heading of the lower NLL; None where the two are equal or one is missing."""


def _beside(cells: Cells, under_way: Cells, experiment: str, dataset: str, layers: int, k: int) -> _Line:
    """VAE beside IWAE at one k."""
    shown: dict[str, str] = {"k": str(k)}
    record: dict[str, Any] = {"dataset": dataset, "layers": layers, "k": k}
    values: dict[str, float] = {}
    greyed: list[str] = []
    for objective in ("VAE", "IWAE"):
        place = Place(experiment, dataset, layers, Setting.burda(objective.lower(), k))
        cell, paper = cell_in_burda(cells, dataset, layers, objective, k), published_at(place, "nll")
        ours = estimate(cell, "nll")
        if ours:
            values[objective] = ours.value
        elif cell is None and (on_its_way := cell_in_burda(under_way, dataset, layers, objective, k)):
            cell, ours = on_its_way, estimate(on_its_way, "nll")
            greyed += [f"{objective}: {what}" for what in ("NLL", "active units")]
        nll, printed = number(ours.value if ours else None), number(paper.value if paper else None)
        shown[f"{objective}: NLL"] = f"{nll} ({printed})"
        shown[f"{objective}: active units"] = f"{our_units(cell, layers)} ({published_units(place)})"
        record |= {f"{objective.lower()}_nll": ours.value if ours else None}
        record |= {f"paper_{objective.lower()}_nll": paper.value if paper else None}
    best = f"{min(values, key=values.__getitem__)}: NLL" if len(set(values.values())) > 1 else None
    return _Line(f"{dataset_name(dataset)}, {layers_name(layers)}", shown, record, tuple(greyed), best)


def side_by_side(cells: Cells, experiment: str, under_way: Cells) -> Table:
    """Burda's Table 1 or 3 as the paper prints it: VAE beside IWAE, ours with the paper's in brackets.

    A cell that is on its way shows what is known of it, greyed.
    """
    published = burda_table(experiment)
    settings = list(dict.fromkeys(zip(published["dataset"], published["layers"], published["k"], strict=True)))
    run = {
        (d, n)
        for d, n, k in settings
        for o in ("VAE", "IWAE")
        for known in (cells, under_way)
        if estimate(cell_in_burda(known, d, n, o, k), "nll")
    }
    lines = [
        _beside(cells, under_way, experiment, *setting)
        for setting in settings
        if not run or (setting[0], setting[1]) in run
    ]
    numeral = experiment.removeprefix("burda-table")
    caption = (
        "Read down for more samples k, across for VAE against IWAE: NLL should fall, active units rise.\n"
        f"Ours, and in brackets the paper's: NLL in nats per image, lower is better, the better of a row in bold. "
        f"{images_note(cells, experiment)}At k = 1 VAE and IWAE are one algorithm and one run. Grey: on its way."
    )
    fixed = ", fixed binarization" if experiment == BURDA_TABLE3 else ""
    return Table(
        f"table{numeral}",
        f"Burda et al., Table {numeral}{fixed}, ours (the paper's)",
        caption,
        pd.DataFrame([line.record for line in lines]),
        pd.DataFrame([line.shown for line in lines]),
        tuple(line.group for line in lines),
        frozenset((i, heading) for i, line in enumerate(lines) for heading in line.greyed),
        best=frozenset((i, line.best) for i, line in enumerate(lines) if line.best is not None),
    )


OBJECTIVE_OF_ROW = {"VAE": "vae", "IWAE": "iwae", "CIWAE(β=0.5)": "ciwae", "MIWAE": "miwae", "PIWAE": "piwae"}
"""Heading of a row in Burda's setting -> objective."""
DODGE = 0.09


def objectives_figure(cells: Cells) -> Figure:
    """NLL against that of VAE with one sample, and active units, over k for every objective; ours and the paper's."""
    name, title = "objectives", "What does each objective gain from more samples?"
    data = _objectives_data(cells)
    panels = list(dict.fromkeys(zip(data["dataset"], data["layers"], strict=True)))
    run = [panel for panel in panels if data[_of_panel(data, panel)]["gain"].notna().any()]
    panels = run or panels
    data = data[[pair in panels for pair in zip(data["dataset"], data["layers"], strict=True)]]
    # At k = 1 all objectives are one run: an objective that has no more than that shows nothing of its own.
    more = data[(data["k"] > 1) & data[["gain", "paper_gain"]].notna().any(axis=1)]
    data = data[data["objective"].isin(more["objective"])]
    with open_canvas(name, min(10.8, 1.2 + 2.6 * max(2, len(panels))), 4.6) as canvas:
        axes = canvas.subplots(2, len(panels), sharex=True, squeeze=False)
        for column, panel in enumerate(panels):
            panel_rows = data[_of_panel(data, panel)]
            for ax, (ours, error, paper) in zip(
                axes[:, column],
                (("gain", "gain_half_width", "paper_gain"), ("units", None, "paper_units")),
                strict=True,
            ):
                _objective_lines(ax, panel_rows, ours, error, paper)
            axes[0, column].set_title(panel_title(*panel))
            axes[0, column].axhline(0, color=INK, lw=0.8)
            axes[1, column].set_xlabel("samples k (T = M × K)")
            whole_numbers(axes[1, column].yaxis)
        axes[0, 0].set_ylabel("NLL minus that of\nVAE, k = 1 (nats)")
        axes[1, 0].set_ylabel("active units\n(all layers)")
        known = [objective for objective in OBJECTIVE_OF_ROW if (data["objective"] == objective).any()]
        canvas.legend(
            handles=legend_handles([OBJECTIVE_OF_ROW[heading] for heading in known]),
            loc="outside lower center",
            ncols=7,
        )
        caption = (
            "Further down is better: compare how far the lines of IWAE and of VAE fall as k grows.\n"
            "NLL minus the NLL of VAE with one sample, ours minus ours and the paper's minus the paper's, with 95 % "
            "intervals over test images, paired. MIWAE and PIWAE have M = 5 groups of K = 10 samples."
        )
        return finish(canvas, name, title, caption, data)


def _of_panel(data: pd.DataFrame, panel: tuple[str, int]) -> pd.Series[bool]:
    return (data["dataset"] == panel[0]) & (data["layers"] == panel[1])


def _objectives_data(cells: Cells) -> pd.DataFrame:
    rows = []
    for dataset in DATASETS:
        experiment = burda_experiment(dataset)
        for layers in (1, 2):
            base = Place(experiment, dataset, layers, Setting("vae", 1, 1))
            reference = Term(-1, base, cell_in_burda(cells, dataset, layers, "VAE", 1))
            paper_base = published_at(base, "nll")
            for heading, objective in OBJECTIVE_OF_ROW.items():
                for k in BURDA_KS:
                    place = Place(experiment, dataset, layers, Setting.burda(objective, k))
                    cell = cell_in_burda(cells, dataset, layers, heading, k)
                    effect = contrast((Term(1, place, cell), reference), "nll")
                    units = estimate(cell, "active_units")
                    paper = published_at(place, "nll") if objective in ("vae", "iwae") else None
                    paper_units = [published_at(place, f"active_units_{layer}") for layer in range(1, layers + 1)]
                    rows.append(
                        {
                            "dataset": dataset,
                            "layers": layers,
                            "objective": heading,
                            "k": k,
                            "gain": effect.value if effect else None,
                            "gain_half_width": 1.96 * effect.image_se if effect else None,
                            "units": units.value if units else None,
                            "paper_gain": paper.value - paper_base.value if paper and paper_base else None,
                            "paper_units": sum(u.value for u in paper_units if u)
                            if paper and all(paper_units)
                            else None,
                        }
                    )
    numbers = ["gain", "gain_half_width", "units", "paper_gain", "paper_units"]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def _objective_lines(ax: Axes, data: pd.DataFrame, ours: str, error: str | None, paper: str) -> None:
    for i, (heading, objective) in enumerate(OBJECTIVE_OF_ROW.items()):
        curve = data[data["objective"] == heading]
        x = np.arange(len(curve)) + DODGE * (i - 2)
        style: dict[str, Any] = {"color": colour_of(objective), "marker": MARKERS[objective], "ms": 5}
        for key, more in ((paper, {"mfc": "none", "ls": ":", "lw": 1}), (ours, {"lw": 1.4})):
            known = curve[key].notna().to_numpy()
            bars = None if error is None or key != ours else curve[error].to_numpy()[known]
            ax.errorbar(x[known], curve[key].to_numpy()[known], yerr=bars, **style, **more)
    ax.set_xticks(range(len(BURDA_KS)), [str(k) for k in BURDA_KS])
    ax.grid(axis="y", color=GRID)


def difference_heatmap(cells: Cells) -> Figure | MissingFigure:
    """Ours minus the paper's NLL over every cell of Burda's three tables."""
    name, title = "ours_minus_paper", "Ours minus the paper's NLL, every cell of Burda's tables"
    columns = [("vae", 1), ("vae", 5), ("iwae", 5), ("vae", 50), ("iwae", 50)]
    headings = ["VAE = IWAE\nk = 1", "VAE\nk = 5", "IWAE\nk = 5", "VAE\nk = 50", "IWAE\nk = 50"]
    kinds = [(BURDA_TABLE1, "mnist"), (BURDA_TABLE1, "omniglot"), (BURDA_TABLE3, "fixed-mnist")]
    rows = {
        f"{dataset_name(dataset)}, {layers_name(layers)}": (experiment, dataset, layers)
        for experiment, dataset in kinds
        for layers in (1, 2)
    }
    rows["MNIST, 1 layer, continued\nunder this objective (Table 2)"] = (BURDA_TABLE2, "mnist", 1)
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


def unit_activity(results: list[RunResult], dataset: str) -> Figure | MissingFigure:
    """Histograms of the log-variance of every latent unit's posterior mean, VAE against IWAE."""
    name, title = f"units_{dataset}", f"Activity of latent units: {dataset_name(dataset)}"
    experiments = BURDA_FROM_SCRATCH
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
    # A column that holds no run yet would be empty panels; a project of one's own may have other k than Burda's.
    ks = sorted({run.spec.T for run in runs})
    with open_canvas(name, 1 + 3 * len(ks), 0.4 + 2.2 * len(rows)) as canvas:
        axes = canvas.subplots(len(rows), len(ks), sharex=True, sharey="row", squeeze=False)
        for row, (layers, unit) in zip(axes, rows, strict=True):
            for ax, k in zip(row, ks, strict=True):
                for run in (r for r in runs if (r.spec.layers, r.spec.T) == (layers, k)):
                    variance = np.maximum(run.arrays[f"unit_variance_{unit}"], floor)
                    paper = published_value(run, f"active_units_{unit}")
                    label = f"{objective_name(run.spec.objective)}: {run.metrics[f'active_units_{unit}']:.0f} active"
                    label += f" (paper {paper.value:.0f})" if paper else ""
                    style = {"color": colour_of(run.spec.objective), "alpha": 0.35, "lw": 1.3}
                    sns.histplot(x=np.log10(variance), bins=bins, element="step", label=label, ax=ax, **style)
                ax.axvline(np.log10(ACTIVE_VARIANCE), color=INK, lw=1, ls="--")
                depth = f"{layers_name(layers)}, layer {unit}" if layers > 1 else layers_name(layers)
                ax.set(title=f"{depth}, k = {k}", ylabel="units", xlabel="")
                if ax.get_legend_handles_labels()[0]:
                    ax.legend(
                        fontsize=SMALL, loc="upper left", frameon=True, framealpha=1, edgecolor="none", borderpad=0.1
                    )
        for row in axes:
            # Room for the legend above the bars.
            row[0].set_ylim(0, 1.4 * row[0].get_ylim()[1])
        for ax in axes[-1]:
            ax.set_xlabel("log10 of the variance of the unit's mean")
        caption = (
            "Right of the dashed line a unit is active: look for two heaps, and how many units lie right.\n"
            "Number of latent units by the variance over images of their posterior mean; the line is at a variance of "
            f"{ACTIVE_VARIANCE}. Beside our counts the paper's. The first seed of each cell."
        )
        return finish(canvas, name, title, caption, data)


def section(report: Report) -> Section:
    """Which objective gives the better NLL: Burda's Tables 1 to 3, other objectives in that setting, active units."""
    cells, scale = report.cells, report.scale
    datasets = tuple(DATASET_NAMES)
    under_way = gather(report.under_way)
    fixed = side_by_side(cells, BURDA_TABLE3, under_way)
    return Section(
        "density",
        "Which objective makes the better density model?",
        "Density",
        "NLL of test images in nats per image, lower is better, and how many latent units are active: Burda et al.'s "
        "three tables, and the objectives of Rainforth et al. in the same setting.",
        (
            *shown(side_by_side(cells, BURDA_TABLE1, under_way), depth.under_way_table(report.under_way)),
            *shown(objectives_figure(cells), depth.series_figure(report)),
            *folded(burda(cells, BURDA_TABLE1, scale), burda_table2(cells, scale)),
            *folded(fixed, burda(cells, BURDA_TABLE3, scale), every_objective(cells, scale)),
            *folded(difference_heatmap(cells) if report.comparable else None),
            *folded(*(unit_activity(report.results, dataset) for dataset in datasets)),
            *folded(threshold.sweep_table(report.results)),
            *folded(*ais_tables(report.results_folder), gains_table(report.results_folder, report.results)),
        ),
    )
