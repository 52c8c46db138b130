"""The whole plane of (M, K) with M * K <= 64, of which Rainforth's sweep is the diagonal M * K = 64."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.experiments.known import MK_PLANE
from pipeline.published import READ_OFF, UNVERIFIED, Place, Published, Setting, published_at
from pipeline.records.metrics import METRIC_TABLE
from pipeline.reporting.evidence.cells import DIVERGED, NOT_RUN, SPLIT_OBJECTIVES, Cells, estimate, find, objective_name
from pipeline.reporting.forms.drawing import INK, Figure, MissingFigure, finish, heatmap, open_canvas
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.tables import Table, count, images_note, our_units

DATASET, LAYERS = "mnist", 1
LARGEST = 64
COUNTS = (1, 2, 4, 8, 16, 32, 64)
TITLE = "What about every other (M, K)?"


PANEL_METRICS = ("nll", "iwae_64", "kl_q_p", "active_units", "snr_encoder", "snr_decoder")
"""Metrics, a row each."""


def setting_at(objective: str, M: int, K: int) -> Setting:
    """Under which name the estimator is trained: MIWAE is IWAE at M = 1 and VAE at K = 1, PIWAE is IWAE at M = 1."""
    if K == 1 and (M == 1 or objective == "miwae"):
        return Setting("vae", M, 1)
    return Setting("iwae", 1, K) if M == 1 else Setting(objective, M, K)


def published_in_plane(setting: Setting, metric: str) -> Published | None:
    """Rainforth's value, on the diagonal M * K = 64."""
    return published_at(Place.rainforth(setting), metric)


def plane_data(cells: Cells) -> pd.DataFrame:
    """One row per metric, objective, M and K: ours and the paper's."""
    rows = []
    for metric in PANEL_METRICS:
        for objective in SPLIT_OBJECTIVES:
            for M, K in ((M, K) for M in COUNTS for K in COUNTS if M * K <= LARGEST):
                setting = setting_at(objective, M, K)
                cell = find(cells, Place(MK_PLANE, DATASET, LAYERS, setting))
                ours, paper = estimate(cell, metric), published_in_plane(setting, metric)
                rows.append(
                    {
                        "experiment": MK_PLANE,
                        "metric": metric,
                        "objective": objective,
                        "M": M,
                        "K": K,
                        "trained_as": setting.objective,
                        "ours": ours.value if ours else None,
                        "standard_error": ours.se if ours else None,
                        "status": "" if ours else DIVERGED if cell and not cell.finished else NOT_RUN,
                        "paper": paper.value if paper else None,
                        "paper_tag": paper.tag if paper else None,
                    }
                )
    return pd.DataFrame(rows).astype({"ours": float, "standard_error": float, "paper": float})


def heatmaps(cells: Cells) -> Figure | MissingFigure:
    """Every metric over the plane, MIWAE beside PIWAE; SNR where runs have it."""
    name = "mk_plane"
    data = plane_data(cells)
    shown = [metric for metric in PANEL_METRICS if data.loc[data["metric"] == metric, "ours"].notna().any()]
    if not shown:
        return MissingFigure(name, TITLE, "finished runs of mk-plane on MNIST")
    data = data[data["metric"].isin(shown)]
    with open_canvas(name, 10.5, 0.4 + 3.5 * len(shown)) as canvas:
        for row, metric in zip(canvas.subplots(len(shown), 2, squeeze=False), shown, strict=True):
            metric_rows = data[data["metric"] == metric]
            for ax, objective in zip(row, SPLIT_OBJECTIVES, strict=True):
                _panel(
                    ax,
                    metric_rows[metric_rows["objective"] == objective],
                    metric,
                    (metric_rows["ours"].min(), metric_rows["ours"].max()),
                )
                ax.set_title(f"{METRIC_TABLE[metric].title}, {objective_name(objective)}", loc="left")
            row[0].set_ylabel("M (groups)")
            if bar := row[1].collections[0].colorbar:
                bar.set_label(f"{METRIC_TABLE[metric].unit} (darker: better)")
        for ax in canvas.axes[2 * len(shown) - 2 : 2 * len(shown)]:
            ax.set_xlabel("K (samples in a group)")
        caption = (
            "Along a falling diagonal the number of samples is the same: see on which side it is better.\n"
            "MNIST, 1 layer, a row for each metric. M = 1 is IWAE; K = 1 is VAE for MIWAE, for PIWAE an IWAE decoder "
            "with a VAE encoder. Framed: Rainforth's sweep, "
            "M × K = 64, with the paper's values where it prints them ((u): not checked against the paper, or "
            "read off a plot)."
        )
        return finish(canvas, name, TITLE, caption, data)


def _panel(ax: Axes, data: pd.DataFrame, metric: str, limits: tuple[float, float]) -> None:
    rows = list(reversed(COUNTS))
    values = pd.DataFrame(np.nan, index=rows, columns=list(COUNTS))
    labels = pd.DataFrame("", index=rows, columns=list(COUNTS))
    for record in data.to_dict("records"):
        values.loc[record["M"], record["K"]] = record["ours"]
        labels.loc[record["M"], record["K"]] = _label(record, metric)
    low, high = limits
    # Where all are equal a scale would show differences that are not there.
    span = {"vmin": low, "vmax": high} if high > low else {"vmin": low - 1, "vmax": low + 1, "cbar": False}
    options: dict[str, Any] = {"cmap": "viridis" if METRIC_TABLE[metric].better == "lower" else "viridis_r", **span}
    heatmap(ax, values, labels, **options)
    for i, M in enumerate(rows):
        for j, K in enumerate(COUNTS):
            if M * K == LARGEST:
                frame = mpl.patches.Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fill=False, edgecolor=INK, lw=1.6)
                ax.add_patch(frame)


def _label(record: dict[Any, Any], metric: str) -> str:
    if pd.isna(record["ours"]):
        ours = str(record["status"]).replace(" ", "\n")
    else:
        ours = count(record["ours"]) if metric == "active_units" else number(record["ours"])
    if pd.isna(record["paper"]):
        return ours
    doubt = " (u)" if record["paper_tag"] in (UNVERIFIED, READ_OFF) else ""
    return "\n".join([ours.replace("\n", " "), f"paper{doubt}", number(record["paper"])])


def table(cells: Cells) -> Table | None:
    """Every run of the plane with the papers' three metrics and its active units; None before any was run."""
    places = sorted(
        (place for place in cells if place.experiment == MK_PLANE),
        key=lambda p: (p.dataset, p.layers, p.setting.T, p.setting.M, p.setting.objective),
    )
    if not places:
        return None
    rows, data, groups = [], [], []
    for place in places:
        for cell in cells[place]:
            setting = place.setting
            shown = {"objective": f"{objective_name(setting.objective)}({setting.M}, {setting.K})"}
            record: dict[str, Any] = {"objective": setting.objective, "M": setting.M, "K": setting.K}
            for metric in ("nll", "iwae_64", "kl_q_p"):
                ours, paper = estimate(cell, metric), published_in_plane(setting, metric)
                doubt = " (u)" if paper and not paper.judged else ""
                shown[METRIC_TABLE[metric].title] = number(ours.value) if ours else DASH if cell.finished else DIVERGED
                shown[f"{METRIC_TABLE[metric].title}, SE"] = number(ours.se if ours else None)
                shown[f"paper's {METRIC_TABLE[metric].title}"] = number(paper.value if paper else None) + doubt
                record |= {
                    metric: ours.value if ours else None,
                    f"{metric}_se": ours.se if ours else None,
                    f"paper_{metric}": paper.value if paper else None,
                }
            units = estimate(cell, "active_units")
            rows.append(shown | {"active units": our_units(cell, place.layers)})
            data.append(record | {"active_units": units.value if units else None})
            groups.append(f"M × K = {setting.T}")
    caption = (
        "The numbers of the picture.\nMNIST, 1 layer, nats. MIWAE is IWAE at M = 1 and VAE at K = 1, PIWAE is IWAE at "
        "M = 1: one run serves all. "
        f"{images_note(cells, MK_PLANE)}"
    )
    return Table(
        "mk_plane", f"{TITLE} The numbers", caption.strip(), pd.DataFrame(data), pd.DataFrame(rows), tuple(groups)
    )
