"""Gradient signal-to-noise in the report: Rainforth's toy figures, SNR of the T = 64 runs, and what they decide."""

from __future__ import annotations

from math import lgamma
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from pipeline.experiments.known import RAINFORTH_TABLE1
from pipeline.published import Place, Setting, published_at
from pipeline.records.metrics import value_of
from pipeline.records.results import TOY
from pipeline.reporting.evidence.cells import SPLITS, Cell, Cells, find, setting_name
from pipeline.reporting.evidence.claims import (
    OURS,
    RAINFORTH,
    ClaimResult,
    Effect,
    Measured,
    PaperEffect,
    judge,
    place_name,
)
from pipeline.reporting.evidence.statistics import satterthwaite
from pipeline.reporting.evidence.toy import ToyResult
from pipeline.reporting.forms.drawing import (
    COLOURS,
    GRID,
    INK,
    MARKERS,
    OTHER_COLOUR,
    SMALL,
    Figure,
    MissingFigure,
    finish,
    open_canvas,
)
from pipeline.reporting.forms.numbers import number
from pipeline.reporting.forms.section import Block, Section, folded, shown
from pipeline.reporting.forms.tables import Table
from pipeline.reporting.report import Report

SWEEP_TITLES = {"vae": "VAE, M samples", "iwae": "IWAE, K samples", "iwae-dreg": "IWAE-DReG, K samples"}
SWEEP_COLOURS = {"vae": COLOURS["vae"], "iwae": COLOURS["iwae"], "iwae-dreg": OTHER_COLOUR}
TOY_PANELS = {"b": "encoder: b", "A": "encoder: A", "mu": "decoder: μ"}
SHOWN_DIMENSIONS = 20
"""Single parameters that are drawn as thin lines, of A the first so many."""
HISTOGRAM_SIZES = 4
FIRST_UPDATES = 100
"""Up to here the axis of updates is linear, to have room for 0."""

IWAE, VAE = Setting("iwae", 1, 64), Setting("vae", 64, 1)
TRAINED = (VAE, Setting("ciwae", 1, 64, 0.5), Setting("miwae", 8, 8), Setting("piwae", 8, 8), IWAE)
"""The five of Rainforth's figure of the SNR during training."""
PAPER_ENCODER_SNR = {
    setting: published.value
    for setting in TRAINED
    if (published := published_at(Place.rainforth(setting), "snr_encoder"))
}
"""Read off the authors' plot, so no number to judge by."""

JACKKNIFE_DF = 7
"""Degrees of freedom of an SNR's error, a jackknife over eight blocks of draws (`pipeline.evaluation.snr`)."""

SLOPES = "Gradient SNR: tighter bounds help the decoder, hurt the encoder (toy)"
RATIOS = "Gradient SNR: tighter bounds hurt the encoder (T = 64)"
DECODER_RATIO = "Gradient SNR: tighter bounds help the decoder (T = 64)"
RULES = {
    SLOPES: "effect = slope of the log of the root-mean-square SNR in log K over the upper half of the logarithmic "
    "axis, signed as the claim says; the paper's is the limit for large K; u by jackknife over gradient draws.",
    RATIOS: "effect = logarithm of the ratio of mean encoder SNRs at the end of training, the looser bound's over "
    "IWAE(1, 64)'s; u by jackknife over gradient draws and the spread of seeds / √n: one seed decides nothing.",
    DECODER_RATIO: "effect = logarithm of the ratio of mean decoder SNRs, IWAE(1, 64)'s over VAE(64, 1)'s; u as for "
    "the encoder.",
}


# The toy


def toy_snr(toy: ToyResult | None) -> Figure | MissingFigure:
    """SNR of single parameters against M (VAE) and K (IWAE, IWAE-DReG): Rainforth's Figure 2, with the closed forms."""
    name, title = "toy_snr", "How noisy are gradients in a model that can be solved?"
    if toy is None:
        return MissingFigure(name, title, "the stage `toy` of this scale")
    frames = []
    with open_canvas(name, 11, 4.3) as canvas:
        axes = canvas.subplots(1, 3, sharey=True)
        for ax, (group, heading) in zip(axes, TOY_PANELS.items(), strict=True):
            for sweep, label in SWEEP_TITLES.items():
                if sweep == "iwae-dreg" and group == "mu":
                    continue
                key = f"{sweep}/{group}"
                colour = SWEEP_COLOURS[sweep]
                lines = toy.arrays[f"{key}/snr"][:, :SHOWN_DIMENSIONS]
                ax.plot(toy.samples, lines, color=colour, lw=0.5, alpha=0.25)
                error = toy.rms_error(key)
                style: dict[str, Any] = {"color": colour, "marker": MARKERS.get(sweep, "P"), "ms": 4, "lw": 1.4}
                ax.errorbar(toy.samples, toy.rms(key), yerr=1.96 * error, label=label, **style)
                slope = f" {number(toy.metrics[f'slope/{key}'], signed=True)}"
                ends = (toy.samples[-1], toy.rms(key)[-1])
                # VAE's line ends close below that of IWAE-DReG.
                at: dict[str, Any] = {"va": "bottom" if sweep == "iwae-dreg" else "center", "fontsize": SMALL}
                ax.annotate(slope, ends, (3, 0), textcoords="offset points", color=colour, **at)
                ax.plot(toy.samples, toy.closed_form(key), color=INK, lw=1, ls="--", zorder=3)
                columns = {"rms_snr": toy.rms(key), "standard_error": error, "closed_form": toy.closed_form(key)}
                frames.append(
                    pd.DataFrame({"experiment": TOY, "sweep": sweep, "group": group, "samples": toy.samples, **columns})
                )
            _log_axes(ax, toy.samples)
            ax.set(title=heading, xlabel="M of VAE (K = 1), K of the others (M = 1)")
            ax.set_xlim(right=toy.samples[-1] * 2)
        dashed = Line2D([], [], color=INK, lw=1, ls="--", label="theory")
        canvas.legend(handles=[*axes[0].get_legend_handles_labels()[0], dashed], loc="outside lower center", ncols=4)
        axes[0].set_ylabel("SNR = |mean| / standard deviation")
        top = max(
            float(np.nanmax(toy.arrays[f"{s}/{g}/snr"][:, :SHOWN_DIMENSIONS])) for s in SWEEP_TITLES for g in TOY_PANELS
        )
        bottom = min(float(np.nanmin(toy.closed_form(f"iwae/{group}"))) for group in TOY_PANELS)
        axes[0].set_ylim(bottom / 4, top * 1.5)
        draws = toy.metrics["gradients"]
        caption = (
            "IWAE's encoder lines fall as K grows, all others should rise: the dashed lines are the theory.\n"
            f"Gaussian model of Rainforth et al. Solid: root mean square over the parameters of a group with 95 % "
            f"intervals, from {draws:,.0f} gradients "
            f"a point; thin: single parameters (|mean| / sd, which noise keeps above {noise_floor(draws):.3f} on "
            f"average; of A the first {SHOWN_DIMENSIONS}). Dashed: closed form, exact in M and for large K "
            "(Rainforth's Theorem 1 with its constants). Beside the lines: the slope fitted to the upper half of the "
            "axis; its limit is the paper's ±1/2."
        )
        return finish(canvas, name, title, caption, pd.concat(frames, ignore_index=True))


def noise_floor(draws: float) -> float:
    """What |mean| / sd of pure noise comes to on average."""
    return float(np.sqrt(2 / (np.pi * draws)))


def _log_axes(ax: Axes, samples: NDArray[np.int64]) -> None:
    ax.set_xscale("log", base=2)
    shown = samples[:: 2 if len(samples) > 8 else 1]
    ax.set_xticks(shown, [str(value) for value in shown])
    _log_y(ax)


def _log_y(ax: Axes) -> None:
    """A logarithmic axis with plain numbers: 0.2, 0.5, 1, 2, 5, ..."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(color=GRID)


def toy_dsnr(toy: ToyResult | None) -> Figure | MissingFigure:
    """Directional SNR of encoder and decoder against M and K: Rainforth's Figure 3."""
    name, title = "toy_dsnr", "Gaussian toy: do single gradients point the right way?"
    if toy is None:
        return MissingFigure(name, title, "the stage `toy` of this scale")
    frames = []
    with open_canvas(name, 9, 3.8) as canvas:
        axes = canvas.subplots(1, 2, sharey=True)
        for ax, (group, heading) in zip(axes, (("encoder", "encoder: A and b"), ("mu", "decoder: μ")), strict=True):
            for sweep, label in SWEEP_TITLES.items():
                if sweep == "iwae-dreg" and group == "mu":
                    continue
                mean, low, high = toy.arrays[f"{sweep}/{group}/dsnr"].T
                ax.plot(
                    toy.samples, mean, color=SWEEP_COLOURS[sweep], marker=MARKERS.get(sweep, "P"), ms=4, label=label
                )
                ax.fill_between(toy.samples, low, high, color=SWEEP_COLOURS[sweep], alpha=0.2, lw=0)
                columns = {"dsnr": mean, "lower_quartile": low, "upper_quartile": high}
                frames.append(
                    pd.DataFrame({"experiment": TOY, "sweep": sweep, "group": group, "samples": toy.samples, **columns})
                )
            parameters = toy.arrays[f"iwae/{group}/snr"].shape[1]
            ax.axhline(random_dsnr(parameters), color="#777777", lw=1, ls=":", label="random direction")
            _log_axes(ax, toy.samples)
            ax.set(title=heading, xlabel="M of VAE (K = 1), K of the others (M = 1)")
        axes[0].set_ylim(bottom=0.6 * random_dsnr(toy.arrays["iwae/encoder/snr"].shape[1]))
        axes[0].set_ylabel("DSNR = mean of |parallel| / |orthogonal|")
        axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=SMALL, loc="lower left")
        caption = (
            "Above the dotted line a gradient points more in the right direction than a random one would.\n"
            "Length of a gradient along the mean gradient over its length across it: mean and, shaded, the quartiles. "
            "The first half of the draws gives the direction, the second half the ratios. Rainforth's Figure 3 has no "
            "numbers to compare with."
        )
        return finish(canvas, name, title, caption, pd.concat(frames, ignore_index=True))


def random_dsnr(parameters: int) -> float:
    """DSNR of independent unit Gaussians, three or more, to a fixed direction: E|N| E[1 / chi_(parameters - 1)]."""
    return float(np.exp(lgamma((parameters - 2) / 2) - lgamma((parameters - 1) / 2)) / np.sqrt(np.pi))


def toy_histograms(toy: ToyResult | None) -> Figure | MissingFigure:
    """Distributions of single gradients of one encoder and one decoder parameter: Rainforth's Figure 1."""
    name, title = "toy_histograms", "Gaussian toy: how do the gradients of one parameter spread?"
    if toy is None:
        return MissingFigure(name, title, "the stage `toy` of this scale")
    chosen = np.unique(np.linspace(0, len(toy.samples) - 1, HISTOGRAM_SIZES).round().astype(int))
    shades = [0.25, 0.5, 0.75, 1.0][-len(chosen) :]
    records = []
    with open_canvas(name, 9, 5) as canvas:
        axes = canvas.subplots(2, 2, sharex="col")
        for column, (group, heading) in enumerate((("b", "encoder: b₁"), ("mu", "decoder: μ₁"))):
            for row, sweep in enumerate(("iwae", "vae")):
                ax, draws = axes[row, column], toy.arrays[f"{sweep}/{group}/draws"]
                everything = np.concatenate([toy.arrays[f"{s}/{group}/draws"][0] for s in ("iwae", "vae")])
                low, high = np.quantile(everything, [0.001, 0.999])
                bins = np.linspace(low, high, 61)
                for index, shade in zip(chosen, shades, strict=True):
                    size = toy.samples[index]
                    density, _ = np.histogram(draws[index], bins, density=True)
                    label = f"{'M' if sweep == 'vae' else 'K'} = {size}"
                    ax.stairs(density, bins, color=SWEEP_COLOURS[sweep], alpha=shade, lw=1.4, label=label)
                    records.append(
                        {"experiment": TOY, "sweep": sweep, "group": group, "samples": size}
                        | {"mean": draws[index].mean(), "sd": draws[index].std(ddof=1)}
                    )
                ax.axvline(0, color=INK, lw=0.8)
                ax.set(title=f"{'IWAE' if sweep == 'iwae' else 'VAE'}, {heading}", yticks=[])
                ax.legend(fontsize=SMALL)
        for ax in axes[1]:
            ax.set_xlabel("gradient of the bound")
        for ax in axes[:, 0]:
            ax.set_ylabel("density")
        caption = (
            "As K grows, IWAE's encoder gradients shrink towards zero faster than they concentrate.\n"
            "IWAE's decoder gradients concentrate on the gradient of log p(x), VAE's on that of the ELBO."
        )
        return finish(canvas, name, title, caption, pd.DataFrame(records))


def slopes_table(toy: ToyResult | None) -> list[Table]:
    """Fitted slopes beside the closed form's and the limit's; none before the toy has run."""
    if toy is None:
        return []
    rows, groups = [], []
    for sweep, label in SWEEP_TITLES.items():
        for group, heading in (TOY_PANELS | {"encoder": "encoder: A and b"}).items():
            parts = ("slope", "slope_se", "slope_closed_form", "slope_limit")
            rows.append({"sweep": sweep, "group": heading, **{p: toy.metrics[f"{p}/{sweep}/{group}"] for p in parts}})
            groups.append(label)
    data = pd.DataFrame(rows)
    display = pd.DataFrame(
        {
            "parameters": data["group"],
            "slope": [number(value, signed=True) for value in data["slope"]],
            "±": [number(value) for value in data["slope_se"]],
            "closed form": [number(value, signed=True) for value in data["slope_closed_form"]],
            "limit": [number(value, signed=True) for value in data["slope_limit"]],
        }
    )
    caption = (
        "The fitted slopes should be near the closed form's.\nSlope of the log of the root-mean-square SNR in log M "
        "(VAE) or log K, fitted to the upper half of the "
        "logarithmic axis; the same fit to the closed form; and the limit for large M or K (Rainforth, Theorem 1; for "
        "IWAE-DReG Tucker et al. 2019)."
    )
    return [Table("toy_slopes", "Gaussian toy: how fast does the SNR change?", caption, data, display, tuple(groups))]


# Trained networks


def _cell(cells: Cells, setting: Setting) -> tuple[Place, Cell | None]:
    place = Place.rainforth(setting)
    return place, find(cells, place)


def _over_seeds(cell: Cell | None, metric: str) -> pd.DataFrame:
    """A row a checkpoint: step, mean over seeds, and half its 95 % interval (gradient draws and seeds, Student's t)."""
    runs = [run for run in cell.finished if "snr/step" in run.arrays] if cell else []
    if not runs:
        return pd.DataFrame(columns=["step", "value", "half_width"])
    values = np.stack([run.arrays[f"snr/{metric}"] for run in runs])
    errors = np.stack([run.arrays[f"snr/{metric}_se"] for run in runs])
    draws = np.sqrt(np.square(errors).sum(0)) / len(runs)
    seeds = values.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.zeros(values.shape[1])
    joined = [Effect(0.0, one, other, max(len(runs) - 1, 1)) for one, other in zip(draws, seeds, strict=True)]
    half_widths = [effect.half_width for effect in joined]
    return pd.DataFrame({"step": runs[0].arrays["snr/step"], "value": values.mean(0), "half_width": half_widths})


SNR_PANELS = {
    "snr_encoder": "encoder: mean SNR",
    "dsnr_encoder": "encoder: DSNR",
    "snr_decoder": "decoder: mean SNR",
    "dsnr_decoder": "decoder: DSNR",
}


def _short(step: int) -> str:
    """`500`, `12k`, `1.1M`."""
    if step < 10_000:
        return f"{step:,}"
    return f"{step / 1e3:.0f}k" if step < 1e6 else f"{step / 1e6:.1f}M"


def training_snr(cells: Cells) -> Figure | MissingFigure:
    """SNR at the checkpoints of five T = 64 runs: Rainforth's figure of the SNR during training."""
    name, title = "snr_training", "Does it hold while networks train? (T = 64)"
    frames = []
    for setting in TRAINED:
        for measure in SNR_PANELS:
            frame = _over_seeds(_cell(cells, setting)[1], measure)
            frames.append(
                frame.assign(
                    experiment=RAINFORTH_TABLE1,
                    objective=setting.objective,
                    setting=setting_name(setting),
                    measure=measure,
                )
            )
    data = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    if data.empty:
        return MissingFigure(name, title, "runs of rainforth-table1 evaluated with `snr_gradients`")
    with open_canvas(name, 11, 6.2) as canvas:
        axes = canvas.subplots(2, 2, sharex=True)
        for ax, (measure, heading) in zip(axes.flat, SNR_PANELS.items(), strict=True):
            for setting in TRAINED:
                rows = data[(data["measure"] == measure) & (data["setting"] == setting_name(setting))]
                style: dict[str, Any] = {"color": COLOURS[setting.objective], "marker": MARKERS[setting.objective]}
                ax.errorbar(
                    rows["step"],
                    rows["value"],
                    yerr=rows["half_width"],
                    ms=5,
                    lw=1.3,
                    label=setting_name(setting),
                    **style,
                )
                if measure == "snr_encoder":
                    paper = PAPER_ENCODER_SNR[setting]
                    ax.plot(data["step"].max(), paper, ls="", mfc="none", ms=7, clip_on=False, **style)
            ax.set_title(heading)
            ax.set_xscale("symlog", linthresh=FIRST_UPDATES)
            steps = sorted(set(data["step"]))
            ax.set_xticks(steps, [_short(step) for step in steps], fontsize=SMALL)
            ax.xaxis.set_minor_locator(NullLocator())
            _log_y(ax)
        axes[0, 0].legend(fontsize=SMALL)
        for ax in axes[1]:
            ax.set_xlabel(f"updates (linear to {FIRST_UPDATES}, logarithmic above)")
        for ax in axes[:, 0]:
            ax.set_ylabel("SNR or DSNR")
        caption = (
            "Top left: the order of the objectives' encoder SNR is the claim; compare solid with hollow.\n"
            "Each run's own estimator at its initial weights, the ends of its stages and its final weights, on one "
            "batch of 20 training images that stays; bars: 95 % over gradient draws and seeds. At update 0 all five "
            "stand at the same weights. Hollow: the paper's encoder SNR, read off its plot; we do not know how it "
            "chose images or averaged over parameters."
        )
        return finish(canvas, name, title, caption, data)


def minibatch_table(cells: Cells) -> Table | None:
    """SNR at the end of training on one batch that stays beside that over fresh minibatches; None before it was run."""
    rows: list[dict[str, Any]] = []
    shown_rows: list[dict[str, str]] = []
    groups: list[str] = []
    for group in ("encoder", "decoder"):
        for setting in TRAINED:
            cell = _cell(cells, setting)[1]
            fixed, fresh = (log_snr(cell, f"{group}{kind}") for kind in ("", "_fresh"))
            if fixed is None or fresh is None:
                continue
            paper = PAPER_ENCODER_SNR[setting] if group == "encoder" else None
            values = {"fixed": float(np.exp(fixed.value)), "fresh": float(np.exp(fresh.value))}
            # The error of a logarithm is a relative one.
            errors = {name: values[name] * one.uncertainty for name, one in (("fixed", fixed), ("fresh", fresh))}
            rows.append(
                {"group": group, "objective": setting.objective, "M": setting.M, "K": setting.K, **values}
                | {f"{name}_error": error for name, error in errors.items()}
                | {"paper": paper}
            )
            shown_rows.append(
                {
                    "objective": setting_name(setting),
                    "one batch that stays": f"{number(values['fixed'])} ± {number(errors['fixed'])}",
                    "fresh minibatches": f"{number(values['fresh'])} ± {number(errors['fresh'])}",
                    "paper, off its plot": number(paper),
                }
            )
            groups.append(group)
    if not rows:
        return None
    caption = (
        "The theory is about the noise of samples alone; a plot made in training has the noise of minibatches too.\n"
        "Mean SNR over parameters at the end of training: of gradients of one batch of 20 training images, the same "
        "for all draws, and of gradients that each have a batch and bits of their own. ± one standard error over draws "
        "and seeds."
    )
    title = "Does the noise of minibatches change the SNR?"
    return Table("snr_minibatches", title, caption, pd.DataFrame(rows), pd.DataFrame(shown_rows), tuple(groups))


def sweep_snr(cells: Cells) -> Figure | MissingFigure:
    """SNR over M with M * K = 64, at the common initial weights and at each run's own final ones."""
    name, title = "snr_sweep", "How does it depend on M? (T = 64)"
    families = {objective: [IWAE, *(Setting(objective, M, K) for M, K in SPLITS)] for objective in ("miwae", "piwae")}
    families["miwae"].append(VAE)
    frames = []
    for objective, settings in families.items():
        for setting in settings:
            for measure in ("snr_encoder", "snr_decoder"):
                rows = _over_seeds(_cell(cells, setting)[1], measure)
                if len(rows):
                    ends = rows.iloc[[0, -1]].assign(when=["initial", "final"])
                    frames.append(
                        ends.assign(
                            experiment=RAINFORTH_TABLE1, family=objective, M=setting.M, K=setting.K, measure=measure
                        )
                    )
    if not frames:
        return MissingFigure(name, title, "runs of rainforth-table1 evaluated with `snr_gradients`")
    data = pd.concat(frames, ignore_index=True)
    with open_canvas(name, 9.5, 3.9) as canvas:
        axes = canvas.subplots(1, 2)
        for ax, (measure, heading) in zip(axes, (("snr_encoder", "encoder"), ("snr_decoder", "decoder")), strict=True):
            for objective in families:
                for when, line in (("initial", ":"), ("final", "-")):
                    rows = data[(data["family"] == objective) & (data["measure"] == measure) & (data["when"] == when)]
                    label = f"{objective.upper()}, {when} weights"
                    style: dict[str, Any] = {
                        "color": COLOURS[objective],
                        "marker": MARKERS[objective],
                        "ms": 4,
                        "ls": line,
                    }
                    ax.errorbar(rows["M"], rows["value"], yerr=rows["half_width"], label=label, **style)
            _log_axes(ax, np.array([1, 2, 4, 8, 16, 32, 64]))
            ax.set(title=heading, xlabel="M (K = 64 / M); 1 is IWAE, MIWAE's 64 is VAE")
        first = data[(data["measure"] == "snr_encoder") & (data["M"] == 1) & (data["when"] == "initial")]["value"].max()
        for slope, end, label in ((1, 8, "∝ M"), (0.5, 16, "∝ √M")):
            # Drawn beside the data, which one of them would hide.
            axes[0].plot([1, end], [1.15 * first, 1.15 * first * end**slope], color="#999999", ls="--", lw=1)
            axes[0].text(
                end, 1.15 * first * end**slope, label, color="#777777", fontsize=SMALL, va="bottom", ha="center"
            )
        axes[0].legend(fontsize=SMALL)
        axes[0].set_ylabel("mean SNR over parameters")
        caption = (
            "Compare the slopes with the dashed lines: along M × K = 64 the encoder's SNR should rise with M.\n"
            "At the initial weights all estimators stand at one point, so that part compares estimators alone. Theory "
            "for large K: along M K = 64 the encoder's SNR grows as M and the decoder's stays; where one sample takes "
            "most of the weight, more groups help both as √M. Bars: 95 % over draws and seeds. The paper shows no such "
            "sweep."
        )
        return finish(canvas, name, title, caption, data)


# Claims


def log_snr(cell: Cell | None, group: str) -> Effect | None:
    """log of the mean SNR of a group of parameters at the end of training.

    Its errors are over gradient draws (in the place of an effect's images) and over seeds.
    """
    if cell is None:
        return None
    values = [value for run in cell.finished if (value := value_of(run.metrics, f"snr_{group}"))]
    errors = [error for run in cell.finished if (error := value_of(run.metrics, f"snr_{group}_se")) is not None]
    if not values or len(values) != len(errors):
        return None
    draws = float(np.sqrt(np.square(np.divide(errors, values)).sum()) / len(values))
    several = len(values) > 1
    seeds = float(np.std(np.log(values), ddof=1) / np.sqrt(len(values))) if several else 0.0
    df = len(values) - 1 if several else np.inf
    blocks_df = JACKKNIFE_DF * len(values)
    return Effect(float(np.mean(np.log(values))), draws, seeds, df, several, image_df=blocks_df)


def gradient_claims(cells: Cells, toy: ToyResult | None, judged: bool) -> list[ClaimResult]:
    """'Tighter bounds help the decoder and hurt the encoder' by gradient SNR, on the toy and on the T = 64 runs."""
    return judge([*_slope_claims(toy), *_ratio_claims(cells)], judged)


def _slope_claims(toy: ToyResult | None) -> list[Measured]:
    claims = []
    for statement, key, sign in (
        ("IWAE's encoder SNR falls as K grows", "iwae/encoder", -1),
        ("IWAE's decoder SNR rises as K grows", "iwae/mu", 1),
        ("IWAE-DReG's encoder SNR does not fall as K grows", "iwae-dreg/encoder", 1),
    ):
        effect = None
        if toy is not None and np.isfinite(toy.metrics[f"slope/{key}"]):
            slope, error = (toy.metrics[f"{part}/{key}"] for part in ("slope", "slope_se"))
            effect = Effect(sign * slope, error, 0.0, image_df=JACKKNIFE_DF)
        missing = "" if effect else "the stage `toy` not run"
        limit = PaperEffect(0.5, 0.0, True)
        claims.append(Measured(SLOPES, RAINFORTH, statement, "slope", effect, limit, RULES[SLOPES], missing))
    return claims


def _ratio_claims(cells: Cells) -> list[Measured]:
    claims = []
    pairs = [(RATIOS, setting, IWAE, "encoder") for setting in TRAINED if setting != IWAE]
    for family, upper, lower, group in (*pairs, (DECODER_RATIO, IWAE, VAE, "decoder")):
        places = [_cell(cells, setting) for setting in (upper, lower)]
        logs = [log_snr(cell, group) for _, cell in places]
        known = [one for one in logs if one is not None]
        effect = None
        if len(known) == len(logs):
            first, second = known
            draws, draws_df = satterthwaite([(one.image_se, one.image_df) for one in known])
            seeds, df = satterthwaite([(one.seed_se, one.seed_df) for one in known])
            known_both = first.seeds_known and second.seeds_known
            effect = Effect(first.value - second.value, draws, seeds, df, known_both, image_df=draws_df)
        paper = None
        if group == "encoder":
            ratio = PAPER_ENCODER_SNR[upper] / PAPER_ENCODER_SNR[lower]
            # Read off a plot: no error is known, and nothing is judged by it.
            paper = PaperEffect(float(np.log(ratio)), 0.0, False)
        statement = f"{setting_name(upper)} has a higher {group} SNR than {setting_name(lower)}"
        lacking = [place_name(place) for (place, _), one in zip(places, logs, strict=True) if one is None]
        missing = "; ".join(f"{place} without gradient SNR" for place in lacking)
        by = RAINFORTH if group == "encoder" else OURS
        claims.append(Measured(family, by, statement, "ln ratio", effect, paper, RULES[family], missing))
    return claims


def section(report: Report) -> Section:
    """What happens to the gradients: signal-to-noise ratios of trained networks, and of Rainforth's Gaussian model."""
    cells, toy = report.cells, report.toy
    return Section(
        "gradients",
        "Why: what happens to the gradients?",
        "Gradients",
        "A tighter bound (larger K) has a gradient for the encoder whose mean shrinks faster than its noise: its "
        "signal-to-noise ratio falls, while the decoder's rises.",
        (
            *shown(toy_snr(toy)),
            # Of runs that have hardly begun there is nothing to see.
            Block(training_snr(cells), folded=not report.judged),
            *folded(minibatch_table(cells), sweep_snr(cells), toy_dsnr(toy), toy_histograms(toy), *slopes_table(toy)),
        ),
    )
