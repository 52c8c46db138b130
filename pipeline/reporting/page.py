"""The report of a scale: one self-contained HTML page, and the same tables and figures as files beside it."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.files import atomic_path, write_json, write_text
from pipeline.published import published_value
from pipeline.reporting import ablation, later, plane, provenance, render, tables
from pipeline.reporting.ais import ais_tables
from pipeline.reporting.cells import NOT_RUN, PAPER_SCALE, TOLERANCE, Cells, gather, metric_of
from pipeline.reporting.claims import FAILS, HOLDS, NOT_DECIDED, UNDECIDED, ClaimResult, decide_claims
from pipeline.reporting.drawing import Figure
from pipeline.reporting.figures import all_figures
from pipeline.reporting.snr import gradient_claims, gradient_figures, load_toy, slopes_table
from pipeline.reporting.tables import DASH, Table
from pipeline.results import METRICS, RUNS, TOY, RunResult
from pipeline.spec import CohortSpec

DECISIONS = (HOLDS, FAILS, UNDECIDED, NOT_DECIDED, NOT_RUN)
WORDS = {
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    UNDECIDED: ("is undecided", "are undecided"),
}
"""Decision -> how one claim and several are said to stand."""
TEMPLATE = "page.html"
PARTS = {
    "gradients": ("toy_slopes",),
    "diagnostics": ("ais",),
    "beyond": ("later_estimators", "protocol_ablation", "mk_plane", "other_runs"),
}
"""Section of the page -> tables that stand there; any other stands beside the papers'."""
FOLD_FROM = 15
"""Rows from which a table that no paper has is folded."""


@dataclass(frozen=True)
class Family:
    """The claims of one kind: how many were decided how, and between which effects ours and the paper's lie."""

    name: str
    counts: tuple[tuple[str, int], ...]
    ours: str
    paper: str


@dataclass(frozen=True)
class Behind:
    """Runs of one cohort that a figure is made of."""

    cohort: str
    runs: tuple[str, ...]
    address: str
    """Their results, relative to the page."""


def build_report(
    results: list[RunResult], scale: str, folder: Path, planned: Sequence[CohortSpec] = (), elsewhere: str | None = None
) -> Path:
    """Write `index.html`, `tables/`, `figures/` and `metrics/` under `folder`; what an earlier one left is removed.

    `planned`: the scale's grid, so that cells which were not run are listed too. `elsewhere`: another scale whose page
    to name where this one has no results. Equal arguments give equal bytes. Returns the page's path.
    """
    cells = gather(results)
    toy = load_toy(folder / "results")
    decided = [*decide_claims(cells, scale), *gradient_claims(cells, toy, scale)]
    shown = [*all_tables(results, cells, decided, scale), *slopes_table(toy), *ais_tables(folder / "results")]
    sections = all_figures(results, cells, decided) | {"gradients": gradient_figures(cells, toy)}
    made = {
        "cells": provenance.cells(results, planned),
        "cohorts": provenance.cohorts(results),
        "machines": provenance.machines(results),
        "protocol": provenance.protocol(results),
        "data": provenance.data(results),
    }
    for name in ("tables", "figures", "metrics"):
        shutil.rmtree(folder / name, ignore_errors=True)
        # Git keeps no empty folder, and DVC misses an output that is not there.
        write_text(folder / name / ".gitkeep", "")
    for table in shown:
        write_text(folder / "tables" / f"{table.name}.csv", render.to_csv(table))
        write_text(folder / "tables" / f"{table.name}.md", render.to_markdown(table))
        write_text(folder / "tables" / f"{table.name}.tex", render.to_latex(table))
    for table in made.values():
        write_text(folder / "tables" / f"{table.name}.csv", render.to_csv(table))
    for result in results:
        write_json(folder / "metrics" / f"{result.cell.partition('/')[2]}.json", key_numbers(result))
    for section in sections.values():
        for figure in section.figures:
            write_figure(folder / "figures", figure)
    by_name = {table.name: table for table in shown}
    claims = by_name.pop("claims")
    diagnostics = by_name.pop("diagnostics")
    elsewhere_shown = {name for names in PARTS.values() for name in names}
    parts = {"papers": tuple(name for name in by_name if name not in elsewhere_shown), **PARTS}
    known = [i for i, result in enumerate(decided) if result.effect is not None]
    own = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(own), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        scale=scale,
        comparable=scale == PAPER_SCALE,
        elsewhere=elsewhere,
        runs=len(results),
        cohorts=len({result.cohort for result in results}),
        unfinished=[result for result in results if result.status != "finished"],
        verdict=verdict_in_words(decided, scale),
        measured=provenance.measured(results),
        families=families(claims),
        claims=claims,
        claims_run=select_rows(claims, known),
        claims_not_run=select_rows(claims, [i for i in range(len(decided)) if i not in set(known)]),
        diagnostics=diagnostics,
        fold_from=FOLD_FROM,
        tables={part: [by_name[name] for name in names if name in by_name] for part, names in parts.items()},
        sections=sections,
        made=made,
        deviations=provenance.deviations(results),
        tolerance=TOLERANCE,
        example=next(iter({**{c.key: c for c in planned}, **{r.cohort: r for r in results}}), None),
        behind=lambda figure: behind(figure, results),
        to_html=render.to_html,
        sort=render.sort_attribute,
        inline_svg=inline_svg,
        style=Markup((own / "page.css").read_text(encoding="utf-8")),
        script=Markup((own / "page.js").read_text(encoding="utf-8")),
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def all_tables(results: list[RunResult], cells: Cells, decided: list[ClaimResult], scale: str) -> list[Table]:
    """Every table of the report but those of runs' gradients and of AIS, in its order."""
    beyond = [later.table(cells), ablation.table(cells), plane.table(cells), tables.other_runs(cells, scale)]
    return [
        tables.claims(decided),
        tables.burda(cells, "burda-table1", scale),
        tables.burda_table2(cells, scale),
        tables.burda(cells, "burda-table3", scale),
        tables.rainforth(cells, scale),
        tables.every_objective(cells, scale),
        *(table for table in beyond if table),
        tables.diagnostics(results),
    ]


def key_numbers(run: RunResult) -> dict[str, float]:
    """What `dvc metrics show` has of a run: nats, but for active units; the paper's NLL where it is judged by."""
    shown = {key: metric_of(run, key) for key in ("nll", "nll_se", "iwae_64", "kl_q_p", "active_units")}
    published = published_value(run, "nll")
    if published is not None and published.judged:
        nll = shown["nll"]
        shown |= {"paper": published.value, "difference": None if nll is None else nll - published.value}
    return {key: round(value, 4) for key, value in shown.items() if value is not None}


def write_figure(folder: Path, figure: Figure) -> None:
    write_text(folder / f"{figure.name}.svg", figure.svg)
    with atomic_path(folder / f"{figure.name}.png") as temporary:
        temporary.write_bytes(figure.png)
    write_text(folder / f"{figure.name}.csv", figure.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def inline_svg(figure: Figure) -> Markup:
    """The `<svg>` element alone, named for screen readers, so that it can stand in a page."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Matplotlib numbers its groups alike in every figure; an id may stand on a page once.
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    # A narrow figure spread over the page would have letters larger than the text's.
    width = round(1.4 * float(re.findall(r'width="([\d.]+)pt"', svg)[0]))
    label = Markup('<svg role="img" style="max-width: min({}px, 100%)" aria-label="{}. {}"').format(
        width, figure.title, figure.caption
    )
    return Markup(svg.replace("<svg", label, 1))


def behind(figure: Figure, results: Sequence[RunResult]) -> list[Behind]:
    """The runs that a figure shows, by cohort: those that its data name, by whichever columns name them.

    The Gaussian toy has numbers but no runs.
    """
    columns = {
        "cohort": lambda run: run.cohort,
        "run": lambda run: run.spec.name,
        "experiment": lambda run: run.experiment,
        "dataset": lambda run: run.spec.dataset,
        "layers": lambda run: run.spec.layers,
        "T": lambda run: run.spec.T,
        "k": lambda run: run.spec.T,
        "M": lambda run: run.spec.M,
        "K": lambda run: run.spec.K,
    }
    naming = [name for name in columns if name in figure.data.columns]
    if "cohort" in naming:
        # Then a column K may count something else.
        naming = [name for name in ("cohort", "run") if name in naming]
    named = set(figure.data[naming].drop_duplicates().itertuples(index=False, name=None))
    own = [run for run in results if not naming or tuple(columns[name](run) for name in naming) in named]
    if named == {(TOY,)}:
        return [Behind(TOY, (), f"results/{TOY}/{METRICS}")]
    return [
        Behind(key.partition("/")[2], tuple(run.spec.name for run in runs), f"results/{key.partition('/')[2]}/{RUNS}")
        for key, runs in provenance.by_cohort(own).items()
    ]


def select_rows(table: Table, rows: list[int]) -> Table:
    """The table with these rows alone, in this order."""
    position = {row: i for i, row in enumerate(rows)}
    return replace(
        table,
        data=table.data.iloc[rows],
        display=table.display.iloc[rows],
        groups=tuple(table.groups[row] for row in rows),
        greyed=frozenset((position[row], heading) for row, heading in table.greyed if row in position),
    )


def verdict_in_words(decided: Sequence[ClaimResult], scale: str) -> str:
    """The answer in a sentence or two."""
    counts = Counter(result.decision for result in decided)
    not_run = f" {counts[NOT_RUN]} claims wait for runs." if counts[NOT_RUN] else ""
    if scale != PAPER_SCALE:
        shown = len(decided) - counts[NOT_RUN]
        effects = f" {shown} of {len(decided)} claims have their runs: effects are shown, none is judged."
        return f"No claim is decided at this scale.{effects if shown else ''}"
    done = [f"{count} {words[count > 1]}" for decision, words in WORDS.items() if (count := counts[decision])]
    if not done:
        return f"No claim is decided yet: none of the {len(decided)} claims has its runs."
    return f"Of {len(decided)} claims {', '.join(done)}.{not_run}"


def _range(shown: list[str], values: list[float], unit: str) -> str:
    """The lowest and the highest of `values` as they are shown: `+2.52 ± 0.46 to +5.67 ± 0.64 nats`."""
    known = sorted((value, text) for value, text in zip(values, shown, strict=True) if not math.isnan(value))
    if not known:
        return DASH
    ends = dict.fromkeys(text.removesuffix(f" {unit}") for _, text in (known[0], known[-1]))
    return f"{' to '.join(ends)} {unit}"


def families(claims: Table) -> list[Family]:
    """Per kind of claim and unit how many hold, do not hold, and so on, and the range of effects."""
    rows = claims.data.assign(ours=claims.display["effect"], papers=claims.display["paper's effect"])
    found = []
    for name, family in rows.groupby("family", sort=False):
        for unit, own in family.groupby("unit", sort=False):
            counts = Counter(own["decision"])
            papers = own["paper_effect"].where(own["paper_verified"])
            found.append(
                Family(
                    f"{name}, {unit}" if family["unit"].nunique() > 1 else str(name),
                    tuple((decision, counts[decision]) for decision in DECISIONS if counts[decision]),
                    _range(own["ours"].tolist(), own["effect"].astype(float).tolist(), str(unit)),
                    _range(own["papers"].tolist(), papers.astype(float).tolist(), str(unit)),
                )
            )
    return found
