"""The papers' claims, each decided by a stated test on a contrast of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.published import Place, Setting, published_at
from pipeline.reporting.cells import (
    BETAS,
    METRIC_NAMES,
    NOT_RUN,
    ONE_SEED_NATS,
    PAPER_SCALE,
    RAINFORTH_METRICS,
    SPLITS,
    Cell,
    Cells,
    dataset_name,
    estimate,
    find,
    first_stage,
    images,
    layers_name,
    setting_name,
    standard_error,
)
from pipeline.reporting.statistics import (
    RESAMPLES,
    ErrorDistribution,
    bootstrap_deviations,
    holm_levels,
    satterthwaite,
)

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NOT_DECIDED = "not decided at this scale"
ONE_SEED_UNITS = 1.0
"""As `ONE_SEED_NATS`, for active units: an assumption."""
ALPHA = 0.05

BEATS = "IWAE beats VAE at equal k"
SAMPLES_HELP = "More samples help IWAE"
SAMPLES_HARDLY_HELP = "More samples hardly help VAE"
DEPTH = "Two stochastic layers beat one"
UNITS = "IWAE has more active units than VAE"
DRIFT = "Continued training drifts to the new objective (Burda, Table 2)"
INTERIOR = "The best M is in the interior (Rainforth)"
PIWAE = "PIWAE beats IWAE (Rainforth)"
BETWEEN = "CIWAE lies between VAE and IWAE (Rainforth)"
ENCODER = "A tighter bound leaves a worse encoder (Rainforth)"
WIDER = "IWAE's posterior is wider than VAE's"
CHANGES = "IWAE's decoded samples change the digit more often than VAE's"

HOW_DECIDED = (
    f"A claim's interval joins {RESAMPLES} resamples of the test images, paired between models, with the error over "
    "seeds, and is as wide as Holm's procedure asks for: all decisions of one family are right at once with "
    f"{1 - ALPHA:.0%} confidence."
)
_TEST = "Holds when the interval lies above zero, does not hold when it lies below, undecided otherwise."
_SEVERAL_SEEDS = "With one seed a model it stays undecided: no spread over seeds is known to assume."
FAMILIES: dict[str, str] = {
    BEATS: f"effect = mean log p̂ of IWAE minus VAE. {_TEST}",
    SAMPLES_HELP: f"effect = mean log p̂ with more samples minus with fewer. {_TEST}",
    SAMPLES_HARDLY_HELP: f"effect = half of IWAE's gain from k = 1 to 50 minus VAE's gain, in log p̂. {_TEST}",
    DEPTH: f"effect = mean log p̂ with 2 layers minus with 1. {_TEST}",
    UNITS: f"effect = active units (all layers) of IWAE minus VAE. {_TEST}",
    DRIFT: f"effect = change from the first to the second stage in the direction named. {_TEST}",
    INTERIOR: f"effect = the best MIWAE(M, K) with 1 < M < 64 minus the better of IWAE(1, 64) and VAE(64, 1). "
    f"{_TEST} The interval is five times surer, since the best of five is picked.",
    PIWAE: f"effect = PIWAE minus IWAE(1, 64). {_TEST}",
    BETWEEN: f"effect = distance of CIWAE to the nearer of VAE and IWAE, negative when outside. {_TEST}",
    ENCODER: f"effect = −KL(Q‖P) of the looser bound minus IWAE(1, 64)'s. {_TEST}",
    WIDER: f"effect = 100 times the difference (IWAE minus VAE at k = 1) of the mean log standard deviation of q(h|x) "
    f"over active units, about per cent; or of the standard deviation of decoded pixel means over q's samples, in "
    f"per cent of the grey range. {_TEST} {_SEVERAL_SEEDS}",
    CHANGES: f"effect = share of decoded samples of q in which a plain classifier sees another digit than in the "
    f"image, IWAE minus VAE at k = 1, in percentage points. {_TEST} {_SEVERAL_SEEDS}",
}
"""Family -> its rule."""

UNITS_OF = {"active_units": "units", "log_q_sd": "%", "decoded_sd": "%", "digit_changes": "%"}
"""Metric -> unit of its effects; the others are in nats."""
ASSUMED_SEED_SD = {"active_units": ONE_SEED_UNITS, "log_q_sd": None, "decoded_sd": None, "digit_changes": None}
"""Metric -> standard deviation between seeds where a cell has one (None: nothing to assume); the others: in nats."""


@dataclass(frozen=True)
class Term:
    """A cell with its weight in a contrast; the place is kept for what was not run."""

    weight: float
    place: Place
    cell: Cell | None


@dataclass(frozen=True)
class Effect:
    """A contrast of cells, with the paired error over test images and the error over seeds (same unit)."""

    value: float
    image_se: float
    seed_se: float
    seed_df: float = np.inf
    """Degrees of freedom of `seed_se`; infinite where it is assumed."""
    seeds_known: bool = True
    """False where a cell has one seed and no spread can be assumed: `seed_se` leaves it out."""
    per_image: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """The contrast image by image, [images]; None where its cells have no values on the same images."""

    @property
    def uncertainty(self) -> float:
        return float(np.hypot(self.image_se, self.seed_se))


@dataclass(frozen=True)
class Claim:
    """A statement that is true when the weighted sum over its terms is above zero."""

    family: str
    statement: str
    metric: str
    terms: tuple[Term, ...]
    paper_effect: float | None
    paper_verified: bool
    candidates: int = 1
    """How many cells the data picked one from: its p-value counts so many times (Bonferroni)."""


@dataclass(frozen=True)
class ClaimResult:
    family: str
    statement: str
    unit: str
    """`nats`, `units` or `%`"""
    effect: Effect | None
    p_value: float | None
    """Two-sided, of no effect, before Holm's procedure; None where nothing is known of the spread over seeds."""
    low: float | None
    high: float | None
    """Ends of the interval that decides."""
    paper_effect: float | None
    paper_verified: bool
    rule: str
    decision: str
    missing: str
    """The cells that were not run or diverged; empty when the effect is there."""


def contrast(terms: tuple[Term, ...], metric: str) -> Effect | None:
    """The weighted sum of a metric over cells with its errors; None when a cell is missing.

    Images are paired when all cells have per-image values of one length; otherwise their errors add in quadrature.
    """
    estimates = [estimate(term.cell, metric) for term in terms]
    known = [known for known in estimates if known is not None]
    if len(known) != len(terms):
        return None
    weights = [term.weight for term in terms]
    arrays = [array for term in terms if term.cell is not None and (array := images(term.cell, metric)) is not None]
    per_image: NDArray[np.float64] | None = None
    if len(arrays) == len(terms) and len({array.shape for array in arrays}) == 1:
        per_image = np.asarray(np.tensordot(weights, np.stack(arrays), axes=1))
        image_se = standard_error(per_image)
    else:
        image_se = float(np.sqrt(sum((w * (one.se or 0.0)) ** 2 for w, one in zip(weights, known, strict=True))))
    assumed = ASSUMED_SEED_SD.get(metric, ONE_SEED_NATS)
    seed_errors = [
        (abs(w) * (assumed or 0.0), np.inf)
        if one.seed_sd is None
        else (abs(w) * one.seed_sd / np.sqrt(one.seeds), one.seeds - 1)
        for w, one in zip(weights, known, strict=True)
    ]
    seed_se, seed_df = satterthwaite(seed_errors)
    return Effect(
        value=float(sum(w * one.value for w, one in zip(weights, known, strict=True))),
        image_se=image_se,
        seed_se=seed_se,
        seed_df=seed_df,
        seeds_known=assumed is not None or all(one.seed_sd is not None for one in known),
        per_image=per_image,
    )


def error_distributions(effects: list[Effect]) -> list[ErrorDistribution]:
    """The error of each effect; those on equally many images share their resamples."""
    deviations: dict[int, NDArray[np.float64]] = {}
    counts = [0 if effect.per_image is None else len(effect.per_image) for effect in effects]
    for count in set(counts):
        own = [i for i, other in enumerate(counts) if other == count]
        values = [array for i in own if (array := effects[i].per_image) is not None]
        if values:
            deviations |= dict(zip(own, bootstrap_deviations(values), strict=True))
    return [
        # Without per-image values the error over images is taken as normal.
        ErrorDistribution(deviations[i], effect.seed_se, effect.seed_df)
        if i in deviations
        else ErrorDistribution(np.zeros(1), float(np.hypot(np.nan_to_num(effect.image_se), effect.seed_se)))
        for i, effect in enumerate(effects)
    ]


def decide(effect: Effect | None, low: float, high: float, scale: str) -> str:
    """Above zero with the whole interval: holds; below: does not hold. Only scale `paper` is decided."""
    if effect is None:
        return NOT_RUN
    if scale != PAPER_SCALE:
        return NOT_DECIDED
    if not effect.seeds_known:
        return UNDECIDED
    if low > 0:
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


def published_metric(place: Place, metric: str) -> tuple[float, bool] | None:
    """The paper's value of a metric, active units summed over layers, and whether it is verified."""
    keys = [f"active_units_{layer}" for layer in range(1, place.layers + 1)] if metric == "active_units" else [metric]
    values = [published_at(place, key) for key in keys]
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return None
    return sum(value.value for value in known), all(value.judged for value in known)


def published_contrast(terms: tuple[Term, ...], metric: str) -> tuple[float | None, bool]:
    """The same weighted sum over the paper's values: (value or None, all verified)."""
    values = [published_metric(term.place, metric) for term in terms]
    known = [value for value in values if value is not None]
    if len(known) != len(terms):
        return None, True
    total = sum(term.weight * value for term, (value, _) in zip(terms, known, strict=True))
    return total, all(verified for _, verified in known)


def plain_claim(family: str, statement: str, metric: str, terms: tuple[Term, ...]) -> Claim:
    return Claim(family, statement, metric, terms, *published_contrast(terms, metric))


def burda_claims(cells: Cells) -> list[Claim]:
    """Burda's claims on Tables 1 and 3 for every dataset, depth and k."""

    def term(weight: float, dataset: str, layers: int, objective: str, k: int) -> Term:
        experiment = "burda-table3" if dataset == "fixed-mnist" else "burda-table1"
        # At k = 1 the two objectives are one run, which is kept as the VAE's.
        setting = Setting.burda("vae" if k == 1 else objective, k)
        place = Place(experiment, dataset, layers, setting)
        return Term(weight, place, find(cells, place))

    settings = [(dataset, layers) for dataset in ("mnist", "omniglot", "fixed-mnist") for layers in (1, 2)]
    names = {(d, n): f"{dataset_name(d)}, {layers_name(n)}" for d, n in settings}
    claims = []
    for d, n in settings:
        for k in (5, 50):
            terms: tuple[Term, ...] = (term(1, d, n, "iwae", k), term(-1, d, n, "vae", k))
            claims.append(plain_claim(BEATS, f"{names[d, n]}: IWAE beats VAE at k = {k}", "log_p_hat", terms))
    for d, n in settings:
        for more, fewer in ((5, 1), (50, 5)):
            terms = (term(1, d, n, "iwae", more), term(-1, d, n, "iwae", fewer))
            statement = f"{names[d, n]}: IWAE with k = {more} beats k = {fewer}"
            claims.append(plain_claim(SAMPLES_HELP, statement, "log_p_hat", terms))
    for d, n in settings:
        terms = (term(0.5, d, n, "iwae", 50), term(0.5, d, n, "vae", 1), term(-1, d, n, "vae", 50))
        statement = f"{names[d, n]}: VAE gains less than half of IWAE's gain from k = 1 to 50"
        claims.append(plain_claim(SAMPLES_HARDLY_HELP, statement, "log_p_hat", terms))
    for d in ("mnist", "omniglot", "fixed-mnist"):
        for objective, k in (("vae", 1), ("vae", 50), ("iwae", 50)):
            terms = (term(1, d, 2, objective, k), term(-1, d, 1, objective, k))
            statement = f"{dataset_name(d)}: 2 layers beat 1 for {objective.upper()} at k = {k}"
            claims.append(plain_claim(DEPTH, statement, "log_p_hat", terms))
    for d, n in settings:
        for k in (5, 50):
            terms = (term(1, d, n, "iwae", k), term(-1, d, n, "vae", k))
            statement = f"{names[d, n]}: IWAE has more active units at k = {k}"
            claims.append(plain_claim(UNITS, statement, "active_units", terms))
    return claims


def drift_claims(cells: Cells) -> list[Claim]:
    """Burda's Table 2 in both directions, on the likelihood and on the active units."""
    claims = []
    for first, second, sign, path in (
        (Setting.burda("vae", 1), Setting.burda("iwae", 50), 1, "VAE k = 1 continued as IWAE k = 50"),
        (Setting.burda("iwae", 50), Setting.burda("vae", 1), -1, "IWAE k = 50 continued as VAE k = 1"),
    ):
        before, after = Place("burda-table1", "mnist", 1, first), Place("burda-table2", "mnist", 1, second)
        cell = find(cells, after)
        terms = (Term(sign, after, cell), Term(-sign, before, first_stage(cells, cell, before)))
        gains, improves = ("gains", "improves") if sign > 0 else ("loses", "worsens")
        claims.append(plain_claim(DRIFT, f"{path} {improves} log p̂", "log_p_hat", terms))
        claims.append(plain_claim(DRIFT, f"{path} {gains} active units", "active_units", terms))
    return claims


def rainforth_claims(cells: Cells) -> list[Claim]:
    """Rainforth's claims on each of the three metrics."""

    def term(weight: float, setting: Setting) -> Term:
        place = Place("rainforth-table1", "mnist", 1, setting)
        return Term(weight, place, find(cells, place))

    iwae, vae = Setting("iwae", 1, 64), Setting("vae", 64, 1)
    interior = [Setting("miwae", M, K) for M, K in SPLITS]
    mixtures = [Setting("ciwae", 1, 64, beta) for beta in BETAS]
    claims = []
    for metric in RAINFORTH_METRICS:
        terms = [term(1, setting) for setting in (*interior, *mixtures, iwae, vae)]
        ours = {t.place.setting: known.value for t in terms if (known := estimate(t.cell, metric))}
        papers = {t.place.setting: value[0] for t in terms if (value := published_metric(t.place, metric))}
        chosen = tuple(term(*pick) for pick in _best_inside(ours, interior, iwae, vae))
        paper = published_contrast(tuple(term(*pick) for pick in _best_inside(papers, interior, iwae, vae)), metric)
        best = f"; ours is {setting_name(chosen[0].place.setting)}" if contrast(chosen, metric) else ""
        statement = f"{METRIC_NAMES[metric]}: the best MIWAE beats both ends{best}"
        claims.append(Claim(INTERIOR, statement, metric, chosen, *paper, len(interior)))
        for ciwae in mixtures:
            chosen = tuple(term(*pick) for pick in _nearer_end(ours, ciwae, iwae, vae))
            paper = published_contrast(tuple(term(*pick) for pick in _nearer_end(papers, ciwae, iwae, vae)), metric)
            statement = f"{METRIC_NAMES[metric]}: {setting_name(ciwae)} lies between VAE and IWAE"
            claims.append(Claim(BETWEEN, statement, metric, chosen, *paper))
        for M, K in ((4, 16), (8, 8)):
            pair = (term(1, Setting("piwae", M, K)), term(-1, iwae))
            claims.append(plain_claim(PIWAE, f"{METRIC_NAMES[metric]}: PIWAE({M}, {K}) beats IWAE", metric, pair))
    for setting in (vae, Setting("miwae", 8, 8), Setting("piwae", 8, 8)):
        statement = f"{setting_name(setting)} has a better −KL(Q‖P) than IWAE(1, 64)"
        claims.append(plain_claim(ENCODER, statement, "kl_q_p", (term(1, setting), term(-1, iwae))))
    return claims


def posterior_claims(cells: Cells) -> list[Claim]:
    """Of the spread of q(h|x), and of what its samples decode to: IWAE at k = 5 and 50 against VAE at k = 1."""
    wheres = {
        "MNIST, 2 latent units": ("two-dimensional", "mnist"),
        "MNIST, 1 layer": ("burda-table1", "mnist"),
        "OMNIGLOT, 1 layer": ("burda-table1", "omniglot"),
    }
    measures = {
        "log_q_sd": (WIDER, "q is wider"),
        "decoded_sd": (WIDER, "what q's samples decode to varies more"),
        "digit_changes": (CHANGES, "decoded samples change the digit more often"),
    }
    claims = []
    for metric, (family, what) in measures.items():
        for name, (experiment, dataset) in wheres.items():
            if metric == "digit_changes" and dataset != "mnist":
                continue
            for k in (5, 50):
                places = [
                    Place(experiment, dataset, 1, setting) for setting in (Setting("iwae", 1, k), Setting("vae", 1, 1))
                ]
                terms = tuple(Term(w, place, find(cells, place)) for w, place in zip((100, -100), places, strict=True))
                claims.append(plain_claim(family, f"{name}: {what} for IWAE k = {k}", metric, terms))
    return claims


def _best_inside(
    known: Mapping[Setting, float], interior: list[Setting], iwae: Setting, vae: Setting
) -> tuple[tuple[float, Setting], ...]:
    """Weights and settings: the best interior one minus the better end; all that it needs where values are missing."""
    inside = [setting for setting in interior if setting in known]
    if not inside or iwae not in known or vae not in known:
        return ((1.0, interior[0]), (-1.0, iwae), (0.0, vae))
    best, end = max(inside, key=known.__getitem__), max((iwae, vae), key=known.__getitem__)
    return ((1.0, best), (-1.0, end))


def _nearer_end(
    known: Mapping[Setting, float], ciwae: Setting, iwae: Setting, vae: Setting
) -> tuple[tuple[float, Setting], ...]:
    """Weights and settings: CIWAE against the nearer end, signed so that inside is positive."""
    if not {ciwae, iwae, vae} <= known.keys():
        return ((1.0, ciwae), (-1.0, iwae), (0.0, vae))
    lower, upper = sorted((iwae, vae), key=known.__getitem__)
    if known[ciwae] - known[lower] < known[upper] - known[ciwae]:
        return ((1.0, ciwae), (-1.0, lower))
    return ((-1.0, ciwae), (1.0, upper))


def place_name(place: Place) -> str:
    setting = setting_name(place.setting)
    return f"{place.experiment} {dataset_name(place.dataset)} {layers_name(place.layers)} {setting}"


@dataclass(frozen=True)
class Measured:
    """A claim with its effect, before it is judged; fields as of `ClaimResult`."""

    family: str
    statement: str
    unit: str
    effect: Effect | None
    paper_effect: float | None
    paper_verified: bool
    rule: str
    missing: str
    candidates: int = 1
    """As of `Claim`."""


def judge(measured: Sequence[Measured], scale: str) -> list[ClaimResult]:
    """Decide claims in their order: at `ALPHA` over each family by Holm's procedure."""
    effects = {i: claim.effect for i, claim in enumerate(measured) if claim.effect is not None}
    errors = dict(zip(effects, error_distributions(list(effects.values())), strict=True))
    p_values = {
        i: min(1.0, measured[i].candidates * errors[i].p_value(effect.value))
        for i, effect in effects.items()
        if effect.seeds_known
    }
    levels: dict[int, float] = {}
    for family in dict.fromkeys(claim.family for claim in measured):
        own = [i for i in effects if measured[i].family == family]
        # What cannot be decided for want of seeds must not ease the test of the others.
        levels |= dict(zip(own, holm_levels([p_values.get(i, 1.0) for i in own], ALPHA), strict=True))
    results = []
    for i, claim in enumerate(measured):
        effect = claim.effect
        low, high = errors[i].interval(effect.value, levels[i] / claim.candidates) if effect else (np.nan, np.nan)
        results.append(
            ClaimResult(
                family=claim.family,
                statement=claim.statement,
                unit=claim.unit,
                effect=effect,
                p_value=p_values.get(i),
                low=low if effect else None,
                high=high if effect else None,
                paper_effect=claim.paper_effect,
                paper_verified=claim.paper_verified,
                rule=claim.rule,
                decision=decide(effect, low, high, scale),
                missing=claim.missing,
            )
        )
    return results


def _measure(claim: Claim) -> Measured:
    effect = contrast(claim.terms, claim.metric)
    missing = [] if effect else [t for t in claim.terms if estimate(t.cell, claim.metric) is None]
    return Measured(
        family=claim.family,
        statement=claim.statement,
        unit=UNITS_OF.get(claim.metric, "nats"),
        effect=effect,
        paper_effect=claim.paper_effect,
        paper_verified=claim.paper_verified,
        rule=FAMILIES[claim.family],
        missing="; ".join(f"{place_name(t.place)} {'diverged' if t.cell else 'not run'}" for t in missing),
        candidates=claim.candidates,
    )


def decide_claims(cells: Cells, scale: str) -> list[ClaimResult]:
    """Every claim with its effect, the paper's effect, its rule and its decision, family by family."""
    order = list(FAMILIES)
    stated = [*burda_claims(cells), *drift_claims(cells), *rainforth_claims(cells), *posterior_claims(cells)]
    stated.sort(key=lambda claim: order.index(claim.family))
    return judge([_measure(claim) for claim in stated], scale)
