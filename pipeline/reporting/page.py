"""The report of a scale: one self-contained HTML page, and the same tables and figures as files beside it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.files import atomic_path, write_text
from pipeline.reporting import render
from pipeline.reporting.ais import ais_tables
from pipeline.reporting.cells import NOT_RUN, PAPER_SCALE, gather
from pipeline.reporting.claims import FAILS, HOLDS, NOT_DECIDED, UNDECIDED, ClaimResult, decide_claims
from pipeline.reporting.figures import Figure, all_figures
from pipeline.reporting.snr import gradient_claims, gradient_figures, load_toy, slopes_table
from pipeline.reporting.tables import Table, all_tables
from pipeline.results import RunResult

DECISIONS = (HOLDS, FAILS, UNDECIDED, NOT_DECIDED, NOT_RUN)
TEMPLATE = "page.html"


@dataclass(frozen=True)
class Cohort:
    """How the runs of one cohort were made."""

    key: str
    runs: int
    steps: str
    training: str
    """Wall time from the first start to the last finish."""
    evaluation: str
    device: str
    versions: str
    revision: str

    @property
    def command(self) -> str:
        return f"dvc repro evaluate@{self.key}"


@dataclass(frozen=True)
class Family:
    """The claims of one kind, counted by decision."""

    name: str
    rule: str
    counts: tuple[tuple[str, int], ...]


def build_report(results: list[RunResult], scale: str, folder: Path) -> Path:
    """Write `index.html`, `tables/` and `figures/` under `folder`; what an earlier report left there is removed.

    Equal results give equal bytes. Returns the page's path.
    """
    cells = gather(results)
    toy = load_toy(folder / "results")
    decided = [*decide_claims(cells, scale), *gradient_claims(cells, toy, scale)]
    tables = [*all_tables(results, cells, decided, scale), *slopes_table(toy), *ais_tables(folder / "results")]
    sections = all_figures(results, cells, decided) | {"gradients": gradient_figures(cells, toy)}
    for name in ("tables", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for table in tables:
        write_text(folder / "tables" / f"{table.name}.csv", render.to_csv(table))
        write_text(folder / "tables" / f"{table.name}.md", render.to_markdown(table))
        write_text(folder / "tables" / f"{table.name}.tex", render.to_latex(table))
    for section in sections.values():
        for figure in section.figures:
            write_figure(folder / "figures", figure)
    by_name = {table.name: table for table in tables}
    claims = by_name.pop("claims")
    diagnostics = by_name.pop("diagnostics")
    known = [i for i, result in enumerate(decided) if result.effect is not None]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        scale=scale,
        comparable=scale == PAPER_SCALE,
        runs=len(results),
        unfinished=[result for result in results if result.status != "finished"],
        families=families(decided),
        claims=claims,
        claims_run=select_rows(claims, known),
        claims_not_run=select_rows(claims, [i for i in range(len(decided)) if i not in set(known)]),
        tables=list(by_name.values()),
        diagnostics=diagnostics,
        sections=sections,
        cohorts=cohorts(results),
        protocols=protocol_table(results),
        data=data_sources(results),
        to_html=render.to_html,
        inline_svg=inline_svg,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def write_figure(folder: Path, figure: Figure) -> None:
    write_text(folder / f"{figure.name}.svg", figure.svg)
    with atomic_path(folder / f"{figure.name}.png") as temporary:
        temporary.write_bytes(figure.png)
    write_text(folder / f"{figure.name}.csv", figure.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def inline_svg(figure: Figure) -> Markup:
    """The `<svg>` element alone, named for screen readers, so that it can stand in a page."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = Markup('<svg role="img" aria-label="{}"').format(figure.title)
    return Markup(svg.replace("<svg", label, 1))


def select_rows(table: Table, rows: list[int]) -> Table:
    """The table with these rows alone, in this order."""
    position = {row: i for i, row in enumerate(rows)}
    return Table(
        table.name,
        table.title,
        table.caption,
        table.data.iloc[rows],
        table.display.iloc[rows],
        tuple(table.groups[row] for row in rows),
        frozenset((position[row], heading) for row, heading in table.greyed if row in position),
        table.notes,
    )


def families(decided: list[ClaimResult]) -> list[Family]:
    """Per kind of claim how many hold, do not hold, and so on; kinds of decision that do not occur are left out."""
    rules = {result.family: result.rule for result in decided}
    counts = {name: Counter(r.decision for r in decided if r.family == name) for name in rules}
    return [
        Family(
            name, rule, tuple((decision, counts[name][decision]) for decision in DECISIONS if counts[name][decision])
        )
        for name, rule in rules.items()
    ]


def duration(seconds: float) -> str:
    """`42 s`, `12 min 30 s` or `5 h 03 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def elapsed(runs: list[RunResult]) -> float:
    """Seconds from the first start to the last finish of the runs' training."""
    starts = [datetime.fromisoformat(run.training["started"]) for run in runs if run.training.get("started")]
    ends = [datetime.fromisoformat(run.training["finished"]) for run in runs if run.training.get("finished")]
    if not starts or not ends:
        return max((float(run.training.get("wall_s", 0.0)) for run in runs), default=0.0)
    return (max(ends) - min(starts)).total_seconds()


def _distinct(values: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def cohorts(results: list[RunResult]) -> list[Cohort]:
    """How each cohort was made, in the order of the results."""
    made = []
    for key in dict.fromkeys(result.cohort for result in results):
        runs = [result for result in results if result.cohort == key]
        steps = [f"{run.training['steps']:,}" if "steps" in run.training else "" for run in runs]
        python = _distinct([run.training.get("python") for run in runs])
        torch = _distinct([run.training.get("torch") for run in runs])
        made.append(
            Cohort(
                key=key,
                runs=len(runs),
                steps=_distinct([*steps]),
                training=duration(elapsed(runs)),
                evaluation=duration(sum(float(run.evaluation.get("wall_s", 0.0)) for run in runs)),
                device=_distinct([run.training.get("device") for run in runs]),
                versions=f"torch {torch}, Python {python}",
                revision=_distinct([str(run.training.get("git_revision", ""))[:10] for run in runs]),
            )
        )
    return made


def protocol_table(results: list[RunResult]) -> pd.DataFrame:
    """Fields of the protocols in use [field, protocol name]."""
    used = {result.spec.protocol_name: asdict(result.spec.protocol) for result in results}
    frame = pd.DataFrame({name: {key: str(value) for key, value in fields.items()} for name, fields in used.items()})
    return frame.rename(index=lambda field: str(field).replace("_", " "))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix} / {key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _flatten(inner, prefix)
    else:
        yield prefix, str(value)


def data_sources(results: list[RunResult]) -> list[tuple[str, str, str]]:
    """(dataset, what, digest or source) of the data that the runs were trained on, each once."""
    rows = ((r.spec.dataset, *row) for r in results for row in _flatten(r.training.get("data", {})))
    return list(dict.fromkeys(rows))
