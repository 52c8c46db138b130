"""The papers' claims, each decided by a stated test on a contrast of cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NOT_DECIDED = "not decided at this scale"
ONE_SEED_UNITS = 1.0
"""As `ONE_SEED_NATS`, for active units: an assumption."""
Z = 1.96
Z_BEST_OF_5 = 2.58
"""Two-sided 95 % for the best of five candidates (Bonferroni)."""

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

_TEST = f"Holds when effect − {Z} u > 0, does not hold when effect + {Z} u < 0, undecided otherwise."
FAMILIES: dict[str, str] = {
    BEATS: f"effect = mean log p̂ of IWAE minus VAE. {_TEST}",
    SAMPLES_HELP: f"effect = mean log p̂ with more samples minus with fewer. {_TEST}",
    SAMPLES_HARDLY_HELP: f"effect = half of IWAE's gain from k = 1 to 50 minus VAE's gain, in log p̂. {_TEST}",
    DEPTH: f"effect = mean log p̂ with 2 layers minus with 1. {_TEST}",
    UNITS: f"effect = active units (all layers) of IWAE minus VAE. {_TEST}",
    DRIFT: f"effect = change from the first to the second stage in the direction named. {_TEST}",
    INTERIOR: f"effect = the best MIWAE(M, K) with 1 < M < 64 minus the better of IWAE(1, 64) and VAE(64, 1). "
    f"{_TEST.replace(str(Z), str(Z_BEST_OF_5))} ({Z_BEST_OF_5}: the best of five is picked)",
    PIWAE: f"effect = PIWAE minus IWAE(1, 64). {_TEST}",
    BETWEEN: f"effect = distance of CIWAE to the nearer of VAE and IWAE, negative when outside. {_TEST}",
    ENCODER: f"effect = −KL(Q‖P) of the looser bound minus IWAE(1, 64)'s. {_TEST}",
}
"""Family -> its rule; u is the standard uncertainty of the effect."""


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

    @property
    def uncertainty(self) -> float:
        return float(np.hypot(self.image_se, self.seed_se))


@dataclass(frozen=True)
class Claim:
    """A statement that is true when the weighted sum over its terms is above zero."""

    family: str
    statement: str
    metric: str
    """A metric of which higher is better, in nats, or `active_units`."""
    terms: tuple[Term, ...]
    paper_effect: float | None
    paper_verified: bool
    z: float = Z


@dataclass(frozen=True)
class ClaimResult:
    family: str
    statement: str
    unit: str
    """`nats` or `units`"""
    effect: Effect | None
    z: float
    paper_effect: float | None
    paper_verified: bool
    rule: str
    decision: str
    missing: str
    """The cells that were not run or diverged; empty when the effect is there."""

    @property
    def low(self) -> float | None:
        return None if self.effect is None else self.effect.value - self.z * self.effect.uncertainty

    @property
    def high(self) -> float | None:
        return None if self.effect is None else self.effect.value + self.z * self.effect.uncertainty


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
    if len(arrays) == len(terms) and len({array.shape for array in arrays}) == 1:
        image_se = standard_error(np.tensordot(weights, np.stack(arrays), axes=1))
    else:
        image_se = float(np.sqrt(sum((w * (one.se or 0.0)) ** 2 for w, one in zip(weights, known, strict=True))))
    assumed = ONE_SEED_UNITS if metric == "active_units" else ONE_SEED_NATS
    seed_errors = [assumed if one.seed_sd is None else one.seed_sd / np.sqrt(one.seeds) for one in known]
    return Effect(
        value=float(sum(w * one.value for w, one in zip(weights, known, strict=True))),
        image_se=image_se,
        seed_se=float(np.sqrt(sum((w * error) ** 2 for w, error in zip(weights, seed_errors, strict=True)))),
    )


def decide(effect: Effect | None, scale: str, z: float = Z) -> str:
    """Above zero by z uncertainties: holds; below by as much: does not hold. Only scale `paper` is decided."""
    if effect is None:
        return NOT_RUN
    if scale != PAPER_SCALE:
        return NOT_DECIDED
    if effect.value - z * effect.uncertainty > 0:
        return HOLDS
    return FAILS if effect.value + z * effect.uncertainty < 0 else UNDECIDED


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


def plain_claim(family: str, statement: str, metric: str, terms: tuple[Term, ...], z: float = Z) -> Claim:
    return Claim(family, statement, metric, terms, *published_contrast(terms, metric), z)


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
        claims.append(Claim(INTERIOR, statement, metric, chosen, *paper, Z_BEST_OF_5))
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


def decide_claims(cells: Cells, scale: str) -> list[ClaimResult]:
    """Every claim with its effect, the paper's effect, its rule and its decision, family by family."""
    results = []
    stated = [*burda_claims(cells), *drift_claims(cells), *rainforth_claims(cells)]
    order = list(FAMILIES)
    for claim in sorted(stated, key=lambda claim: order.index(claim.family)):
        effect = contrast(claim.terms, claim.metric)
        missing = [] if effect else [t for t in claim.terms if estimate(t.cell, claim.metric) is None]
        results.append(
            ClaimResult(
                family=claim.family,
                statement=claim.statement,
                unit="units" if claim.metric == "active_units" else "nats",
                effect=effect,
                z=claim.z,
                paper_effect=claim.paper_effect,
                paper_verified=claim.paper_verified,
                rule=FAMILIES[claim.family],
                decision=decide(effect, scale, claim.z),
                missing="; ".join(f"{place_name(t.place)} {'diverged' if t.cell else 'not run'}" for t in missing),
            )
        )
    return results
