"""The report of a scale: one self-contained HTML page, and the same tables and figures as files beside it."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.experiments.names import CohortKey
from pipeline.experiments.spec import CohortSpec
from pipeline.files import atomic_path, write_json, write_text
from pipeline.published import published_value
from pipeline.records.metrics import value_of
from pipeline.records.results import METRICS, RUNS, TOY, RunResult
from pipeline.reporting.evidence.cells import NOT_RUN, PAPER_SCALE, gather, objective_name
from pipeline.reporting.evidence.claims import (
    FAILS,
    FAILS_ASSUMED,
    HOLDS,
    HOLDS_ASSUMED,
    NOT_DECIDED,
    UNDECIDED,
    ClaimResult,
    decide_claims,
)
from pipeline.reporting.evidence.toy import load_toy
from pipeline.reporting.evidence.verdicts import MARGIN
from pipeline.reporting.forms import render, strips, tables
from pipeline.reporting.forms.drawing import SMALL, THEME, Figure
from pipeline.reporting.forms.numbers import DASH
from pipeline.reporting.forms.section import Section
from pipeline.reporting.forms.tables import Table
from pipeline.reporting.readme import in_short
from pipeline.reporting.report import Report
from pipeline.reporting.sections import (
    beyond,
    bias,
    density,
    depth,
    gradients,
    made,
    posterior,
    provenance,
    sweep,
    waypoints,
)
from pipeline.reporting.sections.answer import beside_the_paper, cards
from pipeline.reporting.sections.claims import claims_forest
from pipeline.reporting.sections.gradients import gradient_claims

SECTIONS: tuple[Callable[[Report], Section], ...] = (
    density.section,
    bias.section,
    posterior.section,
    sweep.section,
    gradients.section,
    waypoints.section,
    beyond.section,
    made.section,
)
"""The questions of the report, in their order on the page."""
DECISIONS = (HOLDS, HOLDS_ASSUMED, FAILS, FAILS_ASSUMED, UNDECIDED, NOT_DECIDED, NOT_RUN)
WORDS = {
    HOLDS: ("holds", "hold"),
    HOLDS_ASSUMED: (HOLDS_ASSUMED, HOLDS_ASSUMED.replace("holds", "hold")),
    FAILS: ("does not hold", "do not hold"),
    FAILS_ASSUMED: (FAILS_ASSUMED, FAILS_ASSUMED.replace("does", "do")),
    UNDECIDED: ("is undecided", "are undecided"),
}
"""Decision -> how one claim and several are said to stand."""
PAGE_TEMPLATE = "page.html"
POINTS_PER_PIXEL = 0.75
LEAST_PRINTED = 7.0
"""Points of the smallest letters of a figure on paper."""


@dataclass(frozen=True)
class Family:
    """The claims of one kind: how many were decided how, and between which effects ours and the paper's lie."""

    name: str
    by: str
    """Whose claim it is."""
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
    results: list[RunResult],
    scale: str,
    folder: Path,
    planned: Sequence[CohortSpec] = (),
    scales: Sequence[str] = (),
    under_way: Sequence[RunResult] = (),
    judged: bool | None = None,
) -> Path:
    """Write `index.html`, `README.md`, `tables/`, `figures/` and `metrics/` under `folder`.

    What an earlier report left there is removed.

    `planned`: the scale's grid, so that cells which were not run are listed too. `scales`: every scale that has a page
    beside this one's, to switch between. `under_way`: runs that are not as deep as the scale takes them. `judged`:
    whether claims are decided on its numbers (None: at the papers' scale alone). Equal arguments give equal bytes.
    Returns the page's path.
    """
    report = gathered(results, scale, folder / "results", planned, under_way, judged)
    sections = [section(report) for section in SECTIONS]
    claims, forest = tables.claims(report.claims), claims_forest(report.claims)
    for name in ("tables", "figures", "metrics"):
        shutil.rmtree(folder / name, ignore_errors=True)
        # Git keeps no empty folder, and DVC misses an output that is not there.
        write_text(folder / name / ".gitkeep", "")
    for table in (claims, *(table for section in sections for table in section.tables)):
        for kind in table.kinds:
            write_text(folder / "tables" / f"{table.name}.{kind}", render.FORMATS[kind](table))
    for figure in (forest, *(figure for section in sections for figure in section.figures)):
        if isinstance(figure, Figure):
            write_figure(folder / "figures", figure)
    for result in results:
        write_json(folder / "metrics" / f"{result.name.within_scale}.json", key_numbers(result))
    write_text(folder / "index.html", render_page(report, sections, claims, scales))
    pictured = [figure for section in sections for figure in section.figures]
    write_text(folder / "README.md", in_short(report, progress(report), caveat(report), command(report), pictured))
    return folder / "index.html"


def gathered(
    results: list[RunResult],
    scale: str,
    folder: Path,
    planned: Sequence[CohortSpec] = (),
    under_way: Sequence[RunResult] = (),
    judged: bool | None = None,
) -> Report:
    """What the sections are made from; `folder`: `reports/<scale>/results`."""
    cells, toy = gather(results), load_toy(folder)
    judged = scale == PAPER_SCALE if judged is None else judged
    decided = [*decide_claims(cells, judged, planned), *gradient_claims(cells, toy, judged)]
    return Report(scale, judged, results, list(under_way), cells, decided, toy, planned, folder)


def render_page(report: Report, sections: Sequence[Section], claims: Table, scales: Sequence[str]) -> str:
    """The page as one self-contained text."""
    results, scale = report.results, report.scale
    known = [i for i, result in enumerate(report.claims) if result.effect is not None]
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(PAGE_TEMPLATE).render(
        scale=scale,
        scales=scales,
        progress=progress(report),
        caveat=caveat(report),
        command=command(report),
        cards=cards(report),
        legend=[(objective, shape, objective_name(objective)) for objective, shape in strips.SHAPES.items()],
        strip=strips.strip_html,
        unfinished=[result for result in results if not result.is_finished],
        verdict=verdict_in_words(report.claims, report.judged),
        families=families(claims),
        claims=claims,
        claims_run=select_rows(claims, known),
        claims_not_run=select_rows(claims, [i for i in range(len(report.claims)) if i not in set(known)]),
        # A question that this scale neither shows nor waits for is left out.
        sections=[section for section in sections if section.blocks],
        deviations=provenance.deviations(results),
        tolerance=MARGIN,
        comparable=report.comparable,
        example=next(iter({**{c.key: c for c in report.planned}, **{r.cohort: r for r in results}}), None),
        behind=lambda figure: behind(figure, results),
        kind_of=lambda item: type(item).__name__,
        formats={"csv": "CSV", "md": "Markdown", "tex": "LaTeX", "svg": "SVG", "png": "PNG"},
        to_html=render.to_html,
        sort=render.sort_attribute,
        inline_svg=inline_svg,
        schematic=Markup((here / "schematic.svg").read_text(encoding="utf-8")),
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        script=Markup((here / "page.js").read_text(encoding="utf-8")),
    )


def key_numbers(run: RunResult) -> dict[str, float]:
    """What `dvc metrics show` has of a run: nats, but for active units; the paper's NLL where it is judged by."""
    shown = {key: value_of(run.metrics, key) for key in ("nll", "nll_se", "iwae_64", "kl_q_p", "active_units")}
    published = published_value(run, "nll")
    if published is not None and published.judged:
        nll = shown["nll"]
        shown |= {"paper": published.value, "difference": None if nll is None else nll - published.value}
    return {key: round(value, 4) for key, value in shown.items() if value is not None}


def write_figure(folder: Path, figure: Figure) -> None:
    """Write a figure as `<name>.svg`, `<name>.png` and, for its numbers, `<name>.csv` into `folder`."""
    write_text(folder / f"{figure.name}.svg", figure.svg)
    with atomic_path(folder / f"{figure.name}.png") as temporary:
        temporary.write_bytes(figure.png)
    write_text(folder / f"{figure.name}.csv", figure.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def inline_svg(figure: Figure) -> Markup:
    """The `<svg>` element alone, named for screen readers, so that it can stand in a page."""
    svg = figure.svg[figure.svg.index("<svg") :]
    # Matplotlib numbers its groups alike in every figure; an id may stand on a page once.
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda attribute: attribute[0] if attribute[1] in used else "", svg)
    for colour, name in THEME.items():
        svg = svg.replace(f": {colour}", f": {name}")
    # At its own size, so that letters are as large as they were meant; a narrow screen scrolls.
    wide, high = (float(re.findall(rf'{side}="([\d.]+)pt"', svg)[0]) for side in ("width", "height"))
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    label = Markup('<svg role="img" style="width: {}px; --readable: {}pt" aria-label="{}. {}"').format(
        round(wide / POINTS_PER_PIXEL), round(high * LEAST_PRINTED / SMALL), figure.title, figure.see
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
    shown = [run for run in results if not naming or tuple(columns[name](run) for name in naming) in named]
    if named == {(TOY,)}:
        return [Behind(TOY, (), f"results/{TOY}/{METRICS}")]
    return [
        Behind(name, tuple(run.spec.name for run in runs), f"results/{name}/{RUNS}")
        for name, runs in ((CohortKey.of(key).name, runs) for key, runs in provenance.by_cohort(shown).items())
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


def progress(report: Report) -> str:
    """How much of the scale is done."""
    planned = sum(len(cohort.runs) for cohort in report.planned)
    done = sum(result.is_finished for result in report.results)
    of = f" of {planned}" if planned else ""
    said = f"{report.scale.capitalize()} scale: {done}{of} runs finished"
    if report.under_way:
        epochs = [run.epochs for run in report.under_way]
        ends = " to ".join(dict.fromkeys(depth.whole_epochs(end) for end in (min(epochs), max(epochs))))
        goal = depth.whole_epochs(max(depth.planned_epochs(run) for run in report.under_way))
        way = "its way" if len(report.under_way) == 1 else "their way"
        said += f", {len(report.under_way)} on {way} (after {ends} of {goal} epochs)"
    return f"{said}."


def caveat(report: Report) -> str:
    """What the numbers of the scale are worth, said once."""
    if not report.results and report.under_way:
        return "No run is at its end yet: ours are in the pictures against epochs, the others hold the papers' numbers."
    if not report.results:
        return "The pictures hold the papers' numbers: none of ours is there yet."
    measured = f"Measured with {provenance.measured(report.results)}."
    if report.comparable:
        return " ".join(part for part in (measured, beside_the_paper(report)) if part)
    if report.judged:
        reached = depth.whole_epochs(max(run.epochs for run in report.results))
        return (
            f"The claims are decided as they stand after {reached} of the papers' {depth.FULL:,} epochs; numbers stand "
            f"beside the papers', not judged by them. {measured}"
        )
    return f"It shows that everything works: no claim is judged, no number is comparable with the papers'. {measured}"


COMMANDS = {"quick": "make repro", "overnight": "make overnight", PAPER_SCALE: "make paper"}
"""Scale -> what trains all of it and writes its report; another scale is asked of DVC."""


def command(report: Report) -> str:
    """What makes the runs that are missing; empty where none is."""
    if len(report.results) >= sum(len(cohort.runs) for cohort in report.planned):
        return ""
    return COMMANDS.get(report.scale, f"dvc repro report@{report.scale}")


def verdict_in_words(decided: Sequence[ClaimResult], judged: bool) -> str:
    """The answer in a sentence or two."""
    counts = Counter(result.decision for result in decided)
    not_run = f" {counts[NOT_RUN]} claims wait for runs." if counts[NOT_RUN] else ""
    if not judged:
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
    summaries = []
    for name, family in rows.groupby("family", sort=False):
        for unit, unit_rows in family.groupby("unit", sort=False):
            counts = Counter(unit_rows["decision"])
            papers = unit_rows["paper_effect"].where(unit_rows["paper_verified"])
            summaries.append(
                Family(
                    f"{name}, {unit}" if family["unit"].nunique() > 1 else str(name),
                    str(unit_rows["by"].iloc[0]),
                    tuple((decision, counts[decision]) for decision in DECISIONS if counts[decision]),
                    _range(unit_rows["ours"].tolist(), unit_rows["effect"].astype(float).tolist(), str(unit)),
                    _range(unit_rows["papers"].tolist(), papers.astype(float).tolist(), str(unit)),
                )
            )
    return summaries
