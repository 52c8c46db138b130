"""Results as tables: every cell of the papers, run or not, and what was run beyond them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.data.catalogue import PIXELS
from pipeline.published import Place, Published, Rerun, published_at, reruns_of
from pipeline.reporting.evidence.cells import (
    DIVERGED,
    NOT_RUN,
    Cell,
    Cells,
    dataset_name,
    estimate,
    layers_name,
    setting_name,
)
from pipeline.reporting.evidence.claims import HOW_DECIDED, ClaimResult, chance_in_words
from pipeline.reporting.evidence.verdicts import (
    JUDGED_PROTOCOL,
    OTHER_PROTOCOL,
    VERDICTS,
    Comparison,
    Judged,
    beside_chance,
    bits_sd,
    compare,
    verdict,
)
from pipeline.reporting.forms.numbers import DASH, minus, number

RERUNS_NOTE = (
    "Reruns by others: what independent code got, or how far off the best public attempt at the cell was (nats, "
    "without a sign; Burda et al.'s own code, rerun, comes second). The CSV says who."
)
UNVERIFIED_NOTE = "(u): not checked against the paper, or read off a plot; shown greyed, never judged."
OTHER_PROTOCOL_NOTE = (
    f"{OTHER_PROTOCOL}: trained in another way than Burda et al.'s code ({JUDGED_PROTOCOL}), which made the paper's "
    "numbers; shown beside them, but not judged by them. How the protocols differ is under How it was made."
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
    kinds: tuple[str, ...] = ("csv", "md", "tex")
    """The formats in which it is written beside the page."""
    best: frozenset[tuple[int, str]] = frozenset()
    """(row, heading) of what is set in bold."""

    @property
    def see(self) -> str:
        """What to see in it: the first line of its caption."""
        return self.caption.partition("\n")[0]

    @property
    def method(self) -> str:
        """How it was made: the rest of its caption."""
        return self.caption.partition("\n")[2]


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

    @property
    def comparison(self) -> Comparison | None:
        return compare(self.cell, self.metric, self.published)


def count(value: float | None) -> str:
    """Active units: whole for one run, one decimal for a mean over seeds."""
    return DASH if value is None else f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def our_units(cell: Cell | None, layers: int) -> str:
    """`19`, or `16+5` for two layers, bottom first; a dash when there are none."""
    counts = [estimate(cell, f"active_units_{layer}") for layer in range(1, layers + 1)]
    return "+".join(count(known.value) for known in counts if known) if all(counts) else DASH


def published_units(place: Place) -> str:
    """The paper's counts of active units by layer, bottom first: `16+5`; a dash unless all of them are printed."""
    values = [published_at(place, f"active_units_{layer}") for layer in range(1, place.layers + 1)]
    return "+".join(count(known.value) for known in values if known) if all(values) else DASH


def _seeds(cell: Cell | None) -> str:
    if cell is None:
        return DASH
    done, all_ = len(cell.finished), len(cell.runs)
    return str(all_) if done == all_ else f"{done} of {all_}"


def _data(row: Row) -> dict[str, Any]:
    ours, setting, compared = estimate(row.cell, row.metric), row.place.setting, row.comparison
    units: dict[str, float | None] = {}
    for key in ("active_units_1", "active_units_2"):
        active, papers = estimate(row.cell, key), published_at(row.place, key)
        units |= {key: active.value if active else None, f"paper_{key}": papers.value if papers else None}
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
        "quoted_by": row.published.quoted_by or None if row.published else None,
        "reruns_by_others": _reruns(reruns_of(row.place, row.metric)) or None,
        "bits_per_dimension": bits_per_dimension(-ours.value if row.metric == "log_p_hat" else ours.value)
        if ours and row.metric in ("nll", "log_p_hat")
        else None,
        "bits_sd": bits_sd(row.cell, row.metric) if row.cell and ours else None,
        "difference": compared.difference if compared else None,
        "low": compared.low if compared else None,
        "high": compared.high if compared else None,
        "verdict": row.verdict,
        **units,
        "source": row.published.source if row.published else None,
    }


def bits_per_dimension(nll: float) -> float:
    """A negative log-likelihood of an image in nats as bits per pixel."""
    return nll / (PIXELS * math.log(2))


def _reruns(reruns: Iterable[Rerun]) -> str:
    """`84.58` where the number is known, `0.02 off` where only its distance is; several with who ran them."""
    return "; ".join(
        f"{number(one.value) if one.value is not None else f'{one.distance:.2f} off'} ({one.by})" for one in reruns
    )


def _brief_reruns(reruns: Iterable[Rerun]) -> str:
    shown = [number(one.value) if one.value is not None else f"{one.distance:.2f} off" for one in reruns]
    return "; ".join(shown) or DASH


def _display(row: Row) -> dict[str, str]:
    ours, paper, compared = estimate(row.cell, row.metric), row.published, row.comparison
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
        "difference": number(compared.difference if compared else None, signed=True),
        "90 % interval": f"[{number(compared.low, signed=True)}, {number(compared.high, signed=True)}]"
        if compared
        else DASH,
        "verdict": row.verdict,
        "active units": our_units(row.cell, row.place.layers),
        "paper's units": published_units(row.place),
        "reruns by others": _brief_reruns(reruns_of(row.place, row.metric)),
    }


def build_table(
    name: str, title: str, caption: str, rows: list[Row], drop: Iterable[str], notes: Iterable[str]
) -> Table:
    """The table of `rows`, each a number of ours beside the paper's.

    `drop`: columns that are not shown; their numbers stay in the CSV. The protocol has a column where there are two or
    more, and reruns have one where somebody else ran a cell. `notes`: what is said below it, to which come notes on
    protocols, reruns, test bits and verdicts where the rows call for them. The paper's numbers that are not judged are
    greyed.
    """
    data = pd.DataFrame([_data(row) for row in rows])
    display = pd.DataFrame([_display(row) for row in rows]).drop(columns=list(drop))
    protocols = {row.cell.protocol for row in rows if row.cell}
    if len(protocols) < 2:
        display = display.drop(columns="protocol")
    verdicts = {row.verdict for row in rows}
    notes = [*notes, *([OTHER_PROTOCOL_NOTE] if OTHER_PROTOCOL in verdicts else [])]
    if (display["reruns by others"] == DASH).all():
        display = display.drop(columns="reruns by others")
    else:
        notes.append(RERUNS_NOTE)
    judged = [Judged(row.place.dataset, one, row.verdict, row.metric) for row in rows if (one := row.comparison)]
    counts = beside_chance([one for one in judged if one.verdict in VERDICTS])
    notes = [*notes, *(note for note in (bits_note(rows), counts) if note)]
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


def bits_note(rows: Iterable[Row]) -> str:
    """What one draw of the test bits moves an NLL by, as measured on the runs of a table; nothing where on none."""
    runs = [run for row in rows if row.cell for run in row.cell.finished]
    measured = [run.metrics["bits_sd_nll"] for run in runs if "bits_sd_nll" in run.metrics]
    if not measured:
        return ""
    ends = " to ".join(dict.fromkeys(f"{end:.3f}" for end in (min(measured), max(measured))))
    return (
        f"Test bits: one draw of them moves an NLL by {ends} nats (standard deviation; measured on {len(measured)} "
        f"run{'s' if len(measured) > 1 else ''})."
    )


def sort_key(place: Place) -> tuple[str, int, str, int, int, float]:
    """Order of rows within a table: dataset, layers, objective, samples per image, M, and β or α."""
    setting = place.setting
    return (place.dataset, place.layers, setting.objective, setting.T, setting.M, setting.parameter or 0.0)


def beyond_rows(cells: Cells, experiment: str, shown: list[Row], metrics: tuple[str, ...], scale: str) -> list[Row]:
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
        for place in sorted((place for place in cells if place.experiment == experiment), key=sort_key)
        for cell in cells[place]
        if id(cell) not in seen
    ]


def images_note(cells: Cells, experiment: str) -> str:
    """On how many test images, with how many samples each, an experiment's NLLs rest: a sentence and a blank.

    Empty before a run of it was evaluated.
    """
    runs = [run for place_cells in cells.values() for cell in place_cells for run in cell.finished]
    used = {
        (int(run.metrics["test_images"]), int(run.metrics["num_samples"]))
        for run in runs
        if run.experiment == experiment and {"test_images", "num_samples"} <= run.metrics.keys()
    }
    described = "; ".join(f"{images:,} test images, {samples:,} samples" for images, samples in sorted(used))
    return f"Ours: {described}. " if described else ""


def dropped_columns(rows: list[Row], units: bool) -> list[str]:
    """Columns that say nothing here: the seeds' when every cell has one, units where they are not compared."""
    several = any(row.cell and len(row.cell.runs) > 1 for row in rows)
    return [*([] if several else ["sd over seeds", "seeds"]), *([] if units else ["active units", "paper's units"])]


def claims(results: list[ClaimResult]) -> Table:
    """The papers' claims one by one: effect with the interval that decides, the paper's effect, the decision."""
    data = pd.DataFrame(
        [
            {
                "family": result.family,
                "by": result.by,
                "claim": result.statement,
                "unit": result.unit,
                "effect": result.effect.value if result.effect else None,
                "uncertainty": result.effect.uncertainty if result.effect else None,
                "low": result.low,
                "high": result.high,
                "p_value": result.p_value,
                "paper_effect": result.paper_effect,
                "paper_se": result.paper_se,
                "paper_verified": result.paper_verified,
                "decision": result.decision,
                "support": result.support,
                "rule": result.rule,
                "missing": result.missing,
            }
            for result in results
        ]
    )
    display = pd.DataFrame(
        [
            {
                "claim": f"{result.statement}. {result.support}" if result.support else result.statement,
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
        "Effects are signed so that above zero supports the claim.\nIn nats unless units are named. ± is one standard "
        "uncertainty: the paired standard error over test images and the seed term (standard deviation over seeds / "
        f"√n) in quadrature. {HOW_DECIDED} {chance_in_words(results)}"
    )
    rules = {result.family: (result.by, result.rule) for result in results}
    notes = [f"{name} (claim of {by}): {rule}" for name, (by, rule) in rules.items()]
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
