"""The papers' claims, each decided by a stated test on a contrast of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.experiments.known import BURDA_TABLE1, BURDA_TABLE2, TWO_DIMENSIONAL
from pipeline.experiments.spec import CohortSpec
from pipeline.published import Place, Setting, burda_experiment, published_at
from pipeline.records.metrics import ACTIVE_VARIANCE, METRIC_TABLE, value_of
from pipeline.reporting.evidence.cells import (
    ASSUMED_SPREAD,
    BETAS,
    IN_NATS,
    IN_UNITS,
    LEAST_SPREAD,
    NOT_RUN,
    NOTHING_SHOWN,
    ONE_SEED_NATS,
    ONE_SEED_UNITS,
    RAINFORTH_METRICS,
    SPLITS,
    Cell,
    Cells,
    Estimate,
    dataset_name,
    estimate,
    find,
    first_stage,
    images,
    layers_name,
    seed_spread,
    setting_name,
    spreads_shown,
    standard_error,
)
from pipeline.reporting.evidence.statistics import (
    RESAMPLES,
    ErrorDistribution,
    Spread,
    bootstrap_deviations,
    holm_levels,
    satterthwaite,
)

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
ASSUMED = "(assumed spread)"
HOLDS_ASSUMED, FAILS_ASSUMED = f"{HOLDS} {ASSUMED}", f"{FAILS} {ASSUMED}"
DECIDED = (HOLDS, HOLDS_ASSUMED, FAILS, FAILS_ASSUMED)
NOT_DECIDED = "not decided at this scale"
ALPHA = 0.05

BURDA, RAINFORTH, BLOG, OURS = "Burda et al.", "Rainforth et al.", "the blog post", "ours"

BEATS = "IWAE beats VAE at equal k"
SAMPLES_HELP = "More samples help IWAE"
SAMPLES_HARDLY_HELP = "More samples hardly help VAE"
DEPTH = "Two stochastic layers beat one"
UNITS = "IWAE has more active units than VAE"
DRIFT = "Continued training drifts to the new objective"
PRUNING = "Inactive units can be removed"
OVERFITTING = "Test and training images differ as much as in the paper"
HEADLINE = "A looser bound beats IWAE on IWAE's own target"
PIWAE = "PIWAE beats IWAE"
ENCODER = "A tighter bound leaves a worse encoder"
ESS_ORDER = "Looser bounds have the larger effective sample size"
INTERIOR = "The best M is in the interior"
BETWEEN = "CIWAE lies between VAE and IWAE"
WIDER = "IWAE's posterior is wider than VAE's"
CHANGES = "IWAE's decoded samples change the digit more often than VAE's"

PRUNING_NATS = 0.06
"""What removing inactive units moves the NLL by at most (Burda et al.)."""
OVERFITTING_NATS = {"mnist": (0.62, 0.79), "omniglot": (2.39, 2.65)}
"""Dataset -> test minus train of Burda's models, from and to."""
OVERFITTING_MARGIN = 0.25
"""Nats by which ours may lie outside that range."""
WIDTHS, PRUNED_SE = "spread/unit_log_q_sd", "pruned_minus_full_se"

HOW_DECIDED = (
    f"A claim's interval joins {RESAMPLES} resamples of the test images, paired between models, with the error over "
    "seeds, and is as wide as Holm's procedure asks for: all decisions of one family, over all its claims that the "
    f"grid plans, run or not, are right at once with {1 - ALPHA:.0%} confidence. With one seed a model the spread "
    f"between seeds is assumed: {ONE_SEED_NATS:.2f} nats (Student's t with {IN_NATS.df:g} degrees of freedom), "
    f"{ONE_SEED_UNITS:g} active unit ({IN_UNITS.df:g}), or more where the report's own seeds show more; such decisions "
    f"say {ASSUMED[1:-1]}."
)
_TEST = "Holds when the interval lies above zero, does not hold when it lies below, undecided otherwise."
_SEVERAL_SEEDS = "With one seed a model it stays undecided: no spread over seeds is known to assume."


@dataclass(frozen=True)
class Rule:
    """Whose claim a family is, and how it is decided."""

    by: str
    text: str


FAMILIES: dict[str, Rule] = {
    BEATS: Rule(BURDA, f"effect = mean log p̂ of IWAE minus VAE. {_TEST}"),
    SAMPLES_HELP: Rule(BURDA, f"effect = mean log p̂ with more samples minus with fewer. {_TEST}"),
    SAMPLES_HARDLY_HELP: Rule(
        BURDA, f"effect = half of IWAE's gain from k = 1 to 50 minus VAE's gain, in log p̂; the half is ours. {_TEST}"
    ),
    DEPTH: Rule(BURDA, f"effect = mean log p̂ with 2 layers minus with 1. {_TEST}"),
    UNITS: Rule(BURDA, f"effect = active units (all layers) of IWAE minus VAE. {_TEST}"),
    DRIFT: Rule(
        BURDA,
        "effect = change from the first to the second stage in the direction named (Table 2), each run against the one "
        f"that it continues. {_TEST}",
    ),
    PRUNING: Rule(
        BURDA,
        f"effect = {PRUNING_NATS} nats minus the size of the change of NLL, of the very models that were trained: "
        f"seeds have no part in it, and of several the one that changes most is tested. {_TEST}",
    ),
    OVERFITTING: Rule(
        BURDA,
        f"effect = how far test minus train lies inside Burda's range (MNIST 0.62 to 0.79, OMNIGLOT 2.39 to 2.65 nats) "
        f"widened by {OVERFITTING_MARGIN} on each side. {_TEST} The error is that of the training images looked at.",
    ),
    HEADLINE: Rule(RAINFORTH, f"effect = IWAE-64 minus that of IWAE(1, 64). {_TEST}"),
    PIWAE: Rule(RAINFORTH, f"effect = PIWAE minus IWAE(1, 64). {_TEST}"),
    ENCODER: Rule(RAINFORTH, f"effect = −KL(Q‖P) of the looser bound minus IWAE(1, 64)'s. {_TEST}"),
    ESS_ORDER: Rule(
        RAINFORTH,
        "effect = effective sample size of 64 samples, in per cent of 64, minus that of the next in the order of the "
        f"paper's −KL(Q‖P). Its ESS is a figure without numbers. {_TEST} {_SEVERAL_SEEDS}",
    ),
    INTERIOR: Rule(
        BLOG,
        f"effect = the best MIWAE(M, K) with 1 < M < 64 minus the better of IWAE(1, 64) and VAE(64, 1). {_TEST} "
        "The interval is five times surer, since the best of five is picked.",
    ),
    BETWEEN: Rule(BLOG, f"effect = distance of CIWAE to the nearer of VAE and IWAE, negative when outside. {_TEST}"),
    WIDER: Rule(
        BLOG,
        "effect = 100 times the difference (IWAE minus VAE at k = 1) of the mean log standard deviation of q(h|x), "
        "about per cent, over the units that are active in both models; or of the standard deviation of decoded pixel "
        f"means over q's samples, in per cent of the grey range. {_TEST} {_SEVERAL_SEEDS}",
    ),
    CHANGES: Rule(
        BLOG,
        "effect = share of decoded samples of q in which a plain classifier sees another digit than in the image, IWAE "
        f"minus VAE at k = 1, in percentage points. {_TEST} {_SEVERAL_SEEDS}",
    ),
}

UNITS_OF = {"active_units": "units", "log_q_sd": "%", "decoded_sd": "%", "digit_changes": "%", "ess_64": "%"}
"""Metric -> unit of its effects; the others are in nats."""


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
    """Degrees of freedom of `seed_se`."""
    seeds_known: bool = True
    """False where an error is not known: nothing is known of how seeds differ, or a cell's did not differ at all.

    Then nothing is decided."""
    assumed: bool = False
    """True where the spread of a cell with one seed is assumed."""
    image_df: float = np.inf
    """Degrees of freedom of `image_se` where it rests on few blocks and not on images."""
    per_image: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """The contrast image by image, [images]; None where its cells have no values on the same images."""

    @property
    def uncertainty(self) -> float:
        return float(np.hypot(self.image_se, self.seed_se))

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of this effect alone, by Student's t."""
        se, df = joined(self)
        return se * float(stats.t.ppf(0.975, df))


def joined(effect: Effect) -> tuple[float, float]:
    """Standard error of an effect by images and seeds together, and its degrees of freedom."""
    of_images = (float(np.nan_to_num(effect.image_se)), effect.image_df)
    return satterthwaite([of_images, (effect.seed_se, effect.seed_df)])


@dataclass(frozen=True)
class PaperEffect:
    """The same contrast of the paper's numbers, with its error over the paper's runs (assumed where it states none)."""

    value: float
    se: float
    verified: bool
    df: float = np.inf
    """Degrees of freedom of `se`."""


@dataclass(frozen=True)
class Claim:
    """A statement that is true when the weighted sum over its terms is above zero."""

    family: str
    statement: str
    metric: str
    terms: tuple[Term, ...]
    paper: PaperEffect | None
    candidates: int = 1
    """How many cells the data picked one from: its p-value counts so many times (Bonferroni)."""
    waits: int = 0
    """How many of these cells are still to be run: until then the claim may hold, but cannot be refuted."""
    paired: bool = False
    """True where a seed's runs belong together across the terms, as a run and its continuation."""


@dataclass(frozen=True)
class ClaimResult:
    """A claim as it stands: its effect here and in the paper, in the claim's unit, and how it was decided."""

    family: str
    by: str
    """Whose claim it is."""
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
    paper_se: float | None
    paper_verified: bool
    support: str
    """What the published numbers say of the claim where they do not bear it out; else empty."""
    rule: str
    decision: str
    missing: str
    """The cells that were not run or diverged; empty when the effect is there."""


def contrast(
    terms: tuple[Term, ...], metric: str, paired: bool = False, shown: Mapping[str, Spread] = NOTHING_SHOWN
) -> Effect | None:
    """The weighted sum of a metric over cells with its errors; None when a cell is missing.

    Images are paired when all cells have per-image values of one length; otherwise their errors add in quadrature.
    `paired`: the seeds that all cells have are compared seed by seed, and what other seeds gave is left out. `shown`:
    as of `seed_spread`.
    """
    common = _common_seeds(terms, metric) if paired else None
    if common is not None:
        terms = tuple(replace(term, cell=_of_seeds(term.cell, common)) for term in terms)
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
    if common is not None and len(common) > 1:
        seed_se, seed_df = _error_of_pairs(terms, metric, common)
        seeds_known, assumed = seed_se > 0, False
    else:
        seed_se, seed_df, seeds_known, assumed = seed_error(weights, known, metric, shown)
    return Effect(
        value=float(sum(w * one.value for w, one in zip(weights, known, strict=True))),
        image_se=image_se,
        seed_se=seed_se,
        seed_df=seed_df,
        # One test image does not tell how far images differ.
        seeds_known=seeds_known and not np.isnan(image_se),
        assumed=assumed,
        per_image=per_image,
    )


def seed_error(
    weights: Sequence[float], known: Sequence[Estimate], metric: str, shown: Mapping[str, Spread] = NOTHING_SHOWN
) -> tuple[float, float, bool, bool]:
    """Of a weighted sum over cells: standard error over seeds, degrees of freedom, all known?, any assumed?

    Measured spreads join by Welch and Satterthwaite. An assumed one is one spread for all cells that need it: it is not
    known better for being used twice. What never varied between the runs of a cell was not measured: no certainty is
    made of it.
    """
    measured: list[tuple[float, float]] = []
    assumed_variance, assumed_df, complete, any_assumed = 0.0, np.inf, True, False
    for weight, one in zip(weights, known, strict=True):
        spread, assumed = seed_spread(one, metric, shown)
        any_assumed |= assumed and weight != 0
        if spread is None or spread.sd == 0:
            complete &= weight == 0
        elif assumed:
            assumed_variance, assumed_df = assumed_variance + (weight * spread.sd) ** 2, spread.df
        else:
            measured.append((abs(weight) * spread.sd / np.sqrt(one.seeds), spread.df))
    if assumed_variance:
        measured.append((float(np.sqrt(assumed_variance)), assumed_df))
    return *satterthwaite(measured), complete, any_assumed


def _common_seeds(terms: tuple[Term, ...], metric: str) -> tuple[int, ...] | None:
    """The seeds that every cell has a number of, or None when there is none."""
    finished = [term.cell.finished if term.cell else () for term in terms]
    sets = [{run.spec.seed for run in runs if value_of(run.metrics, metric) is not None} for runs in finished]
    common = set.intersection(*sets)
    return tuple(sorted(common)) or None


def _of_seeds(cell: Cell | None, seeds: tuple[int, ...]) -> Cell | None:
    return None if cell is None else replace(cell, runs=tuple(run for run in cell.runs if run.spec.seed in seeds))


def _error_of_pairs(terms: tuple[Term, ...], metric: str, seeds: tuple[int, ...]) -> tuple[float, float]:
    """Standard error and degrees of freedom of the contrast's mean over seeds, from the contrast of every seed."""
    sums = dict.fromkeys(seeds, 0.0)
    for term in terms:
        for run in term.cell.finished if term.cell else ():
            value = value_of(run.metrics, metric)
            sums[run.spec.seed] += term.weight * (value if value is not None else np.nan)
    weight = float(np.sqrt(sum(term.weight**2 for term in terms)))
    floor = LEAST_SPREAD.get(metric, 0.0) * weight
    sd = max(float(np.std(list(sums.values()), ddof=1)), floor)
    return sd / float(np.sqrt(len(seeds))), len(seeds) - 1


def error_distributions(effects: list[Effect]) -> list[ErrorDistribution]:
    """The error of each effect; those on equally many images share their resamples."""
    deviations: dict[int, NDArray[np.float64]] = {}
    counts = [0 if effect.per_image is None else len(effect.per_image) for effect in effects]
    for count in set(counts):
        indices = [i for i, other in enumerate(counts) if other == count]
        values = [array for i in indices if (array := effects[i].per_image) is not None]
        if values:
            deviations |= dict(zip(indices, bootstrap_deviations(values), strict=True))
    return [
        ErrorDistribution(deviations[i], effect.seed_se, effect.seed_df)
        if i in deviations
        # Without per-image values the error over images is taken as normal.
        else ErrorDistribution(np.zeros(1), *joined(effect))
        for i, effect in enumerate(effects)
    ]


def decide(effect: Effect | None, low: float, high: float, judged: bool) -> str:
    """Above zero with the whole interval: holds; below: does not hold. Nothing is decided where `judged` is False."""
    if effect is None:
        return NOT_RUN
    if not judged:
        return NOT_DECIDED
    if not effect.seeds_known:
        return UNDECIDED
    if low > 0:
        return HOLDS_ASSUMED if effect.assumed else HOLDS
    if high < 0:
        return FAILS_ASSUMED if effect.assumed else FAILS
    return UNDECIDED


def published_metric(place: Place, metric: str) -> PaperEffect | None:
    """The paper's value of a metric, active units summed over layers, with the error of its mean over runs."""
    keys = [f"active_units_{layer}" for layer in range(1, place.layers + 1)] if metric == "active_units" else [metric]
    values = [published_at(place, key) for key in keys]
    known = [value for value in values if value is not None]
    if len(known) != len(values):
        return None
    stated = [Spread(one.sd, one.runs - 1) for one in known if one.sd is not None]
    spread = stated[0] if stated else ASSUMED_SPREAD.get(metric, IN_NATS) or Spread(0.0, np.inf)
    return PaperEffect(
        sum(value.value for value in known),
        spread.sd / float(np.sqrt(known[0].runs)),
        all(value.judged for value in known),
        spread.df,
    )


def published_contrast(terms: tuple[Term, ...], metric: str) -> PaperEffect | None:
    """The same weighted sum over the paper's values; None where it prints not all of them."""
    values = [published_metric(term.place, metric) for term in terms]
    known = [value for value in values if value is not None]
    if len(known) != len(terms):
        return None
    pairs = list(zip(terms, known, strict=True))
    # Errors with the assumed spread's degrees of freedom share one assumption, which is not known better for that.
    assumption = ASSUMED_SPREAD.get(metric, IN_NATS)
    shared = [abs(t.weight) * one.se for t, one in pairs if assumption is not None and one.df == assumption.df]
    errors = [(abs(t.weight) * one.se, one.df) for t, one in pairs if assumption is None or one.df != assumption.df]
    if shared and assumption is not None:
        errors.append((float(np.sqrt(np.sum(np.square(shared)))), assumption.df))
    se, df = satterthwaite(errors)
    value = sum(term.weight * one.value for term, one in pairs)
    return PaperEffect(value, se, all(one.verified for _, one in pairs), df)


def support_of(paper: PaperEffect | None, by: str, unit: str) -> str:
    """A sentence where the published numbers do not bear a claim out; else empty.

    Numbers that nobody checked against the paper say nothing of its claims.
    """
    if paper is None or not paper.verified or paper.value > float(stats.t.ppf(1 - ALPHA / 2, paper.df)) * paper.se:
        return ""
    shown = f"{paper.value:+.2f} ± {paper.se:.2f} {unit}".replace("-", "−")
    whose = "its own numbers" if by in (BURDA, RAINFORTH) else "the paper's numbers"
    verb = "do not support" if paper.value <= 0 else "do not decide"
    return f"Published numbers {verb} it: {whose} give {shown}."


def plain_claim(family: str, statement: str, metric: str, terms: tuple[Term, ...]) -> Claim:
    """A claim whose published effect is the same contrast as ours, taken over the papers' numbers."""
    return Claim(family, statement, metric, terms, published_contrast(terms, metric))


def burda_claims(cells: Cells) -> list[Claim]:
    """Burda's claims on Tables 1 and 3 for every dataset, depth and k."""

    def term(weight: float, dataset: str, layers: int, objective: str, k: int) -> Term:
        experiment = burda_experiment(dataset)
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
        before, after = Place(BURDA_TABLE1, "mnist", 1, first), Place(BURDA_TABLE2, "mnist", 1, second)
        cell = find(cells, after)
        terms = (Term(sign, after, cell), Term(-sign, before, first_stage(cells, cell, before)))
        gains, improves = ("gains", "improves") if sign > 0 else ("loses", "worsens")
        for statement, metric in (
            (f"{path} {improves} log p̂", "log_p_hat"),
            (f"{path} {gains} active units", "active_units"),
        ):
            claims.append(replace(plain_claim(DRIFT, statement, metric, terms), paired=True))
    return claims


def rainforth_claims(cells: Cells, planned: frozenset[Place]) -> list[Claim]:
    """Rainforth's claims, and the blog post's reading of the sweep, on each of the three metrics.

    `planned`: the places of the grid; empty where there is none.
    """

    def term(weight: float, setting: Setting) -> Term:
        place = Place.rainforth(setting)
        return Term(weight, place, find(cells, place))

    iwae, vae = Setting("iwae", 1, 64), Setting("vae", 64, 1)
    interior = [Setting("miwae", M, K) for M, K in SPLITS]
    mixtures = [Setting("ciwae", 1, 64, beta) for beta in BETAS]
    claims = []
    for metric in RAINFORTH_METRICS:
        terms = [term(1, setting) for setting in (*interior, *mixtures, iwae, vae)]
        ours = {t.place.setting: known.value for t in terms if (known := estimate(t.cell, metric))}
        papers = {t.place.setting: one.value for t in terms if (one := published_metric(t.place, metric))}
        chosen = tuple(term(*pick) for pick in _best_inside(ours, interior, iwae, vae))
        paper = published_contrast(tuple(term(*pick) for pick in _best_inside(papers, interior, iwae, vae)), metric)
        waits = [one for one in interior if one not in ours and term(1, one).place in planned]
        best = f"; ours is {setting_name(chosen[0].place.setting)}" if contrast(chosen, metric) else ""
        best += f", {len(waits)} are still to be run" if best and waits else ""
        statement = f"{METRIC_TABLE[metric].title}: the best MIWAE beats both ends{best}"
        claims.append(Claim(INTERIOR, statement, metric, chosen, paper, len(interior), len(waits)))
        for ciwae in mixtures:
            chosen = tuple(term(*pick) for pick in _nearer_end(ours, ciwae, iwae, vae))
            paper = published_contrast(tuple(term(*pick) for pick in _nearer_end(papers, ciwae, iwae, vae)), metric)
            statement = f"{METRIC_TABLE[metric].title}: {setting_name(ciwae)} lies between VAE and IWAE"
            claims.append(Claim(BETWEEN, statement, metric, chosen, paper))
        for M, K in ((4, 16), (8, 8)):
            pair = (term(1, Setting("piwae", M, K)), term(-1, iwae))
            claims.append(plain_claim(PIWAE, f"{METRIC_TABLE[metric].title}: PIWAE({M}, {K}) beats IWAE", metric, pair))
    for setting in (Setting("miwae", 4, 16), Setting("miwae", 8, 8), mixtures[0], mixtures[2]):
        statement = f"IWAE-64: {setting_name(setting)} beats IWAE(1, 64)"
        claims.append(plain_claim(HEADLINE, statement, "iwae_64", (term(1, setting), term(-1, iwae))))
    for setting in (vae, Setting("miwae", 8, 8), Setting("piwae", 8, 8)):
        statement = f"{setting_name(setting)} has a better −KL(Q‖P) than IWAE(1, 64)"
        claims.append(plain_claim(ENCODER, statement, "kl_q_p", (term(1, setting), term(-1, iwae))))
    order = (vae, Setting("miwae", 8, 8), mixtures[2], Setting("piwae", 8, 8), iwae)
    for looser, tighter in pairwise(order):
        statement = f"{setting_name(looser)} has a larger ESS than {setting_name(tighter)}"
        claims.append(plain_claim(ESS_ORDER, statement, "ess_64", (term(100, looser), term(-100, tighter))))
    return claims


def posterior_claims(cells: Cells) -> list[Claim]:
    """Of the spread of q(h|x), and of what its samples decode to: IWAE at k = 5 and 50 against VAE at k = 1."""
    wheres = {
        "MNIST, 2 latent units": (TWO_DIMENSIONAL, "mnist"),
        "MNIST, 1 layer": (BURDA_TABLE1, "mnist"),
        "OMNIGLOT, 1 layer": (BURDA_TABLE1, "omniglot"),
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
    """A place in words, as in `burda-table1 MNIST 1 layer IWAE(1, 50)`."""
    setting = setting_name(place.setting)
    return f"{place.experiment} {dataset_name(place.dataset)} {layers_name(place.layers)} {setting}"


@dataclass(frozen=True)
class Measured:
    """A claim with its effect, before it is judged; fields as of `ClaimResult`."""

    family: str
    by: str
    statement: str
    unit: str
    effect: Effect | None
    paper: PaperEffect | None
    rule: str
    missing: str
    candidates: int = 1
    """As of `Claim`."""
    waits: int = 0
    """As of `Claim`."""
    planned: bool = True
    """Part of what the grid plans at this scale, hence of the family for which Holm's procedure answers."""


def judge(measured: Sequence[Measured], judged: bool) -> list[ClaimResult]:
    """Decide claims in their order: at `ALPHA` over each family by Holm's procedure.

    A family is what is planned, not what was run so far: else decisions would flip while a report fills up.
    """
    effects = {i: claim.effect for i, claim in enumerate(measured) if claim.effect is not None}
    errors = dict(zip(effects, error_distributions(list(effects.values())), strict=True))
    p_values = {
        i: min(1.0, measured[i].candidates * errors[i].p_value(effect.value))
        for i, effect in effects.items()
        if effect.seeds_known
    }
    levels: dict[int, float] = {}
    for family in dict.fromkeys(claim.family for claim in measured):
        members = [i for i in effects if measured[i].family == family]
        size = sum(claim.family == family and (claim.planned or i in effects) for i, claim in enumerate(measured))
        # What cannot be decided for want of seeds must not ease the test of the others.
        levels |= dict(zip(members, holm_levels([p_values.get(i, 1.0) for i in members], ALPHA, size), strict=True))
    results = []
    for i, claim in enumerate(measured):
        effect, paper = claim.effect, claim.paper
        low, high = errors[i].interval(effect.value, levels[i] / claim.candidates) if effect else (np.nan, np.nan)
        decision = decide(effect, low, high, judged)
        rejected = i in p_values and p_values[i] <= levels[i]
        # An interval of no width lies beside zero without deciding anything.
        if decision in DECIDED and (not rejected or (claim.waits and decision in (FAILS, FAILS_ASSUMED))):
            decision = UNDECIDED
        results.append(
            ClaimResult(
                family=claim.family,
                by=claim.by,
                statement=claim.statement,
                unit=claim.unit,
                effect=effect,
                p_value=p_values.get(i),
                low=low if effect else None,
                high=high if effect else None,
                paper_effect=paper.value if paper else None,
                paper_se=paper.se if paper else None,
                paper_verified=paper is None or paper.verified,
                support=support_of(paper, claim.by, claim.unit),
                rule=claim.rule,
                decision=decision,
                missing=claim.missing,
            )
        )
    return results


def _measure(claim: Claim, planned: frozenset[Place], shown: Mapping[str, Spread]) -> Measured:
    own = contrast(claim.terms, claim.metric, claim.paired, shown)
    effect = width(claim.terms) if claim.metric == "log_q_sd" else own
    missing = [] if effect else [t for t in claim.terms if estimate(t.cell, claim.metric) is None]
    return Measured(
        family=claim.family,
        by=FAMILIES[claim.family].by,
        statement=claim.statement + (_own_units(own) if own and effect and effect.value != own.value else ""),
        unit=UNITS_OF.get(claim.metric, "nats"),
        effect=effect,
        paper=claim.paper,
        rule=FAMILIES[claim.family].text,
        missing="; ".join(f"{place_name(t.place)} {'diverged' if t.cell else 'not run'}" for t in missing),
        candidates=claim.candidates,
        waits=claim.waits,
        planned=not planned or {term.place for term in claim.terms} <= planned,
    )


def _own_units(effect: Effect) -> str:
    return f" (over each model's own units {effect.value:+.1f} %)".replace("-", "−")


def width(terms: tuple[Term, ...]) -> Effect | None:
    """A contrast of `log_q_sd` for two terms, over the units of layer 1 that are active in both runs of a seed.

    Where runs did not keep their units' widths it is over each model's own units, which decides nothing unless all runs
    have the same ones.
    """
    shared, own = shared_width(terms), contrast(terms, "log_q_sd")
    if shared is not None or own is None:
        return shared
    active = {
        tuple(run.arrays["unit_variance_1"] > ACTIVE_VARIANCE)
        for term in terms
        for run in (term.cell.finished if term.cell else ())
    }
    return own if len(active) == 1 else replace(own, seeds_known=False)


def shared_width(terms: tuple[Term, ...]) -> Effect | None:
    """`width` over the units that both have active.

    Each model's own active units are other ones, and narrow posteriors belong to units that only one of them uses. None
    where a run did not keep its units' widths, the seeds' images differ, or no seed has a unit in common.
    """
    first, second = (
        {run.spec.seed: run for run in term.cell.finished} if term.cell is not None else {} for term in terms
    )
    per_seed = []
    for seed in sorted(first.keys() & second.keys()):
        runs = first[seed], second[seed]
        if any(WIDTHS not in run.arrays for run in runs):
            return None
        active = np.logical_and(*(run.arrays["unit_variance_1"] > ACTIVE_VARIANCE for run in runs))
        if active.any():
            widths = [run.arrays[WIDTHS].astype(np.float64)[:, active].mean(1) for run in runs]
            per_seed.append(sum(term.weight * width for term, width in zip(terms, widths, strict=True)))
    if len({len(widths) for widths in per_seed}) != 1:
        return None
    per_image = np.asarray(np.mean(per_seed, axis=0))
    of_seeds = np.mean(per_seed, axis=1)
    several = len(per_seed) > 1 and float(np.std(of_seeds)) > 0
    return Effect(
        value=float(per_image.mean()),
        image_se=standard_error(per_image),
        seed_se=float(np.std(of_seeds, ddof=1) / np.sqrt(len(of_seeds))) if several else 0.0,
        seed_df=len(per_seed) - 1 if several else np.inf,
        seeds_known=several,
        per_image=per_image,
    )


def model_claims(cells: Cells, planned: frozenset[Place], shown: Mapping[str, Spread]) -> list[Measured]:
    """What Burda states of every model of Table 1: that inactive units can be removed, and how far it overfits."""
    claims = []
    settings = [Setting.burda("vae", 1), *(Setting.burda(name, k) for k in (5, 50) for name in ("vae", "iwae"))]
    places = [
        Place(BURDA_TABLE1, dataset, layers, setting)
        for dataset in OVERFITTING_NATS
        for layers in (1, 2)
        for setting in settings
    ]
    for family, what in (
        (PRUNING, f"without inactive units the NLL changes by less than {PRUNING_NATS} nats"),
        (OVERFITTING, "test minus train is as in the paper"),
    ):
        for place in places:
            cell = find(cells, place)
            effect = None if cell is None else pruning(cell) if family == PRUNING else overfitting(cell, shown)
            where = f"{dataset_name(place.dataset)}, {layers_name(place.layers)}, {setting_name(place.setting)}"
            lacking = "not run" if cell is None else "was not evaluated for this"
            claims.append(
                Measured(
                    family=family,
                    by=FAMILIES[family].by,
                    statement=f"{where}: {what}",
                    unit="nats",
                    effect=effect,
                    paper=None,
                    rule=FAMILIES[family].text,
                    missing="" if effect else f"{place_name(place)} {lacking}",
                    candidates=len(cell.finished) if cell and family == PRUNING else 1,
                    planned=not planned or place in planned,
                )
            )
    return claims


def pruning(cell: Cell) -> Effect | None:
    """How far the change of NLL without inactive units stays below `PRUNING_NATS`, nats; its error is over images.

    Of several seeds the one that changes most: changes of opposite sign do not make each other good. None where a run
    was not evaluated for it.
    """
    changes = [value_of(run.metrics, "pruned_minus_full") for run in cell.finished]
    errors = [run.metrics.get(PRUNED_SE) for run in cell.finished]
    known = [(abs(c), e) for c, e in zip(changes, errors, strict=True) if c is not None and e is not None]
    if not known or len(known) != len(changes):
        return None
    change, error = max(known)
    return Effect(PRUNING_NATS - change, error, 0.0)


def overfitting(cell: Cell, shown: Mapping[str, Spread] = NOTHING_SHOWN) -> Effect | None:
    """How far test minus train lies inside Burda's range, widened by `OVERFITTING_MARGIN`, nats."""
    known = estimate(cell, "test_minus_train")
    errors = [run.metrics["train_nll_se"] for run in cell.finished if "train_nll_se" in run.metrics]
    if known is None or not errors:
        return None
    low, high = OVERFITTING_NATS[cell.place.dataset]
    inside = min(known.value - (low - OVERFITTING_MARGIN), high + OVERFITTING_MARGIN - known.value)
    seed_se, seed_df, complete, assumed = seed_error([1.0], [known], "test_minus_train", shown)
    image_se = float(np.sqrt(np.mean(np.square(errors))))
    return Effect(inside, image_se, seed_se, seed_df, seeds_known=complete, assumed=assumed)


def planned_places(planned: Sequence[CohortSpec]) -> frozenset[Place]:
    """The places of every run of a grid."""
    return frozenset(
        Place(cohort.experiment, run.dataset, run.layers, Setting.of(run)) for cohort in planned for run in cohort.runs
    )


def decide_claims(cells: Cells, judged: bool, planned: Sequence[CohortSpec] = ()) -> list[ClaimResult]:
    """Every claim with its effect, the paper's effect, its rule and its decision, family by family.

    `judged`: whether the scale decides claims. `planned`: its grid; where there is none, every claim counts as planned.
    """
    order = list(FAMILIES)
    places, shown = planned_places(planned), spreads_shown(cells)
    stated = [*burda_claims(cells), *drift_claims(cells), *rainforth_claims(cells, places), *posterior_claims(cells)]
    measured = [*(_measure(claim, places, shown) for claim in stated), *model_claims(cells, places, shown)]
    measured.sort(key=lambda claim: order.index(claim.family))
    return judge(measured, judged)


def chance_in_words(results: Sequence[ClaimResult]) -> str:
    """How many wrong decisions a whole report may hold."""
    families = len({result.family for result in results})
    return (
        f"Each of the {families} families is decided with a risk of {ALPHA:.0%}: if nothing at all were true, a report "
        f"would hold about {ALPHA * families:.1f} wrong decisions."
    )
