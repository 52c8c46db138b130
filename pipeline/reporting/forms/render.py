"""One table as CSV, Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import groupby

import pandas as pd
from markupsafe import Markup, escape

from pipeline.records.metrics import improves
from pipeline.reporting.evidence.cells import DIVERGED, NOT_RUN
from pipeline.reporting.evidence.verdicts import MARGIN, NOT_COMPARABLE
from pipeline.reporting.forms.numbers import DASH
from pipeline.reporting.forms.tables import Table

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "×": r"$\times$",
    "√": r"$\surd$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
    "‖": r"$\|$",
    "p̂": r"$\hat p$",
    ">": r"$>$",
    "<": r"$<$",
}
PROSE_COLUMNS = {"claim", "detail", "digest or source"}
"""Headings of columns whose text may break."""
CODE_COLUMNS = {"command", "digest", "revision", "trained by", "evaluated by"}
TEXT_COLUMNS = {"objective", "protocol", "verdict", "decision", "run", "status"} | PROSE_COLUMNS | CODE_COLUMNS
"""Headings of left-aligned columns; any other is one too when its cells hold no numbers."""
LATEX_PAGE = 48
"""Lines of a table that fit on a page."""
LATEX_PROSE = r">{\raggedright\arraybackslash}p{0.19\linewidth}"
LATEX_SHRINK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}"
EMPTY = (DASH, NOT_RUN, DIVERGED, "")
JUDGED_COLUMNS = {"verdict", "decision"}
DIFFERENCE_STEPS = ((MARGIN, "near"), (1.0, "{}-1"), (math.inf, "{}-2"))
"""Up to so many nats a difference to the paper gets this shade; {} is better or worse."""
UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


def _grouped(table: Table) -> Iterator[tuple[str, list[int]]]:
    for group, rows in groupby(range(len(table.display)), key=lambda i: table.groups[i]):
        yield group, list(rows)


def sort_value(text: str) -> float | None:
    """The number by which a cell of a number column is sorted; None where it holds none (`not run`, a dash).

    `−1.27 ± 0.18 (u)` is −1.27, `[+1.61, +3.42]` its lower end, `16+5` active units 21, `1 min 02 s` 62.
    """
    plain = text.replace("−", "-").replace(",", "")
    if re.fullmatch(r"\d+(\.\d+)?(\+\d+(\.\d+)?)+", plain):
        return sum(float(part) for part in plain.split("+"))
    if parts := re.findall(r"(\d+(?:\.\d+)?) (h|min|s)\b", plain):
        return sum(float(amount) * UNITS[unit] for amount, unit in parts)
    found = re.match(r"\[?([+-]?\d+(\.\d+)?)", plain)
    return float(found[1]) if found else None


def is_text(table: Table, heading: str) -> bool:
    """Whether a column is one of text, aligned left and sorted by words, rather than of numbers."""
    shown = [str(value) for value in table.display[heading]]
    return heading in TEXT_COLUMNS or any(sort_value(text) is None for text in shown if text not in EMPTY)


def to_csv(table: Table) -> str:
    return table.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _bold(table: Table, i: int, heading: str, how: str) -> str:
    """A cell's text, set in bold where it is the best."""
    text = str(table.display.iloc[i][heading])
    return how.format(text) if (i, heading) in table.best else text


def to_markdown(table: Table) -> str:
    """A pipe table under a heading; a group is a row in bold, notes are a list below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    headings = [str(heading) for heading in table.display.columns]
    lines = [f"### {table.title}", "", f"**{table.see}** {table.method}".strip(), "", line(headings)]
    lines.append(line([":--" if is_text(table, heading) else "--:" for heading in headings]))
    for group, rows in _grouped(table):
        if group:
            lines.append(line([f"**{group}**", *[""] * (len(headings) - 1)]))
        lines += [line([_bold(table, i, heading, "**{}**") for heading in headings]) for i in rows]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([*lines, *notes]) + "\n"


def latex_escape(text: str) -> str:
    # The hat is a combining character, so the pair is replaced before single characters are.
    parts = text.split("p̂")
    return LATEX["p̂"].join("".join(LATEX.get(character, character) for character in part) for part in parts)


def _latex_rows(table: Table, headings: list[str]) -> Iterator[str]:
    for group, rows in _grouped(table):
        yield r"\midrule"
        if group:
            yield rf"\multicolumn{{{len(headings)}}}{{l}}{{\textbf{{{latex_escape(group)}}}}} \\"
        for i in rows:
            cells = [latex_escape(str(table.display.iloc[i][heading])) for heading in headings]
            grey = [(i, heading) in table.greyed for heading in headings]
            shown = [rf"\textcolor{{gray}}{{{c}}}" if g else c for c, g in zip(cells, grey, strict=True)]
            best = [(i, heading) in table.best for heading in headings]
            shown = [rf"\textbf{{{c}}}" if b else c for c, b in zip(shown, best, strict=True)]
            yield " & ".join(shown) + r" \\"


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules, shrunk to the line where it is wider; a `longtable` where a page is too short.

    Needs the packages array, booktabs, xcolor (for greyed values), and graphicx or longtable.
    """
    headings = [str(heading) for heading in table.display.columns]
    columns = "".join(
        LATEX_PROSE if heading in PROSE_COLUMNS else "l" if is_text(table, heading) else "r" for heading in headings
    )
    caption = rf"\caption{{{latex_escape(table.title)}. {latex_escape(table.see)}}}\label{{tab:{table.name}}}"
    head = " & ".join(latex_escape(heading) for heading in headings) + r" \\"
    body = list(_latex_rows(table, headings))
    below = [*([table.method] if table.method else []), *table.notes]
    notes = [rf"\par\noindent\footnotesize {latex_escape(note)}" for note in below]
    if len(body) > LATEX_PAGE:
        begin = [r"\begingroup\scriptsize\setlength{\tabcolsep}{2.5pt}", rf"\begin{{longtable}}{{{columns}}}"]
        top = [caption + r" \\", r"\toprule", head, r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"]
        lines = ["% needs \\usepackage{array,booktabs,longtable,xcolor}", *begin, *top, *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{longtable}", *notes, r"\par\endgroup"]) + "\n"
    begin = [
        r"\begin{table}",
        r"\centering",
        caption,
        r"\par\smallskip",
        LATEX_SHRINK + "{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
    ]
    lines = ["% needs \\usepackage{array,booktabs,graphicx,xcolor}", *begin, r"\toprule", head, *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", *notes, r"\end{table}"]) + "\n"


def sort_attribute(text: str) -> Markup:
    """The attribute of a cell in a number column that the page's script sorts by; nothing where there is no number."""
    value = sort_value(text)
    return Markup("") if value is None else Markup(' data-sort="{:.10g}"').format(value)


def shade(table: Table, i: int) -> str:
    """The class that shades the difference to the paper in row i by its size, and by whether it is for the better."""
    difference, metric = table.data["difference"].iloc[i], table.data["metric"].iloc[i]
    if pd.isna(difference) or table.data["verdict"].iloc[i] == NOT_COMPARABLE:
        return ""
    direction = "better" if improves(metric, difference) else "worse"
    rounded = round(abs(difference), 9)
    return next(name for limit, name in DIFFERENCE_STEPS if rounded <= limit).format(direction)


def to_html(table: Table, stacked: bool = False) -> Markup:
    """A sortable `<table>` with a heading row per group; a verdict or decision is its cell's class, spaces as dashes.

    The first cell of a row heads it, and names its group for when sorting has dissolved the groups. `stacked`: on a
    narrow screen the cells of a row stand below each other, each with its heading.
    """
    headings = [str(heading) for heading in table.display.columns]
    kinds = ["prose" if h in PROSE_COLUMNS else "text" if is_text(table, h) else "number" for h in headings]
    shaded = "difference" in headings and {"difference", "metric"} <= set(table.data.columns)

    def cell(i: int, column: int) -> Markup:
        heading, kind, text = headings[column], kinds[column], str(table.display.iloc[i, column])
        classes = [kind]
        if heading in JUDGED_COLUMNS:
            classes += ["judged", text.partition(" (")[0].replace(" ", "-")]
        elif text in (NOT_RUN, DIVERGED) or (i, heading) in table.greyed:
            classes.append("grey")
        elif shaded and heading == "difference" and (step := shade(table, i)):
            classes += ["shade", step]
        if (i, heading) in table.best:
            classes.append("best")
        sort = sort_attribute(text) if kind == "number" else ""
        value = Markup("<code>{}</code>").format(text) if heading in CODE_COLUMNS and text else escape(text)
        shown = Markup('<span class="value">{}</span>').format(value)
        if column > 0:
            label = Markup(' data-label="{}"').format(heading) if stacked else ""
            return Markup('<td class="{}"{}{}>{}</td>').format(" ".join(classes), sort, label, shown)
        group = Markup('<span class="of">{}</span>').format(table.groups[i]) if table.groups[i] else ""
        return Markup('<th scope="row" class="{}"{}>{}{}</th>').format(" ".join(classes), sort, group, shown)

    heads = (
        Markup('<th scope="col" class="{}">{}</th>').format(kind, heading)
        for heading, kind in zip(headings, kinds, strict=True)
    )
    parts = [
        Markup('<table class="sortable{}"><caption class="hidden">{}</caption>').format(
            " stacked" if stacked else "", table.title
        ),
        Markup("<thead><tr>{}</tr></thead>").format(Markup().join(heads)),
    ]
    heading_row = Markup('<tr class="group"><th scope="rowgroup" colspan="{}">{}</th></tr>')
    for group, rows in _grouped(table):
        parts.append(Markup("<tbody>"))
        if group:
            parts.append(heading_row.format(len(headings), group))
        for i in rows:
            cells = Markup().join(cell(i, column) for column in range(len(headings)))
            parts.append(Markup("<tr>{}</tr>").format(cells))
        parts.append(Markup("</tbody>"))
    return Markup().join([*parts, Markup("</table>")])


FORMATS: dict[str, Callable[[Table], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
"""Kind of a file, which is its suffix -> the table as such a text."""
