"""The report of a scale in short, as Markdown: what a code host shows, which shows no HTML."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.experiments.known import BURDA_TABLE1
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.evidence.waypoints import ways
from pipeline.reporting.forms.drawing import Figure
from pipeline.reporting.forms.render import to_markdown
from pipeline.reporting.report import Report
from pipeline.reporting.sections import waypoints
from pipeline.reporting.sections.answer import cards
from pipeline.reporting.sections.density import side_by_side

PICTURES = ("objectives", "posterior_contours", "rainforth_sweep", "toy_snr", "log_mean")
"""Figures by how much they say; the first four that there are stand in the text."""
MOST_PICTURES = 4


def in_short(report: Report, progress: str, caveat: str, command: str, figures: Sequence[Figure]) -> str:
    """The answer, Table 1, how far waypoints are from the end, and four pictures."""
    rest = f" The rest: `{command}`." if command else ""
    lines = [f"# What makes a good ELBO? The {report.scale} scale", "", f"**{progress}** {caveat}{rest}", ""]
    lines += ["This page is the short form of `index.html` beside it, which a browser opens from a clone.", ""]
    for card in cards(report):
        lines.append(f"- **{card.question}** *{card.answer}.* {card.sentence} ({card.chip})")
    table = side_by_side(report.cells, BURDA_TABLE1, gather(report.under_way))
    distances = waypoints.distance_table(ways(report.results))
    for shown in (table, *([distances] if distances else [])):
        lines += ["", to_markdown(shown).strip().replace("### ", "## ", 1), ""]
    known = {figure.name: figure for figure in figures}
    for name in [name for name in PICTURES if name in known][:MOST_PICTURES]:
        figure = known[name]
        lines += [f"## {figure.title}", "", f"![{figure.title}](figures/{name}.png)", "", f"**{figure.see}**", ""]
    return "\n".join(lines).rstrip() + "\n"
