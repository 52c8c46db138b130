"""Where is the best (M, K)? Rainforth's sweep along M * K = 64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pipeline.experiments.known import RAINFORTH_TABLE1
from pipeline.published import Place, Setting, published_at
from pipeline.records.metrics import METRIC_TABLE
from pipeline.reporting.evidence.cells import (
    BETAS,
    RAINFORTH_METRICS,
    SPLITS,
    Cells,
    estimate,
    find,
    setting_name,
)
from pipeline.reporting.evidence.claims import Term, contrast
from pipeline.reporting.evidence.verdicts import IN_CAPTIONS
from pipeline.reporting.forms.drawing import (
    GRID,
    INK,
    MARKERS,
    Figure,
    colour_of,
    finish,
    legend_handles,
    open_canvas,
)
from pipeline.reporting.forms.section import Section, folded, shown
from pipeline.reporting.forms.tables import (
    Row,
    Table,
    beyond_rows,
    build_table,
    dropped_columns,
    images_note,
)
from pipeline.reporting.report import Report
from pipeline.reporting.sections import plane
from pipeline.reporting.sections.optimum import optimum_table

RAINFORTH_SETTINGS = (
    Setting("iwae", 1, 64),
    *(Setting("piwae", M, K) for M, K in SPLITS),
    *(Setting("miwae", M, K) for M, K in SPLITS),
    *(Setting("ciwae", 1, 64, beta) for beta in BETAS),
    Setting("vae", 64, 1),
)


def rainforth(cells: Cells, scale: str) -> Table:
    """Rainforth's Table 1 and sweep: the three metrics over every (M, K) and beta with T = 64."""
    rows = []
    for metric in RAINFORTH_METRICS:
        for setting in RAINFORTH_SETTINGS:
            place = Place.rainforth(setting)
            published = published_at(place, metric)
            label = setting_name(setting)
            rows.append(Row(METRIC_TABLE[metric].title, label, place, find(cells, place), metric, published, scale))
    rows += beyond_rows(cells, RAINFORTH_TABLE1, rows, RAINFORTH_METRICS, scale)
    caption = (
        "The three metrics rank the settings differently: compare where each is largest.\n"
        "MNIST, 1 layer, T = M × K = 64, nats, higher is better. log p̂ is the test log-likelihood, IWAE-64 the bound "
        f"with 64 samples, −KL(Q‖P) their difference. {images_note(cells, 'rainforth-table1')}SE is over test images; "
        f"the paper's ± is the standard deviation over four runs. {IN_CAPTIONS}"
    )
    title = "Rainforth et al., Table 1 and sweep: T = 64"
    return build_table("rainforth_table1", title, caption, rows, dropped_columns(rows, units=False), ())


Series = list[tuple[str, float, Setting]]
"""Points of the sweep: tick label, position and setting."""


def _sweeps() -> tuple[dict[str, Series], Series]:
    """Over M for MIWAE and PIWAE (both start as IWAE; only MIWAE ends as VAE), and over beta for CIWAE."""
    iwae, vae = ("1", 1.0, Setting("iwae", 1, 64)), ("64", 64.0, Setting("vae", 64, 1))
    over_m = {
        name: [iwae, *((str(M), float(M), Setting(name, M, K)) for M, K in SPLITS)] for name in ("miwae", "piwae")
    }
    over_m["miwae"].append(vae)
    betas = [(f"{beta:g}", beta, Setting("ciwae", 1, 64, beta)) for beta in BETAS]
    return over_m, [("0", 0.0, iwae[2]), *betas, ("1", 1.0, vae[2])]


def _rainforth_differences(cells: Cells) -> pd.DataFrame:
    """One row per point of the sweep and metric: ours and the paper's difference to IWAE(1, 64) in nats."""

    iwae = Setting("iwae", 1, 64)
    over_m, over_beta = _sweeps()
    records = []
    for metric in RAINFORTH_METRICS:
        paper_iwae = published_at(_term(1, iwae, cells).place, metric)
        for family, series in {**over_m, "ciwae": over_beta}.items():
            for label, position, setting in series:
                effect = contrast((_term(1, setting, cells), _term(-1, iwae, cells)), metric)
                paper = published_at(_term(1, setting, cells).place, metric)
                reference = setting == iwae
                records.append(
                    {
                        "metric": metric,
                        "family": family,
                        "label": label,
                        "position": position,
                        "M": setting.M,
                        "K": setting.K,
                        "difference": effect.value if effect else None,
                        "half_width": None if not effect else 0.0 if reference else effect.half_width,
                        "paper_difference": paper.value - paper_iwae.value if paper and paper_iwae else None,
                        "paper_verified": bool(paper is None or paper.judged),
                    }
                )
    return pd.DataFrame(records).astype({"difference": float, "half_width": float, "paper_difference": float})


def rainforth_sweep(cells: Cells) -> Figure:
    """Each metric's difference to IWAE over M (MIWAE, PIWAE) and over beta (CIWAE), with the best ones marked.

    Where ours are missing the paper's values stand alone.
    """
    name, title = "rainforth_sweep", "What if M and K share 64 samples, or VAE and IWAE are mixed?"
    data = _rainforth_differences(cells).merge(best_of_sweep(cells), on=["metric", "family", "position"])
    with open_canvas(name, 10.6, 6.2) as canvas:
        axes = canvas.subplots(2, 3)
        for column, metric in enumerate(RAINFORTH_METRICS):
            for ax, families in ((axes[0, column], ("miwae", "piwae")), (axes[1, column], ("ciwae",))):
                ax.axhline(0, color=INK, lw=0.8)
                for family in families:
                    rows = data[(data["metric"] == metric) & (data["family"] == family)].sort_values("position")
                    _sweep_line(ax, rows, family)
                low, high = ax.get_ylim()
                ax.set_ylim(low - ROOM * len(families) * (high - low), high)
                for i, family in enumerate(families):
                    rows = data[(data["metric"] == metric) & (data["family"] == family)].sort_values("position")
                    _mark_best(ax, rows, family, 0.03 + 0.09 * i)
                ax.grid(color=GRID)
            axes[0, column].set_xscale("log", base=2)
            axes[0, column].set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
            axes[0, column].set(title=METRIC_TABLE[metric].title, xlabel="M (K = 64 / M); 1 is IWAE, 64 VAE")
            axes[1, column].set_xlabel("β; 0 is IWAE, 1 VAE")
        for row in (0, 1):
            axes[row, 0].set_ylabel("difference to IWAE, nats")
        handles = legend_handles(["miwae", "piwae", "ciwae"])
        handles += [
            Line2D([], [], color=INK, marker="*", ms=9, ls="", label="best here"),
            Line2D([], [], color=INK, marker="*", ms=9, mfc="none", ls="", label="best of the paper's"),
            Line2D([], [], color=INK, lw=4, alpha=0.35, solid_capstyle="butt", label="within noise of the best"),
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=8, columnspacing=1.2, handletextpad=0.6)
        caption = (
            "Above the line is better than IWAE; a star below the curves marks the best of each, the bar what cannot "
            "be told from it.\n"
            "MNIST, 1 layer, T = M × K = 64: each metric minus that of our IWAE(1, 64), with 95 % intervals; the "
            "paper's minus its own IWAE (broken markers: not checked against the paper). Within noise: the 95 % "
            "interval of the difference to the best holds zero; that the best was picked makes these bars a little "
            "short."
        )
        return finish(canvas, name, title, caption, data)


ROOM = 0.1
"""Share of a panel's height for the marks of one family's best."""


def best_of_sweep(cells: Cells) -> pd.DataFrame:
    """A row for each metric, family and position: whether ours, or the paper's, is the best there, and whether ours is
    within noise of the best."""
    over_m, over_beta = _sweeps()
    rows: list[dict[str, Any]] = []
    for metric in RAINFORTH_METRICS:
        for family, series in {**over_m, "ciwae": over_beta}.items():
            terms = [_term(1, setting, cells) for _, _, setting in series]
            ours = [one.value if (one := estimate(term.cell, metric)) else None for term in terms]
            paper = [known.value if (known := published_at(term.place, metric)) else None for term in terms]
            best, papers_best = _largest(ours), _largest(paper)
            for i, ((_, position, _), term) in enumerate(zip(series, terms, strict=True)):
                behind = None
                if best is not None and ours[i] is not None:
                    behind = contrast((replace(terms[best], weight=1), replace(term, weight=-1)), metric)
                near = i == best or (behind is not None and behind.value < behind.half_width)
                rows.append(
                    {"metric": metric, "family": family, "position": position, "best": i == best}
                    | {"within_noise_of_best": near, "papers_best": i == papers_best}
                )
    return pd.DataFrame(rows)


def _largest(values: Sequence[float | None]) -> int | None:
    """Position of the largest of at least two numbers."""
    known = [i for i, value in enumerate(values) if value is not None]
    return max(known, key=lambda i: values[i] or -np.inf) if len(known) > 1 else None


def _term(weight: float, setting: Setting, cells: Cells) -> Term:
    place = Place.rainforth(setting)
    return Term(weight, place, find(cells, place))


def _mark_best(ax: Axes, rows: pd.DataFrame, family: str, height: float) -> None:
    """Stars at the best of ours and of the paper's, and a bar over what is within noise of ours; in axes' height."""
    across: Any = ax.get_xaxis_transform()
    colour = colour_of(family)
    near = rows[rows["within_noise_of_best"]]["position"]
    if len(near) > 1:
        ax.plot([near.min(), near.max()], [height] * 2, color=colour, lw=4, alpha=0.35, transform=across)
    for key, fill in (("papers_best", "none"), ("best", colour)):
        for position in rows[rows[key]]["position"]:
            ax.plot(position, height, "*", ms=9, color=colour, mfc=fill, transform=across, clip_on=False)


def _sweep_line(ax: Axes, rows: pd.DataFrame, family: str) -> None:
    ours, paper = rows.dropna(subset="difference"), rows.dropna(subset="paper_difference")
    style: dict[str, Any] = {"color": colour_of(family), "marker": MARKERS[family], "ms": 5}
    if len(ours):
        ax.errorbar(ours["position"], ours["difference"], yerr=ours["half_width"], lw=1.4, **style)
    ax.plot(paper["position"], paper["paper_difference"], ls=":", lw=1, color=style["color"])
    for verified, ls in ((True, "-"), (False, ":")):
        points = paper[paper["paper_verified"] == verified]
        size = 5.5**2
        hollow: dict[str, Any] = {"facecolor": "none", "edgecolor": style["color"], "ls": ls, "zorder": 3}
        ax.scatter(points["position"], points["paper_difference"], s=size, marker=style["marker"], **hollow)


def section(report: Report) -> Section:
    """Where the best (M, K) is: Rainforth et al., Table 1, its curves, and the plane of M and K."""
    cells = report.cells
    return Section(
        "sweep",
        "Where is the best (M, K)?",
        "M against K",
        "With T = M × K = 64 samples in all, M averages outside the log and K inside: M = 1 is IWAE, K = 1 is VAE.",
        (
            *shown(rainforth_sweep(cells)),
            *folded(optimum_table(cells), rainforth(cells, report.scale)),
            *folded(plane.heatmaps(cells), plane.table(cells)),
        ),
    )
