"""Tables go through real parsers of Markdown and LaTeX, and through LaTeX itself where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pylatexenc.latexwalker import (
    LatexEnvironmentNode,
    LatexGroupNode,
    LatexMacroNode,
    LatexNode,
    LatexSpecialsNode,
    LatexWalker,
)

from pipeline.records.results import RunResult
from pipeline.reporting.forms import tables as forms
from pipeline.reporting.forms.render import to_latex, to_markdown
from pipeline.reporting.forms.tables import Table
from pipeline.reporting.page import SECTIONS, gathered
from tests.reporting.conftest import all_tables

POINTS_OVER = 15.0
"""So far may a table reach beyond the narrow line of LaTeX's `article`."""


@pytest.fixture(scope="module")
def tables(quick: list[RunResult], tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Every table of a report that has files of every kind."""
    report = gathered(quick, "quick", tmp_path_factory.mktemp("results"))
    made = [forms.claims(report.claims), *(table for section in SECTIONS for table in section(report).tables)]
    whole = [table for table in made if {"md", "tex"} <= set(table.kinds)]
    assert {table.name for table in whole} >= {table.name for table in all_tables(quick)}
    return whole


def text_of(inline: str) -> str:
    return inline.replace("**", "").replace("\\", "")


def test_markdown_renders_cell_by_cell(tables: list[Table]) -> None:
    for table in tables:
        tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(table))
        assert [token.type for token in tokens[:3]] == ["heading_open", "inline", "heading_close"]
        rows: list[list[str]] = []
        for token, content in pairwise(tokens):
            if token.type == "tr_open":
                rows.append([])
            if token.type in ("td_open", "th_open"):
                rows[-1].append(text_of(content.content))
        headings, *body = rows
        assert headings == [text_of(heading) for heading in table.display.columns]
        assert {len(row) for row in body} == {len(headings)}
        groups = [row[0] for row in body if not any(row[1:])]
        assert groups == list(dict.fromkeys(table.groups))
        shown = [row for row in body if any(row[1:])]
        assert shown == [[text_of(str(value)) for value in row] for row in table.display.itertuples(index=False)]
        assert sum(token.type == "list_item_open" for token in tokens) == len(table.notes)


def parsed(text: str) -> list[LatexNode]:
    """The nodes of a text that must be balanced and well-formed."""
    nodes: list[LatexNode] = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()[0]
    return nodes


def walk(nodes: list[LatexNode]) -> Iterator[LatexNode]:
    for node in nodes:
        yield node
        inner = getattr(node, "nodelist", None) or []
        arguments = getattr(getattr(node, "nodeargd", None), "argnlist", None) or []
        yield from walk([*inner, *(argument for argument in arguments if argument is not None)])


def rows_of(nodes: list[LatexNode]) -> list[int]:
    """Cells in each row of a tabular's content, groups in braces aside."""
    counts = [1]
    for node in nodes:
        assert not (isinstance(node, LatexGroupNode) and "\\\\" in node.latex_verbatim())
        if isinstance(node, LatexSpecialsNode) and node.specials_chars == "&":
            counts[-1] += 1
        if isinstance(node, LatexMacroNode) and node.macroname == "\\":
            counts.append(1)
    return counts[:-1]


def test_latex_parses_cell_by_cell(tables: list[Table]) -> None:
    for table in tables:
        nodes = list(walk(parsed(to_latex(table))))
        (grid,) = [
            node
            for node in nodes
            if isinstance(node, LatexEnvironmentNode) and node.environmentname in ("tabular", "longtable")
        ]
        counts = rows_of(grid.nodelist)
        columns = len(table.display.columns)
        assert set(counts) == {1, columns}
        # A page's head is there twice in a long table; a line of one cell heads a group, or holds the caption.
        long = grid.environmentname == "longtable"
        assert counts.count(columns) == len(table.display) + (2 if long else 1)
        assert counts.count(1) == len(dict.fromkeys(table.groups)) + long


def test_a_parser_of_latex_would_notice() -> None:
    with pytest.raises(Exception, match=r"(?i)expect|unexpected|close|end"):
        parsed(r"\begin{tabular}{l} a & {b \\ \end{tabular}")


def test_latex_compiles_into_tables_that_fit(tables: list[Table], tmp_path: Path) -> None:
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex to compile the tables with; on Debian: apt-get install texlive-latex-recommended")
    body = "\n\\clearpage\n".join(to_latex(table) for table in tables)
    packages = "array,booktabs,graphicx,longtable,lscape,xcolor"
    (tmp_path / "paper.tex").write_text(
        f"\\documentclass{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    # Twice: the columns of a long table find their widths in the first run.
    for _ in range(2):
        done = subprocess.run(
            [engine, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]
    assert "Float too large" not in done.stdout
    over = [float(points) for points in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", done.stdout)]
    assert max(over, default=0.0) < POINTS_OVER
    assert (tmp_path / "paper.pdf").stat().st_size > 0
