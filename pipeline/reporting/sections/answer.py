"""The first screen: six questions, each with a sentence, a small picture, and how sure it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.experiments.known import BURDA_TABLE1, BURDA_TABLE3, TWO_DIMENSIONAL
from pipeline.published import Place, Setting, published_at
from pipeline.records.metrics import METRIC_TABLE
from pipeline.reporting.evidence.cells import (
    RAINFORTH_METRICS,
    SPLITS,
    Estimate,
    estimate,
    find,
    objective_name,
)
from pipeline.reporting.evidence.claims import (
    ASSUMED,
    BEATS,
    CHANGES,
    FAILS,
    HOLDS,
    INTERIOR,
    SAMPLES_HARDLY_HELP,
    SAMPLES_HELP,
    UNDECIDED,
    UNITS,
    WIDER,
    ClaimResult,
    Effect,
    Term,
    contrast,
    published_contrast,
    width,
)
from pipeline.reporting.evidence.verdicts import VERDICTS, compare
from pipeline.reporting.evidence.verdicts import verdict as judge
from pipeline.reporting.forms.numbers import number, span
from pipeline.reporting.forms.strips import Mark, Strip
from pipeline.reporting.report import Report
from pipeline.reporting.sections.depth import whole_epochs
from pipeline.reporting.sections.gradients import DECODER_RATIO, PAPER_ENCODER_SNR, RATIOS, SLOPES

HERE, PAPER = "here", "paper"
BURDA_CELLS = ((BURDA_TABLE1, "mnist"), (BURDA_TABLE1, "omniglot"), (BURDA_TABLE3, "fixed-mnist"))
BURDA_SETTINGS = (
    Setting.burda("vae", 1),
    *(Setting.burda(objective, k) for objective in ("vae", "iwae") for k in (5, 50)),
)
"""The cells of a dataset and depth in Burda's tables; at k = 1 VAE and IWAE are one."""
IWAE, VAE = Setting("iwae", 1, 64), Setting("vae", 64, 1)
COMPARED_KS = (50, 5)
"""Sample counts that are set beside k = 1: the first that was run."""


@dataclass(frozen=True)
class Card:
    """A question of the first screen with its answer."""

    question: str
    answer: str
    """A word or two."""
    sentence: str
    """The answer with its numbers."""
    strip: Strip
    chip: str
    """How sure it is."""
    kind: str
    """The chip's colour: a decision, or nothing."""
    section: str
    """Anchor of where it is shown at length."""


def cards(report: Report) -> list[Card]:
    """The six questions in the order in which one asks them."""
    return [beats(report), samples(report), units(report), posterior(report), interior(report), gradients(report)]


def beside_the_paper(report: Report) -> str:
    """How far the NLLs of Burda's tables are from the printed ones, with the verdicts; empty without such a cell."""
    differences, said = [], Counter[str]()
    for (experiment, dataset), layers, setting in itertools.product(BURDA_CELLS, (1, 2), BURDA_SETTINGS):
        place = Place(experiment, dataset, layers, setting)
        cell, printed = find(report.cells, place), published_at(place, "nll")
        comparison, verdict = compare(cell, "nll", printed), judge(cell, "nll", printed, report.scale)
        if comparison is not None and verdict in VERDICTS:
            differences.append(comparison.difference)
            said[verdict] += 1
    if not differences:
        return ""
    ends = " to ".join(dict.fromkeys(number(value, signed=True) for value in (min(differences), max(differences))))
    counts = ", ".join(f"{said[verdict]} {verdict}" for verdict in VERDICTS if said[verdict])
    cells = f"{len(differences)} cell{'s' if len(differences) > 1 else ''}"
    return f"NLL minus the paper's in {cells}: {ends} nats ({counts})."


def of_family(report: Report, *families: str) -> list[ClaimResult]:
    """The report's claims of these families, in the report's order."""
    return [claim for claim in report.claims if claim.family in families]


def known(claims: Sequence[ClaimResult]) -> list[tuple[ClaimResult, Effect]]:
    """The claims whose cells were run, each with its effect."""
    return [(claim, claim.effect) for claim in claims if claim.effect is not None]


def plain(decision: str) -> str:
    """A decision without what it assumes."""
    return decision.removesuffix(f" {ASSUMED}")


def short_answer(claims: Sequence[ClaimResult], signs: Sequence[bool]) -> str:
    """Yes or no by decisions where there are some; by the signs of the effects where nothing is decided.

    A yes or no that only a part of the claims that have runs bears out says how many: `Yes in 1 of 3`. Before any was
    run, the paper's effects answer, as the paper's.
    """
    counts = Counter(plain(claim.decision) for claim in claims)
    decided, run = counts[HOLDS] + counts[FAILS], len(known(claims))
    if decided:
        said = "Yes" if not counts[FAILS] else "No" if not counts[HOLDS] else "In part"
        said += f" in {decided} of {run}" if counts[UNDECIDED] and said != "In part" else ""
        return said if run == len(claims) else f"{said}, so far"
    if counts[UNDECIDED]:
        return "Undecided"
    if not signs:
        return answer_of_the_paper([claim.paper_effect for claim in claims if claim.paper_effect is not None])
    return "It looks so" if all(signs) else "It does not look so" if not any(signs) else "Mixed"


def answer_of_the_paper(effects: Sequence[float]) -> str:
    """By the signs of the effects that it prints; open where it prints none."""
    signs = [effect > 0 for effect in effects]
    if not signs:
        return "Open here"
    return f"The paper: {'yes' if all(signs) else 'no' if not any(signs) else 'in part'}"


def chip(report: Report, claims: Sequence[ClaimResult]) -> tuple[str, str]:
    """How sure it is, and the decision that colours it."""
    counts = Counter(plain(claim.decision) for claim in claims)
    words = {HOLDS: ("holds", "hold"), FAILS: ("does not hold", "do not hold"), UNDECIDED: ("undecided",) * 2}
    decided = [f"{counts[d]} {one if counts[d] == 1 else many}" for d, (one, many) in words.items() if counts[d]]
    run = known(claims)
    if decided:
        colour = HOLDS if counts[HOLDS] == len(run) else FAILS if counts[FAILS] == len(run) else UNDECIDED
        return f"{', '.join(decided)} of {len(claims)} claims{at_depth(report)}", colour
    if not run:
        return "not run yet", ""
    return f"{sum(effect.value > 0 for _, effect in run)} of {len(run)} have the claim's sign, none is judged", ""


def at_depth(report: Report) -> str:
    """`, at 40 epochs` where the runs are finished before the papers' schedule is over; else empty."""
    if report.comparable or not report.results:
        return ""
    return f", at {whole_epochs(max(run.epochs for run in report.results))} epochs"


def effect_strip(claims: Sequence[ClaimResult], axis: str) -> Strip:
    """Our effects with their intervals over the paper's; of the paper all, faint where ours are missing.

    The sentence tells those of the cells that were run here, which must be found in the picture.
    """
    ours = tuple(Mark(effect.value, claim.low, claim.high) for claim, effect in known(claims))
    paper = tuple(
        Mark(
            claim.paper_effect,
            hollow=True,
            doubtful=not claim.paper_verified,
            faint=bool(ours) and claim.effect is None,
        )
        for claim in claims
        if claim.paper_effect is not None
    )
    return Strip(((HERE, ours), (PAPER, paper)), axis)


def paper_effects(claims: Sequence[ClaimResult]) -> list[float]:
    """The paper's effects in the cells that were run here; in all of them before any was."""
    chosen = [claim for claim, _ in known(claims)] or list(claims)
    return [claim.paper_effect for claim in chosen if claim.paper_effect is not None]


def beats(report: Report) -> Card:
    """Does IWAE beat VAE? By their NLLs (nats) at equal k, in Burda's cells."""
    claims = of_family(report, BEATS)
    ours, papers = [effect.value for _, effect in known(claims)], paper_effects(claims)
    if ours:
        better = sum(value > 0 for value in ours)
        cells = f"{better} of {len(ours)} cells" if len(ours) > 1 else "one cell" if better else "no cell of one"
        sentence = f"Here IWAE is better by {span(ours)} nats, in {cells}; in the paper by "
    else:
        sentence = f"In the paper IWAE is better in {len(papers)} of {len(papers)} cells: by "
    return Card(
        "Does IWAE beat VAE?",
        short_answer(claims, [value > 0 for value in ours]),
        f"{sentence}{span(papers)}.",
        effect_strip(claims, "VAE's NLL minus IWAE's at equal k, nats"),
        *chip(report, claims),
        "density",
    )


@dataclass(frozen=True)
class SampleGain:
    """What an objective gains from more samples in one cell: ours and the paper's, nats."""

    ours: Effect | None
    paper: float | None


def sample_gains(report: Report, objective: str, k: int) -> list[SampleGain]:
    """From 1 to k samples, by dataset and depth."""
    gained = []
    for experiment, dataset in BURDA_CELLS:
        for layers in (1, 2):
            places = [
                Place(experiment, dataset, layers, setting)
                for setting in (Setting.burda(objective, k), Setting.burda("vae", 1))
            ]
            terms = tuple(Term(w, place, find(report.cells, place)) for w, place in zip((1, -1), places, strict=True))
            paper = published_contrast(terms, "log_p_hat")
            gained.append(SampleGain(contrast(terms, "log_p_hat"), paper.value if paper else None))
    return gained


def samples(report: Report) -> Card:
    """Do more samples help? By what k samples gain over one in log p̂ (nats), for IWAE and for VAE.

    k is the first of `COMPARED_KS` of which there is a run.
    """
    help_iwae, hardly_help_vae = of_family(report, SAMPLES_HELP), of_family(report, SAMPLES_HARDLY_HELP)
    claims = help_iwae + hardly_help_vae
    run = [
        k for k in COMPARED_KS if any(gain.ours for name in ("iwae", "vae") for gain in sample_gains(report, name, k))
    ]
    k = next(iter(run), COMPARED_KS[0])
    rows: list[tuple[str, tuple[Mark, ...]]] = []
    said: dict[str, list[str]] = {HERE: [], PAPER: []}
    for objective in ("iwae", "vae"):
        all_gains = sample_gains(report, objective, k)
        known_gains = [gain for gain in all_gains if gain.ours is not None]
        ours = [gain.ours.value for gain in known_gains if gain.ours is not None]
        paper = [gain.paper for gain in known_gains or all_gains if gain.paper is not None]
        name = objective_name(objective)
        marks = tuple(Mark(value, objective=objective) for value in ours)
        hollow = tuple(Mark(value, objective=objective, hollow=True) for value in paper)
        rows += [(f"{name}, {HERE}", marks), (f"{name}, {PAPER}", hollow)]
        for where, values in ((HERE, ours), (PAPER, paper)):
            if values:
                said[where].append(f"{name} {span(values)}")
    both = {where: " and ".join(parts) for where, parts in said.items()}
    sentence = f"in the paper {both[PAPER]} nats."
    if both[HERE]:
        sentence = f"from 1 to {k} samples {both[HERE]} nats here; {sentence}"
    else:
        sentence = f"from 1 to {k} samples {sentence}"
    iwae, vae = (
        short_answer(family, [effect.value > 0 for _, effect in known(family)])
        for family in (help_iwae, hardly_help_vae)
    )
    if iwae == vae:
        answer = iwae
    elif known(help_iwae) and not known(hardly_help_vae):
        # Its gain at fewer samples may be told below, which decides no claim.
        answer = f"For IWAE: {iwae.lower()}"
    else:
        answer = f"That they help IWAE: {iwae.lower()}; that they hardly help VAE: {vae.lower()}"
    return Card(
        "Do more samples help?",
        answer,
        f"Gain {sentence}",
        Strip(tuple(rows), f"gain in log p̂ from k = 1 to {k}, nats"),
        *chip(report, claims),
        "density",
    )


def units(report: Report) -> Card:
    """Are more units active? By IWAE's active units minus VAE's at equal k, all layers together."""
    claims = of_family(report, UNITS)
    ours, papers = [effect.value for _, effect in known(claims)], paper_effects(claims)
    here = f"Here IWAE has {span(ours, 0)} more active latent units than VAE at equal k; in" if ours else "In"
    return Card(
        "Are more units active?",
        short_answer(claims, [value > 0 for value in ours]),
        f"{here} the paper {'' if ours else 'IWAE has '}{span(papers, 0)} more{'' if ours else ' than VAE'}.",
        effect_strip(claims, "IWAE's active units minus VAE's at equal k"),
        *chip(report, claims),
        "density",
    )


LATENT_UNITS = {TWO_DIMENSIONAL: "2 units", BURDA_TABLE1: "50 units"}


def posterior(report: Report) -> Card:
    """Is q wider, and do digits change? By IWAE's width of q over VAE's, and by samples that show another digit, in %.

    Asked of MNIST with 1 layer, with 2 latent units and with 50.
    """

    def value(experiment: str, setting: Setting, metric: str) -> Estimate | None:
        return estimate(find(report.cells, Place(experiment, "mnist", 1, setting)), metric)

    def models(k: int) -> tuple[Setting, Setting]:
        return Setting("vae", 1, 1), Setting("iwae", 1, k)

    run = [k for k in COMPARED_KS if any(value(experiment, models(k)[1], "log_q_sd") for experiment in LATENT_UNITS)]
    k = next(iter(run), COMPARED_KS[0])
    rows, widths, shares = [], [], []
    for experiment, label in LATENT_UNITS.items():
        changed = [value(experiment, setting, "digit_changes") for setting in models(k)]
        marks = [
            Mark(100 * one.value, objective=setting.objective)
            for setting, one in zip(models(k), changed, strict=True)
            if one is not None
        ]
        # One model alone compares nothing.
        rows.append((label, tuple(marks) if len(marks) == len(models(k)) else ()))
        places = [Place(experiment, "mnist", 1, setting) for setting in models(k)]
        wider = width(
            tuple(Term(w, place, find(report.cells, place)) for w, place in zip((-1, 1), places, strict=True))
        )
        widths += [float(np.exp(wider.value))] if wider else []
        if len(marks) == len(models(k)):
            shares.append(f"{marks[1].value:.1f} % against {marks[0].value:.1f} %")
    claims = of_family(report, WIDER, CHANGES)
    parts = [f"q of IWAE (k = {k}) is {span(widths)} times as wide as VAE's here"] if widths else []
    parts += [f"its decoded samples show another digit in {' and '.join(shares)}"] if shares else []
    said = "; ".join(parts) + ". " if parts else ""
    return Card(
        "Is q wider, and do digits change?",
        short_answer(claims, [effect.value > 0 for _, effect in known(claims)]),
        f"{said}The paper shows it in pictures, without numbers.",
        Strip(tuple(rows), "decoded samples that change the digit, %"),
        *chip(report, claims),
        "posterior",
    )


def best_m(values: dict[int, float]) -> int | None:
    """The M with the highest value; None where fewer than two values can be compared."""
    return max(values, key=values.__getitem__) if len(values) > 1 else None


def interior(report: Report) -> Card:
    """Is the best (M, K) in the interior? By the best M of MIWAE(M, 64/M) in each metric of Rainforth's Table 1."""
    sweep = [IWAE, *(Setting("miwae", M, K) for M, K in SPLITS), VAE]
    rows: list[tuple[str, tuple[Mark, ...]]] = []
    best: dict[str, list[str]] = {HERE: [], PAPER: []}
    run: set[int] = set()
    for metric in RAINFORTH_METRICS:
        places = {setting.M: Place.rainforth(setting) for setting in sweep}
        ours = {M: one.value for M, place in places.items() if (one := estimate(find(report.cells, place), metric))}
        paper = {M: printed.value for M, place in places.items() if (printed := published_at(place, metric))}
        run |= ours.keys()
        marks = []
        for where, values, hollow in ((HERE, ours, False), (PAPER, paper, True)):
            chosen = best_m(values)
            if chosen is not None:
                marks.append(Mark(chosen, hollow=hollow))
                best[where].append(f"{chosen} by {METRIC_TABLE[metric].title}")
        rows.append((METRIC_TABLE[metric].title, tuple(marks)))
    claims = of_family(report, INTERIOR)
    # The best of a part is not yet the best.
    of_run = "" if len(run) == len(sweep) else f" of {len(run)} of {len(sweep)} run"
    here = f"Here the best M{of_run} is {', '.join(best[HERE])}; of" if best[HERE] else "Of"
    return Card(
        "Is the best (M, K) in the interior?",
        short_answer(claims, [effect.value > 0 for _, effect in known(claims)]),
        f"{here} the paper's printed values M = {', '.join(best[PAPER])}. M = 1 is IWAE, 64 is VAE.",
        Strip(tuple(rows), "best M of MIWAE(M, 64/M)", False, True, (1, 4, 16, 64)),
        *chip(report, claims),
        "sweep",
    )


def gradients(report: Report) -> Card:
    """Why? By the encoder gradient's signal-to-noise ratio under IWAE (K = 64) and VAE (M = 64).

    The paper's ratios are read off its plot (`PAPER_ENCODER_SNR`).
    """
    ours = []
    for setting in PAPER_ENCODER_SNR:
        one = estimate(find(report.cells, Place.rainforth(setting)), "snr_encoder")
        if one is not None and one.value > 0:
            ours.append(Mark(one.value, objective=setting.objective))
    paper = tuple(Mark(value, objective=setting.objective, hollow=True) for setting, value in PAPER_ENCODER_SNR.items())
    claims = of_family(report, RATIOS, DECODER_RATIO, SLOPES)
    of = {mark.objective: mark.value for mark in ours}
    sentence = f"by the paper's plot {PAPER_ENCODER_SNR[VAE] / PAPER_ENCODER_SNR[IWAE]:.1f} times."
    if {"vae", "iwae"} <= of.keys():
        ratio = number(of["vae"] / of["iwae"], decimals=1)
        sentence = f"here {ratio} times as noisy with IWAE (K = 64) as with VAE (M = 64); {sentence}"
    else:
        sentence = f"noisier with IWAE (K = 64) than with VAE (M = 64), {sentence}"
    return Card(
        "Why: gradient signal-to-noise?",
        short_answer(claims, [effect.value > 0 for _, effect in known(claims)]),
        f"A tight bound gives the encoder a noisy gradient: {sentence}",
        Strip(((HERE, tuple(ours)), (PAPER, paper)), "SNR of the encoder's gradient, T = 64", False, True),
        *chip(report, claims),
        "gradients",
    )
