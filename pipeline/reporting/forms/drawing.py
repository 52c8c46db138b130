"""What the modules that draw the report's figures share: how a figure is opened, styled and written."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from pipeline.experiments.known import BURDA_FROM_SCRATCH, EVERY_OBJECTIVE

mpl.use("Agg")
import seaborn as sns

from pipeline.published import Place, Setting
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import dataset_name, layers_name, objective_name, setting_name, with_parameter

INK, GRID = "#1b1f24", "#e6e8eb"
"""Of letters and axes, and of lines behind the data."""
INNER, OUTER = "#6baed6", "#c6dbef"
"""Of what a density holds most of, and of what lies around it."""
SMALL = 8.0
"""Points of the smallest letters: 10.7 pixels on the page."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 100,
}
COLOURS = {"vae": "#e69f00", "iwae": "#0072b2", "miwae": "#009e73", "piwae": "#cc79a7", "ciwae": "#d55e00"}
"""Objective -> its colour in the whole report: Okabe and Ito's palette, which colour-blind readers can tell apart."""
OTHER_COLOUR = "#555555"
THEME = {
    INK: "currentColor",
    GRID: "var(--grid)",
    OTHER_COLOUR: "var(--other)",
    INNER: "var(--inner)",
    OUTER: "var(--outer)",
} | {colour: f"var(--{objective})" for objective, colour in COLOURS.items()}
"""Colour of a figure -> what it is called on the page, which has other shades in the dark."""
MARKERS = {"vae": "o", "iwae": "s", "miwae": "^", "piwae": "v", "ciwae": "D"}
LINES = {1: ":", 5: "--", 50: "-"}
PANEL_NAMES = {"fixed-mnist": "fixed MNIST"}
"""Dataset -> its name above a narrow panel, where its own has no room."""
BURDA_KS = (1, 5, 50)
BURDA_EXPERIMENTS = (*BURDA_FROM_SCRATCH, EVERY_OBJECTIVE)
CURVE_POINTS = 60


@dataclass(frozen=True)
class Figure:
    """A picture with all that a page needs of it: words, both file formats, and the numbers that it shows."""

    name: str
    """File stem."""
    title: str
    """A question."""
    caption: str
    """Its first line says what to see, the rest how it was made."""
    svg: str
    png: bytes
    data: pd.DataFrame

    @property
    def see(self) -> str:
        return self.caption.partition("\n")[0]

    @property
    def method(self) -> str:
        return self.caption.partition("\n")[2]


@dataclass(frozen=True)
class MissingFigure:
    """A figure that cannot be drawn from the results at hand."""

    name: str
    title: str
    needs: str
    """The runs that it needs, as the end of a sentence."""


@contextmanager
def open_canvas(name: str, width: float, height: float) -> Iterator[Canvas]:
    """A figure in inches; the salt makes SVG ids repeatable, and distinct between figures on one page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        yield Canvas(figsize=(width, height), layout="constrained")


def finish(canvas: Canvas, name: str, title: str, caption: str, data: pd.DataFrame) -> Figure:
    """The figure on a canvas, written as SVG and PNG.

    No date and no version of a library is written, so that equal data give equal bytes. `data`: the numbers that it
    shows, which are kept beside it as CSV.
    """
    svg, png = io.StringIO(), io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    canvas.savefig(svg, format="svg", metadata=nothing, transparent=True)
    canvas.savefig(png, format="png", metadata={"Software": None}, facecolor="white")
    text = with_small_pictures(shortened(numbered(svg.getvalue(), name)))
    return Figure(name, title, caption, text, in_few_colours(png.getvalue()), data)


def shortened(svg: str) -> str:
    """Coordinates to a hundredth of a point, which is less than an eye sees; a text's own numbers stay."""

    def rounded(tag: re.Match[str]) -> str:
        return re.sub(
            r"-?\d+\.\d{3,}(?![\d\w])", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), tag[0]
        )

    return re.sub(r"<[^>]*>", rounded, re.sub(r"<!--.*?-->|<metadata>.*?</metadata>\n?", "", svg, flags=re.DOTALL))


def in_few_colours(png: bytes, mode: str = "RGB") -> bytes:
    """A picture with a palette of 256 colours: a third of the size. `mode`: RGBA where it is transparent."""
    small = io.BytesIO()
    method = Image.Quantize.FASTOCTREE if mode == "RGBA" else Image.Quantize.MEDIANCUT
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert(mode).quantize(256, method).save(small, format="png", optimize=True)
    return small.getvalue()


def with_small_pictures(svg: str) -> str:
    """An SVG whose embedded pictures have a palette."""

    def smaller(picture: re.Match[str]) -> str:
        png = base64.b64decode(picture[1])
        return f"base64,{base64.b64encode(in_few_colours(png, 'RGBA')).decode()}"

    return re.sub(r"base64,\s*([A-Za-z0-9+/=\s]+)", smaller, svg)


def numbered(svg: str, name: str) -> str:
    """Matplotlib's ids by order of appearance, in place of hashes.

    They are hashes of coordinates to the last bit, which the layout's solver does not repeat in another process.
    """
    hashes = dict.fromkeys(re.findall(r'(?<=[#"])[a-z][0-9a-f]{10}(?=[)"])', svg))
    new = {old: f"{name}-{i}" for i, old in enumerate(hashes)}
    return re.sub(r'(?<=[#"])[a-z][0-9a-f]{10}(?=[)"])', lambda match: new[match[0]], svg)


def panel_title(dataset: str, layers: int) -> str:
    """Two lines above a narrow panel."""
    return f"{PANEL_NAMES.get(dataset, dataset_name(dataset))},\n{layers_name(layers)}"


def colour_of(objective: str) -> str:
    """The colour of an objective in the whole report; grey for those outside of the two papers."""
    return COLOURS.get(objective, OTHER_COLOUR)


def heatmap(ax: Axes, values: pd.DataFrame, labels: pd.DataFrame, **options: Any) -> None:
    """An annotated heat map [rows, columns]; cells without a value are hatched and carry their label in grey.

    Those that have no label either stay empty.
    """
    if values.isna().to_numpy().all():
        options |= {"vmin": 0, "vmax": 1, "cbar": False}
    sns.heatmap(values.astype(float), annot=labels, fmt="", ax=ax, linewidths=1, annot_kws={"size": SMALL}, **options)
    # A picture in an SVG takes a fraction of the room that its cells do as shapes.
    ax.collections[0].set_rasterized(True)
    for i, j in np.argwhere((values.isna() & (labels != "")).to_numpy()):
        empty = mpl.patches.Rectangle((j, i), 1, 1, facecolor="#f4f4f4", edgecolor="#dddddd", hatch="///", linewidth=0)
        empty.set_rasterized(True)
        ax.add_patch(empty)
        text = str(labels.iat[i, j])
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", size=SMALL, color="#666666")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=0)
    ax.set(xlabel="", ylabel="")


def plain_log_axis(axis: Axis) -> None:
    """Powers of ten written out, whose exponents would be too small to read."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def whole_numbers(axis: Axis) -> None:
    """Ticks of what is counted: no halves."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def legend_handles(objectives: Sequence[str], paper: bool = True) -> list[Line2D]:
    """A marker an objective, and what is solid and what hollow."""
    marks = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], ls="", ms=5, label=objective_name(name))
        for name in objectives
    ]
    ours = Line2D([], [], color=INK, marker="o", ms=5, lw=1.4, label="here")
    theirs = Line2D([], [], color=INK, marker="o", ms=5, mfc="none", ls=":", lw=1, label="a paper's")
    return [*marks, ours, *([theirs] if paper else [])]


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
        wanted = run.experiment in experiments and run.spec.dataset == dataset and run.is_finished
        if wanted and len(run.arrays.get(array, ())) > 0:
            place = Place.of(run)
            if place not in chosen or run.spec.seed < chosen[place].spec.seed:
                chosen[place] = run
    return sorted(chosen.values(), key=lambda run: run_order(run))


def run_order(run: RunResult) -> tuple[int, int, int, str, int, float]:
    """Sorting key of runs in legends: layers, samples per image, then objectives as in the palette, M, and β or α."""
    spec = run.spec
    known = list(COLOURS)
    rank = known.index(spec.objective) if spec.objective in known else len(known)
    return (spec.layers, spec.T, rank, spec.objective, spec.M, spec.parameter or 0.0)


def curve_style(run: RunResult, sweep: bool) -> dict[str, Any]:
    """Matplotlib's keywords for the curve of a run.

    The colour is the objective's. In a sweep the curves of an objective are the paler the larger M or its parameter is;
    elsewhere the dashes of the line tell T, samples per image.
    """
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
