"""What the modules that draw the report's figures share: how a figure is opened, styled and written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

mpl.use("Agg")
import seaborn as sns

from pipeline.published import Place, Setting
from pipeline.reporting.cells import setting_name, with_parameter
from pipeline.results import RunResult

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 100,
}
COLOURS = {"vae": "#E69F00", "iwae": "#0072B2", "miwae": "#009E73", "piwae": "#CC79A7", "ciwae": "#D55E00"}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
OTHER_COLOUR = "#555555"
MARKERS = {"vae": "o", "iwae": "s", "miwae": "^", "piwae": "v", "ciwae": "D"}
LINES = {1: ":", 5: "--", 50: "-"}
BURDA_KS = (1, 5, 50)
BURDA_EXPERIMENTS = ("burda-table1", "burda-table3", "every-objective")
CURVE_POINTS = 80


@dataclass(frozen=True)
class Figure:
    name: str
    """File stem."""
    title: str
    caption: str
    svg: str
    png: bytes
    data: pd.DataFrame


@dataclass(frozen=True)
class MissingFigure:
    """A figure that cannot be drawn from the results at hand."""

    name: str
    title: str
    needs: str
    """The runs that it needs, as the end of a sentence."""


@dataclass(frozen=True)
class FigureSection:
    """Figures that belong together on the page."""

    title: str
    figures: tuple[Figure, ...]
    missing: tuple[MissingFigure, ...]


@contextmanager
def open_canvas(name: str, width: float, height: float) -> Iterator[Canvas]:
    """A figure in inches; the salt makes SVG ids repeatable, and distinct between figures on one page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        yield Canvas(figsize=(width, height), layout="constrained")


def finish(canvas: Canvas, name: str, title: str, caption: str, data: pd.DataFrame) -> Figure:
    svg, png = io.StringIO(), io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    canvas.savefig(svg, format="svg", metadata=nothing)
    canvas.savefig(png, format="png", metadata={"Software": None})
    return Figure(name, title, caption, numbered(svg.getvalue(), name), png.getvalue(), data)


def numbered(svg: str, name: str) -> str:
    """Matplotlib's ids by order of appearance, in place of hashes.

    They are hashes of coordinates to the last bit, which the layout's solver does not repeat in another process.
    """
    found = dict.fromkeys(re.findall(r'(?<=[#"])[a-z][0-9a-f]{10}(?=[)"])', svg))
    new = {old: f"{name}-{i}" for i, old in enumerate(found)}
    return re.sub(r'(?<=[#"])[a-z][0-9a-f]{10}(?=[)"])', lambda match: new[match[0]], svg)


def colour_of(objective: str) -> str:
    return COLOURS.get(objective, OTHER_COLOUR)


def heatmap(ax: Axes, values: pd.DataFrame, labels: pd.DataFrame, **options: Any) -> None:
    """An annotated heat map [rows, columns]; cells without a value are hatched and carry their label in grey."""
    if values.isna().to_numpy().all():
        options |= {"vmin": 0, "vmax": 1, "cbar": False}
    sns.heatmap(values.astype(float), annot=labels, fmt="", ax=ax, linewidths=1, annot_kws={"size": 7.5}, **options)
    for i, j in np.argwhere(values.isna().to_numpy()):
        empty = mpl.patches.Rectangle((j, i), 1, 1, facecolor="#f4f4f4", edgecolor="#dddddd", hatch="///", linewidth=0)
        ax.add_patch(empty)
        text = str(labels.iat[i, j])
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", size=7.5, color="#666666")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=0)
    ax.set(xlabel="", ylabel="")


def decimate(points: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of at most CURVE_POINTS points, evenly spaced on a logarithmic axis, both ends kept."""
    if len(points) <= CURVE_POINTS:
        return np.arange(len(points))
    wanted = np.geomspace(max(float(points[0]), 1e-9), float(points[-1]), CURVE_POINTS)
    return np.unique(np.clip(np.searchsorted(points, wanted), 0, len(points) - 1))


def first_seeds(results: list[RunResult], experiments: tuple[str, ...], dataset: str, array: str) -> list[RunResult]:
    """One finished run a place (the lowest seed) that has the array, in the order of the results."""
    chosen: dict[Place, RunResult] = {}
    for run in results:
        own = run.experiment in experiments and run.spec.dataset == dataset and run.status == "finished"
        if own and len(run.arrays.get(array, ())) > 0:
            place = Place.of(run)
            if place not in chosen or run.spec.seed < chosen[place].spec.seed:
                chosen[place] = run
    return sorted(chosen.values(), key=lambda run: run_order(run))


def run_order(run: RunResult) -> tuple[int, int, int, str, int, float]:
    spec = run.spec
    known = list(COLOURS)
    rank = known.index(spec.objective) if spec.objective in known else len(known)
    return (spec.layers, spec.T, rank, spec.objective, spec.M, spec.parameter or 0.0)


def curve_style(run: RunResult, sweep: bool) -> dict[str, Any]:
    setting = Setting.of(run.spec)
    if not sweep:
        style = LINES.get(setting.T, "-.")
        return {
            "color": colour_of(setting.objective),
            "ls": style,
            "label": f"{with_parameter(setting)}, T = {setting.T}",
        }
    share = setting.parameter or 0.0
    if setting.objective in ("miwae", "piwae"):
        share = np.log2(setting.M) / 6
    return {"color": colour_of(setting.objective), "alpha": 1 - 0.75 * share, "label": setting_name(setting)}
