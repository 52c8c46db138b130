"""One table as CSV, Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from markupsafe import Markup, escape

from pipeline.reporting.tables import Table

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
TEXT_COLUMNS = {"objective", "protocol", "verdict", "claim", "decision", "run", "status"}
"""Headings of left-aligned columns; the others hold numbers."""


def _grouped(table: Table) -> Iterator[tuple[str, list[int]]]:
    for group, rows in groupby(range(len(table.display)), key=lambda i: table.groups[i]):
        yield group, list(rows)


def to_csv(table: Table) -> str:
    return table.data.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def to_markdown(table: Table) -> str:
    """A pipe table under a heading; a group is a row in bold, notes are a list below."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    headings = [str(heading) for heading in table.display.columns]
    lines = [f"### {table.title}", "", table.caption, "", line(headings)]
    lines.append(line([":--" if heading in TEXT_COLUMNS else "--:" for heading in headings]))
    for group, rows in _grouped(table):
        lines.append(line([f"**{group}**", *[""] * (len(headings) - 1)]))
        lines += [line([str(value) for value in table.display.iloc[i]]) for i in rows]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([*lines, *notes]) + "\n"


def latex_escape(text: str) -> str:
    # The hat is a combining character, so the pair is replaced before single characters are.
    parts = text.split("p̂")
    return LATEX["p̂"].join("".join(LATEX.get(character, character) for character in part) for part in parts)


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules; needs the packages booktabs and xcolor (for greyed values)."""
    headings = [str(heading) for heading in table.display.columns]
    alignment = "".join("l" if heading in TEXT_COLUMNS else "r" for heading in headings)
    lines = [
        "% needs \\usepackage{booktabs,xcolor}",
        r"\begin{table}",
        rf"\caption{{{latex_escape(table.title)}. {latex_escape(table.caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex_escape(heading) for heading in headings) + r" \\",
    ]
    for group, rows in _grouped(table):
        lines += [r"\midrule", rf"\multicolumn{{{len(headings)}}}{{l}}{{\textbf{{{latex_escape(group)}}}}} \\"]
        for i in rows:
            cells = [latex_escape(str(table.display.iloc[i][heading])) for heading in headings]
            grey = [(i, heading) in table.greyed for heading in headings]
            shown = [rf"\textcolor{{gray}}{{{c}}}" if g else c for c, g in zip(cells, grey, strict=True)]
            lines.append(" & ".join(shown) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {latex_escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_html(table: Table) -> Markup:
    """A `<table>` with a heading row per group; a verdict or decision is also its cell's class, spaces as dashes."""
    headings = [str(heading) for heading in table.display.columns]

    def css(i: int, heading: str, text: str) -> str:
        classes = ["text" if heading in TEXT_COLUMNS else "number"]
        if heading in ("verdict", "decision"):
            classes.append(text.replace(" ", "-"))
        elif text in ("not run", "diverged") or (i, heading) in table.greyed:
            classes.append("grey")
        return " ".join(classes)

    head = Markup().join(
        Markup('<th class="{}">{}</th>').format("text" if h in TEXT_COLUMNS else "number", h) for h in headings
    )
    parts = [Markup("<table><thead><tr>{}</tr></thead>").format(head)]
    for group, rows in _grouped(table):
        parts.append(Markup('<tbody><tr class="group"><th colspan="{}">{}</th></tr>').format(len(headings), group))
        for i in rows:
            values = [(heading, str(table.display.iloc[i][heading])) for heading in headings]
            cells = Markup().join(
                Markup('<td class="{}"><span>{}</span></td>').format(css(i, heading, text), escape(text))
                for heading, text in values
            )
            parts.append(Markup("<tr>{}</tr>").format(cells))
        parts.append(Markup("</tbody>"))
    return Markup().join([*parts, Markup("</table>")])
