"""One table as CSV, Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
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
LATEX_LINE = 360.0
"""Points that a table may be wide in LaTeX's narrow `article`; a long one that is wider lies on its side."""
LATEX_LETTER, LATEX_GAP = 3.6, 2.5
"""Points of a letter of a long table, and to each side of a column."""
LATEX_BOLD = r"{\fontseries{b}\selectfont %s}"
"""Bold letters as wide as others, so that decimals stay aligned."""
LATEX_PROSE = r">{\raggedright\arraybackslash}p{0.19\linewidth}"
LATEX_SHRINK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}"
EMPTY = (DASH, NOT_RUN, DIVERGED, "")
JUDGED_COLUMNS = {"verdict", "decision"}
DIFFERENCE_STEPS = ((MARGIN, "near"), (1.0, "{}-1"), (math.inf, "{}-2"))
"""Up to so many nats a difference to the paper gets this shade; {} is better or worse."""
SECONDS_IN = {"h": 3600.0, "min": 60.0, "s": 1.0}


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
        return sum(float(amount) * SECONDS_IN[unit] for amount, unit in parts)
    number = re.match(r"\[?([+-]?\d+(\.\d+)?)", plain)
    return float(number[1]) if number else None


def is_text(table: Table, heading: str) -> bool:
    """Whether a column is one of text, aligned left and sorted by words, rather than of numbers."""
    shown = [str(value) for value in table.display[heading]]
    missing = (*EMPTY, *(text for text in shown if text.startswith(f"{DASH} (")))
    return heading in TEXT_COLUMNS or any(sort_value(text) is None for text in shown if text not in missing)


def to_csv(table: Table) -> str:
    """The table's exact numbers as CSV, six significant digits; no column is left out of it."""
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
    """The text with LaTeX commands in place of characters that LaTeX reads as its own, or that its fonts lack."""
    # The hat is a combining character, so the pair is replaced before single characters are.
    parts = text.split("p̂")
    return LATEX["p̂"].join("".join(LATEX.get(character, character) for character in part) for part in parts)


SIGNS = "+-−"
NUMBER = re.compile(r"(\d+)(\.\d+)?")


def aligned(texts: Sequence[str]) -> list[str]:
    r"""The cells of a right-aligned column as LaTeX, with room (`\phantom`) where a number is shorter than others.

    So decimal points stand below each other, also those of a second number as in `93.09 (86.76)`, and of cells that
    end earlier than others (`−85.68` below `−85.68 ± 0.06 (u)`).
    """
    forms = [NUMBER.sub("#", text) for text in texts]
    widths: dict[tuple[str, int], tuple[int, int]] = {}
    for text, form in zip(texts, forms, strict=True):
        for place, number in enumerate(NUMBER.finditer(text)):
            whole, decimals = widths.get((form, place), (0, 0))
            widths[form, place] = max(whole, len(number[1])), max(decimals, len(number[2] or ""))

    def padded(text: str, form: str) -> str:
        shown, end = "", 0
        for place, number in enumerate(NUMBER.finditer(text)):
            whole, decimals = widths[form, place]
            # The column aligns the first on its right; a sum like 16+5 stays together.
            alone = place > 0 and text[number.start() - 1] != "+"
            before = "0" * (whole - len(number[1])) if alone else ""
            after = ("" if number[2] or not decimals else ".") + "0" * (decimals - max(1, len(number[2] or "")))
            shown += latex_escape(text[end : number.start()]) + _room(before) + latex_escape(number[0])
            shown, end = shown + _room(after if decimals else ""), number.end()
        return shown + latex_escape(text[end:])

    cells = []
    for text, form in zip(texts, forms, strict=True):
        unsigned = form.lstrip(SIGNS)
        longer = [other for other in forms if other.lstrip(SIGNS).startswith(f"{unsigned} ") and "#" in form]
        tail = ""
        if longer:
            whole_form = max(longer, key=len)
            whole_text = texts[forms.index(whole_form)]
            tail = whole_text[_end_of(whole_text, form.count("#")) :]
        cells.append(padded(text, form) + _room(latex_escape(tail)))
    return cells


def _end_of(text: str, count: int) -> int:
    """Where the number that is the `count`th of a text ends."""
    return list(NUMBER.finditer(text))[count - 1].end()


def _room(text: str) -> str:
    return rf"\phantom{{{text}}}" if text else ""


def _first_bold(cell: str) -> str:
    """A cell whose number is the best; what stands behind it, as the paper's in brackets, is not ours."""
    ours, bracket, other = cell.partition(" (")
    return LATEX_BOLD % ours + bracket + other


def _latex_rows(table: Table, headings: list[str]) -> Iterator[str]:
    columns = {}
    for heading in headings:
        texts = [str(value) for value in table.display[heading]]
        columns[heading] = [latex_escape(text) for text in texts] if is_text(table, heading) else aligned(texts)
    for group, rows in _grouped(table):
        yield r"\midrule"
        if group:
            yield rf"\multicolumn{{{len(headings)}}}{{l}}{{\textbf{{{latex_escape(group)}}}}} \\"
        for i in rows:
            shown = []
            for heading in headings:
                cell = columns[heading][i]
                cell = _first_bold(cell) if (i, heading) in table.best else cell
                shown.append(rf"\textcolor{{gray}}{{{cell}}}" if (i, heading) in table.greyed else cell)
            yield " & ".join(shown) + r" \\"


def _latex_width(table: Table, headings: list[str]) -> float:
    """About how many points wide a long table is."""
    letters = [max(len(heading), *(len(str(value)) for value in table.display[heading])) for heading in headings]
    plain = [n for n, heading in zip(letters, headings, strict=True) if heading not in PROSE_COLUMNS]
    prose = 0.19 * LATEX_LINE * (len(headings) - len(plain))
    return LATEX_LETTER * sum(plain) + prose + 2 * LATEX_GAP * len(headings)


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules, shrunk to the line where it is wider; a `longtable` where a page is too short.

    A long table that is too wide lies on its side. Needs the packages array, booktabs, xcolor (for greyed values), and
    graphicx or longtable and lscape.
    """
    headings = [str(heading) for heading in table.display.columns]
    columns = "".join(
        LATEX_PROSE if heading in PROSE_COLUMNS else "l" if is_text(table, heading) else "r" for heading in headings
    )
    # A question has its own mark at the end.
    title = table.title if table.title.endswith("?") else f"{table.title}."
    caption = rf"\caption{{{latex_escape(title)} {latex_escape(table.see)}}}\label{{tab:{table.name}}}"
    head = " & ".join(latex_escape(heading) for heading in headings) + r" \\"
    body = list(_latex_rows(table, headings))
    below = [*([table.method] if table.method else []), *table.notes]
    notes = [rf"\par\noindent\footnotesize {latex_escape(note)}" for note in below]
    if len(body) > LATEX_PAGE:
        on_side = _latex_width(table, headings) > LATEX_LINE
        begin = [
            *([r"\begin{landscape}"] if on_side else []),
            rf"\begingroup\scriptsize\setlength{{\tabcolsep}}{{{LATEX_GAP}pt}}",
            rf"\begin{{longtable}}{{{columns}}}",
        ]
        top = [caption + r" \\", r"\toprule", head, r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead"]
        lines = ["% needs \\usepackage{array,booktabs,longtable,lscape,xcolor}", *begin, *top, *body]
        end = [r"\bottomrule", r"\end{longtable}", *notes, r"\par\endgroup"]
        return "\n".join([*lines, *end, *([r"\end{landscape}"] if on_side else [])]) + "\n"
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
