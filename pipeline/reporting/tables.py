"""Results as tables: every cell of the papers, run or not, and what was run beyond them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.published import BURDA_TABLES, Place, Published, Setting, burda_table, published_at
from pipeline.reporting.cells import (
    BETAS,
    DIVERGED,
    JUDGED_PROTOCOL,
    METRIC_NAMES,
    NOT_RUN,
    ONE_SEED_NATS,
    OTHER_PROTOCOL,
    RAINFORTH_METRICS,
    SPLITS,
    TOLERANCE,
    Cell,
    Cells,
    dataset_name,
    estimate,
    find,
    first_stage,
    layers_name,
    metric_of,
    setting_name,
    verdict,
    with_parameter,
)
from pipeline.reporting.claims import HOW_DECIDED, ClaimResult, Effect, Term, contrast
from pipeline.results import RunResult

DASH = "–"
CHARDATA = "chardata.mat"
"""Burda et al.'s file of OMNIGLOT, as `training.data.variant` names it."""
UNVERIFIED_NOTE = "(u): the paper's number as remembered, not seen; shown greyed, never judged."
OTHER_PROTOCOL_NOTE = (
    f"{OTHER_PROTOCOL}: trained in another way than Burda et al.'s code ({JUDGED_PROTOCOL}), which made the paper's "
    "numbers; shown beside them, but not judged by them. How the protocols differ is under How it was made."
)
RAINFORTH_SETTINGS = (
    Setting("iwae", 1, 64),
    *(Setting("piwae", M, K) for M, K in SPLITS),
    *(Setting("miwae", M, K) for M, K in SPLITS),
    *(Setting("ciwae", 1, 64, beta) for beta in BETAS),
    Setting("vae", 64, 1),
)
EVERY_OBJECTIVE_SETTINGS = (
    Setting("ciwae", 1, 5, 0.5),
    Setting("ciwae", 1, 50, 0.5),
    Setting("miwae", 5, 10),
    Setting("piwae", 5, 10),
)


@dataclass(frozen=True)
class Table:
    """A table twice: `data` (numbers, for CSV) and `display` (text, for readers), row for row alike."""

    name: str
    """File stem."""
    title: str
    caption: str
    data: pd.DataFrame
    display: pd.DataFrame
    """Its columns are the headings."""
    groups: tuple[str, ...]
    """Per row the heading under which it stands; rows of a group are adjacent."""
    greyed: frozenset[tuple[int, str]] = frozenset()
    """(row, heading) of the unverified values."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One cell of a table of the paper, or one that we ran beyond it."""

    group: str
    label: str
    place: Place
    cell: Cell | None
    metric: str
    published: Published | None
    scale: str

    @property
    def verdict(self) -> str:
        return verdict(self.cell, self.metric, self.published, self.scale)


def minus(text: str) -> str:
    """With a true minus sign for the hyphen."""
    return text.replace("-", "−")


def number(value: float | None, signed: bool = False) -> str:
    """Two decimals with a true minus sign; a dash for nothing."""
    if value is None or pd.isna(value):
        return DASH
    rounded = round(value, 2) + 0.0
    return minus(f"{rounded:+.2f}" if signed else f"{rounded:.2f}")


def count(value: float | None) -> str:
    """Active units: whole for one run, one decimal for a mean over seeds."""
    return DASH if value is None else f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def active_units(cell: Cell | None, layers: int) -> str:
    """`19`, or `16+5` for two layers, bottom first; a dash when there are none."""
    counts = [estimate(cell, f"active_units_{layer}") for layer in range(1, layers + 1)]
    return "+".join(count(known.value) for known in counts if known) if all(counts) else DASH


def published_units(place: Place) -> str:
    values = [published_at(place, f"active_units_{layer}") for layer in range(1, place.layers + 1)]
    return "+".join(count(known.value) for known in values if known) if all(values) else DASH


def _seeds(cell: Cell | None) -> str:
    if cell is None:
        return DASH
    done, all_ = len(cell.finished), len(cell.runs)
    return str(all_) if done == all_ else f"{done} of {all_}"


def _data(row: Row) -> dict[str, Any]:
    ours, setting = estimate(row.cell, row.metric), row.place.setting
    units: dict[str, float | None] = {}
    for key in ("active_units_1", "active_units_2"):
        own, papers = estimate(row.cell, key), published_at(row.place, key)
        units |= {key: own.value if own else None, f"paper_{key}": papers.value if papers else None}
    return {
        "experiment": row.place.experiment,
        "dataset": row.place.dataset,
        "layers": row.place.layers,
        "objective": setting.objective,
        "M": setting.M,
        "K": setting.K,
        "parameter": setting.parameter,
        "protocol": row.cell.protocol if row.cell else None,
        "metric": row.metric,
        "ours": ours.value if ours else None,
        "standard_error": ours.se if ours else None,
        "seed_sd": ours.seed_sd if ours else None,
        "seeds": len(row.cell.finished) if row.cell else 0,
        "paper": row.published.value if row.published else None,
        "paper_sd": row.published.sd if row.published else None,
        "paper_tag": row.published.tag if row.published else None,
        "difference": ours.value - row.published.value if ours and row.published else None,
        "verdict": row.verdict,
        **units,
        "source": row.published.source if row.published else None,
    }


def _display(row: Row) -> dict[str, str]:
    ours, paper = estimate(row.cell, row.metric), row.published
    shown = number(ours.value) if ours else DIVERGED if row.verdict == DIVERGED else NOT_RUN
    paper_shown = number(paper.value if paper else None)
    if paper and paper.sd is not None:
        paper_shown += f" ± {paper.sd:.2f}"
    if paper and not paper.judged:
        paper_shown += " (u)"
    return {
        "objective": row.label,
        "protocol": row.cell.protocol if row.cell else DASH,
        "ours": shown,
        "SE": number(ours.se if ours else None),
        "sd over seeds": number(ours.seed_sd if ours else None),
        "seeds": _seeds(row.cell),
        "paper": paper_shown,
        "difference": number(ours.value - paper.value if ours and paper else None, signed=True),
        "verdict": row.verdict,
        "active units": active_units(row.cell, row.place.layers),
        "paper's units": published_units(row.place),
    }


def _table(name: str, title: str, caption: str, rows: list[Row], drop: Iterable[str], notes: Iterable[str]) -> Table:
    data = pd.DataFrame([_data(row) for row in rows])
    display = pd.DataFrame([_display(row) for row in rows]).drop(columns=list(drop))
    protocols = {row.cell.protocol for row in rows if row.cell}
    if len(protocols) < 2:
        display = display.drop(columns="protocol")
    verdicts = {row.verdict for row in rows}
    notes = [*notes, *([OTHER_PROTOCOL_NOTE] if OTHER_PROTOCOL in verdicts else [])]
    greyed = frozenset((i, "paper") for i, row in enumerate(rows) if row.published and not row.published.judged)
    return Table(
        name,
        title,
        caption,
        data,
        display,
        tuple(row.group for row in rows),
        greyed,
        (*notes, *([UNVERIFIED_NOTE] if greyed else [])),
    )


def _sort_key(place: Place) -> tuple[str, int, str, int, int, float]:
    setting = place.setting
    return (place.dataset, place.layers, setting.objective, setting.T, setting.M, setting.parameter or 0.0)


def _beyond(cells: Cells, experiment: str, shown: list[Row], metrics: tuple[str, ...], scale: str) -> list[Row]:
    """Rows for what was run in an experiment beyond the rows shown: other settings, and further protocols."""
    seen = {id(row.cell) for row in shown if row.cell}
    return [
        Row(
            "Beyond the paper",
            f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, {setting_name(place.setting)}",
            place,
            cell,
            metric,
            published_at(place, metric),
            scale,
        )
        for metric in metrics
        for place in sorted((place for place in cells if place.experiment == experiment), key=_sort_key)
        for cell in cells[place]
        if id(cell) not in seen
    ]


def images_note(cells: Cells, experiment: str) -> str:
    runs = [run for found in cells.values() for cell in found for run in cell.finished]
    used = {
        (int(run.metrics["test_images"]), int(run.metrics["num_samples"]))
        for run in runs
        if run.experiment == experiment and {"test_images", "num_samples"} <= run.metrics.keys()
    }
    described = "; ".join(f"{images:,} test images, {samples:,} samples" for images, samples in sorted(used))
    return f"Ours: {described}. " if described else ""


def omniglot_note(rows: Iterable[Row]) -> str:
    """Says where the OMNIGLOT runs of a table do not have Burda's own file; ends in a space where it says anything."""
    runs = [run for row in rows if row.cell for run in row.cell.finished if run.spec.dataset == "omniglot"]
    variants = {run.training.get("data", {}).get("variant") for run in runs} - {None, CHARDATA}
    if not variants:
        return ""
    return f"OMNIGLOT here is {', '.join(sorted(variants))}: not the file {CHARDATA} that the paper's numbers rest on. "


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
    rows += _beyond(cells, experiment, rows, ("nll",), scale)
    numeral = experiment.removeprefix("burda-table")
    caption = (
        f"NLL in nats (lower is better) and active units (bottom layer first). "
        f"{images_note(cells, experiment)}{omniglot_note(rows)}"
        f"SE: standard error over test images; the paper used the same images, so it is no error of the difference. "
        f"Reproduced: within {TOLERANCE} nats. VAE and IWAE are one algorithm at k = 1: one run."
    )
    fixed = ", MNIST with fixed binarization" if experiment == "burda-table3" else ""
    title = f"Burda et al., Table {numeral}: density estimation{fixed}"
    return _table(f"burda_table{numeral}", title, caption, rows, _drop(rows, units=True), notes)


def _drop(rows: list[Row], units: bool) -> list[str]:
    """Columns that say nothing here: the seeds' when every cell has one, units where they are not compared."""
    several = any(row.cell and len(row.cell.runs) > 1 for row in rows)
    return [*([] if several else ["sd over seeds", "seeds"]), *([] if units else ["active units", "paper's units"])]


def burda_table2(cells: Cells, scale: str) -> Table:
    """Burda's Table 2: training goes on under the other objective, from weights and optimizer state."""
    rows = []
    published = burda_table("burda-table2")
    second_stages = published[published["first_objective"].notna()]
    for record in second_stages.to_dict("records"):
        dataset, layers = record["dataset"], record["layers"]
        first = Setting.burda(record["first_objective"], int(record["first_k"]))
        second = Setting.burda(record["objective"], record["k"])
        second_place = Place("burda-table2", dataset, layers, second)
        first_place = Place("burda-table1", dataset, layers, first)
        second_cell = find(cells, second_place)
        first_cell = first_stage(cells, second_cell, first_place)
        names = [f"{with_parameter(first)} k = {first.T}", f"{with_parameter(second)} k = {second.T}"]
        group = f"{dataset_name(dataset)}, {layers_name(layers)}: {names[0]}, then {names[1]}"
        for label, place, cell in (
            (f"first stage: {names[0]}", first_place, first_cell),
            (f"second stage: {names[1]}", second_place, second_cell),
        ):
            rows.append(Row(group, label, place, cell, "nll", published_at(place, "nll"), scale))
    rows += _beyond(cells, "burda-table2", rows, ("nll",), scale)
    caption = (
        "NLL in nats (lower is better) and active units after each stage. The second stage starts from the first one's "
        "weights and Adam state and trains under the other objective. "
        f"{images_note(cells, 'burda-table2')}Verdicts as in Table 1."
    )
    title = "Burda et al., Table 2: continuing under the other objective"
    return _table("burda_table2", title, caption, rows, _drop(rows, units=True), ())


def rainforth(cells: Cells, scale: str) -> Table:
    """Rainforth's Table 1 and sweep: the three metrics over every (M, K) and beta with T = 64."""
    rows = []
    for metric in RAINFORTH_METRICS:
        for setting in RAINFORTH_SETTINGS:
            place = Place("rainforth-table1", "mnist", 1, setting)
            published = published_at(place, metric)
            label = setting_name(setting)
            rows.append(Row(METRIC_NAMES[metric], label, place, find(cells, place), metric, published, scale))
    rows += _beyond(cells, "rainforth-table1", rows, RAINFORTH_METRICS, scale)
    caption = (
        "MNIST, 1 layer, T = M × K = 64, nats, higher is better. log p̂ is the test log-likelihood, IWAE-64 the bound "
        f"with 64 samples, −KL(Q‖P) their difference. {images_note(cells, 'rainforth-table1')}SE is over test images; "
        f"the paper's ± is the standard deviation over four runs. Reproduced: within two standard errors, "
        f"theirs (± / 2) and ours over seeds combined ({ONE_SEED_NATS} nats where there is one); where it states none, "
        f"within {TOLERANCE} nats."
    )
    title = "Rainforth et al., Table 1 and sweep: T = 64"
    return _table("rainforth_table1", title, caption, rows, _drop(rows, units=False), ())


def every_objective(cells: Cells, scale: str) -> Table:
    """The objectives of Rainforth in Burda's setting, where no paper has a number; beside them IWAE at equal T."""
    rows = [
        Row(
            f"{dataset_name(dataset)}, {layers_name(layers)}",
            f"{setting_name(setting)}, T = {setting.T}",
            place := Place("every-objective", dataset, layers, setting),
            find(cells, place),
            "nll",
            None,
            scale,
        )
        for dataset in ("mnist", "omniglot")
        for layers in (1, 2)
        for setting in EVERY_OBJECTIVE_SETTINGS
    ]
    rows += _beyond(cells, "every-objective", rows, ("nll",), scale)
    caption = (
        "NLL in nats, lower is better. The last column is the NLL minus IWAE's at the same T (below zero: better than "
        f"IWAE) ± its standard error, paired by test image. {images_note(cells, 'every-objective')}"
        f"{omniglot_note(rows)}"
    )
    drop = [*_drop(rows, units=True), "paper", "difference", "paper's units"]
    table = _table("every_objective", "Every objective in Burda's setting", caption.strip(), rows, drop, ())
    to_iwae = [_minus_iwae(cells, row) for row in rows]
    data = table.data.copy()
    data["minus_iwae"] = pd.Series([effect.value if effect else None for effect in to_iwae], dtype=float)
    data["minus_iwae_se"] = pd.Series([effect.image_se if effect else None for effect in to_iwae], dtype=float)
    shown = [f"{number(e.value, signed=True)} ± {number(e.image_se)}" if e else DASH for e in to_iwae]
    display = table.display.assign(**{"minus IWAE": shown})
    return Table(table.name, table.title, table.caption, data, display, table.groups, table.greyed, table.notes)


def _minus_iwae(cells: Cells, row: Row) -> Effect | None:
    iwae = Place("burda-table1", row.place.dataset, row.place.layers, Setting("iwae", 1, row.place.setting.T))
    return contrast((Term(1, row.place, row.cell), Term(-1, iwae, find(cells, iwae))), "nll")


def other_runs(cells: Cells, scale: str) -> Table | None:
    """Runs of experiments that no other table knows; None when there are none."""
    known = {*BURDA_TABLES, "every-objective", "rainforth-table1", "later-estimators", "protocol-ablation", "mk-plane"}
    rows = [
        Row(
            f"{place.experiment}: {dataset_name(place.dataset)}, {layers_name(place.layers)}",
            setting_name(place.setting),
            place,
            cell,
            "nll",
            published_at(place, "nll"),
            scale,
        )
        for place in sorted(cells, key=lambda place: (place.experiment, *_sort_key(place)))
        if place.experiment not in known
        for cell in cells[place]
    ]
    if not rows:
        return None
    drop = [*_drop(rows, units=True), "paper", "difference", "paper's units"]
    caption = "NLL in nats (lower is better) and active units. No paper has these numbers."
    return _table("other_runs", "Further experiments", caption, rows, drop, ())


def diagnostics(results: list[RunResult]) -> Table:
    """One row a run: pruning, overfitting, effective sample size and active units on the whole test set."""
    rows: list[dict[str, Any]] = []
    for run in results:
        nll, pruned, train = (metric_of(run, metric) for metric in ("nll", "nll_pruned", "train_nll"))
        units = [metric_of(run, f"active_units_test_{layer}") for layer in range(1, run.spec.layers + 1)]
        rows.append(
            {
                "cohort": run.cohort,
                "run": run.spec.name,
                "status": run.status,
                "nll": nll,
                "pruned_minus_full": pruned - nll if pruned is not None and nll is not None else None,
                "test_minus_train": nll - train if train is not None and nll is not None else None,
                "ess_64": metric_of(run, "ess_64"),
                "active_units_test_1": units[0],
                "active_units_test_2": units[1] if len(units) > 1 else None,
            }
        )
    columns = ["cohort", "run", "status", "nll", "pruned_minus_full", "test_minus_train", "ess_64"]
    data = pd.DataFrame(rows, columns=[*columns, "active_units_test_1", "active_units_test_2"])
    display = pd.DataFrame(
        {
            "run": [row["run"] for row in rows],
            "status": [row["status"] for row in rows],
            "NLL": [number(row["nll"]) for row in rows],
            "pruned − full": [number(row["pruned_minus_full"], signed=True) for row in rows],
            "test − train": [number(row["test_minus_train"], signed=True) for row in rows],
            "ESS / 64": [number(row["ess_64"]) for row in rows],
            "active units, test set": [
                "+".join(count(row[f"active_units_test_{layer}"]) for layer in range(1, run.spec.layers + 1))
                for row, run in zip(rows, results, strict=True)
            ],
        }
    )
    caption = (
        "NLL in nats. Pruned − full: change of the NLL when inactive units are removed (Burda: below 0.06). Test − "
        "train: NLL on test minus on training images (Burda: 0.62 to 0.79 on MNIST, 2.39 to 2.65 on OMNIGLOT). "
        "ESS / 64: mean effective sample size of 64 posterior samples as a share of 64. Active units here are counted "
        "on the whole test set, in the tables above on Burda's 500 training images."
    )
    groups = tuple(run.cohort for run in results)
    return Table("diagnostics", "Diagnostics of every run", caption, data, display, groups)


def claims(results: list[ClaimResult]) -> Table:
    """The papers' claims one by one: effect with the interval that decides, the paper's effect, the decision."""
    data = pd.DataFrame(
        [
            {
                "family": result.family,
                "claim": result.statement,
                "unit": result.unit,
                "effect": result.effect.value if result.effect else None,
                "uncertainty": result.effect.uncertainty if result.effect else None,
                "low": result.low,
                "high": result.high,
                "p_value": result.p_value,
                "paper_effect": result.paper_effect,
                "paper_verified": result.paper_verified,
                "decision": result.decision,
                "rule": result.rule,
                "missing": result.missing,
            }
            for result in results
        ]
    )
    display = pd.DataFrame(
        [
            {
                "claim": result.statement,
                "effect": _effect(result),
                "interval": f"[{_signed(result, result.low)}, {_signed(result, result.high)}]"
                if result.effect
                else DASH,
                "paper's effect": _signed(result, result.paper_effect) + ("" if result.paper_verified else " (u)"),
                "decision": result.decision,
            }
            for result in results
        ]
    )
    greyed = frozenset((i, "paper's effect") for i, result in enumerate(results) if not result.paper_verified)
    caption = (
        "Effects are signed so that above zero supports the claim; in nats unless units are named. ± is one standard "
        "uncertainty: the paired standard error over test images and the seed term (standard deviation over seeds / "
        "√n; with one seed 0.10 nats a run is assumed, Burda's code against itself; for active units 1 unit a run) in "
        f"quadrature. {HOW_DECIDED}"
    )
    rules = {result.family: result.rule for result in results}
    notes = [f"{name}: {rule}" for name, rule in rules.items()]
    return Table(
        "claims",
        "Claims",
        caption,
        data,
        display,
        tuple(result.family for result in results),
        greyed,
        (*notes, *([UNVERIFIED_NOTE] if greyed else [])),
    )


def _signed(result: ClaimResult, value: float | None) -> str:
    return number(value, signed=True) if result.unit != "units" else DASH if value is None else minus(f"{value:+.1f}")


def _effect(result: ClaimResult) -> str:
    if result.effect is None:
        return NOT_RUN
    uncertainty = f"{result.effect.uncertainty:.2f}" if result.unit != "units" else f"{result.effect.uncertainty:.1f}"
    return f"{_signed(result, result.effect.value)} ± {uncertainty} {result.unit}"
