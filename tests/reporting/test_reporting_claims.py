"""The tests that decide claims, on results made so that the answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.published import Place
from pipeline.reporting.cells import ONE_SEED_NATS, gather
from pipeline.reporting.claims import (
    BEATS,
    BETWEEN,
    DEPTH,
    DRIFT,
    FAMILIES,
    INTERIOR,
    PIWAE,
    SAMPLES_HARDLY_HELP,
    UNITS,
    ClaimResult,
    Effect,
    Term,
    contrast,
    decide,
    decide_claims,
)
from pipeline.results import RunResult

Make = Callable[..., RunResult]


def term(weight: float, *runs: RunResult) -> Term:
    ((cell,),) = gather(list(runs)).values()
    return Term(weight, Place.of(runs[0]), cell)


def claim(results: list[RunResult], statement: str, scale: str = "paper") -> ClaimResult:
    (found,) = [r for r in decide_claims(gather(results), scale) if r.statement.startswith(statement)]
    return found


def test_errors_are_paired_over_images(make: Make) -> None:
    vae, iwae = make("vae", 50, 1, nll=86.4), make("iwae", 1, 50, nll=84.8)
    effect = contrast((term(1, iwae), term(-1, vae)), "log_p_hat")
    assert effect is not None
    difference = iwae.arrays["log_p_hat"] - vae.arrays["log_p_hat"]
    assert effect.value == pytest.approx(1.6)
    assert effect.image_se == pytest.approx(np.std(difference, ddof=1) / np.sqrt(len(difference)))
    assert effect.image_se < 0.1 < vae.metrics["nll_se"]
    assert effect.seed_se == pytest.approx(np.sqrt(2) * ONE_SEED_NATS)
    assert effect.uncertainty == pytest.approx(np.hypot(effect.image_se, effect.seed_se))


def test_errors_are_not_paired_over_other_images(make: Make) -> None:
    vae, iwae = make("vae", 50, 1, images=100), make("iwae", 1, 50, images=200)
    effect = contrast((term(1, iwae), term(-1, vae)), "log_p_hat")
    assert effect is not None
    assert effect.image_se == pytest.approx(np.hypot(vae.metrics["nll_se"], iwae.metrics["nll_se"]))


def test_several_seeds_give_their_own_error(make: Make) -> None:
    vae = [make("vae", 50, 1, seed=seed, nll=nll) for seed, nll in enumerate((86.0, 86.2, 86.4, 86.6))]
    effect = contrast((term(1, make("iwae", 1, 50, nll=85.0)), term(-1, *vae)), "log_p_hat")
    assert effect is not None
    sd = np.std([86.0, 86.2, 86.4, 86.6], ddof=1)
    assert effect.value == pytest.approx(1.3)
    assert effect.seed_se == pytest.approx(np.hypot(sd / 2, ONE_SEED_NATS))


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [
        (0.30, "paper", "holds"),
        (0.19, "paper", "undecided"),
        (-0.19, "paper", "undecided"),
        (-0.30, "paper", "does not hold"),
        (0.30, "quick", "not decided at this scale"),
    ],
)
def test_decision(value: float, scale: str, expected: str) -> None:
    assert decide(Effect(value, 0.06, 0.08), scale) == expected
    assert decide(None, scale) == "not run"


@pytest.mark.parametrize(("iwae", "expected"), [(84.8, "holds"), (86.35, "undecided"), (88.0, "does not hold")])
def test_iwae_beats_vae(make: Make, iwae: float, expected: str) -> None:
    runs = [make("vae", 50, 1, nll=86.4, scale="paper"), make("iwae", 1, 50, nll=iwae, scale="paper")]
    found = claim(runs, "MNIST, 1 layer: IWAE beats VAE at k = 50")
    assert found.decision == expected
    assert found.family == BEATS
    assert found.paper_effect == pytest.approx(86.35 - 84.78)
    assert claim(runs, "OMNIGLOT, 1 layer: IWAE beats VAE at k = 50").decision == "not run"


@pytest.mark.parametrize(("vae_50", "expected"), [(86.4, "holds"), (84.9, "does not hold")])
def test_more_samples_hardly_help_vae(make: Make, vae_50: float, expected: str) -> None:
    runs = [make(nll=86.8), make("vae", 50, 1, nll=vae_50), make("iwae", 1, 50, nll=84.8)]
    found = claim(runs, "MNIST, 1 layer: VAE gains less than half")
    assert (found.family, found.decision) == (SAMPLES_HARDLY_HELP, expected)


def test_depth_and_active_units(make: Make) -> None:
    runs = [
        make("iwae", 1, 50, nll=84.8, units=(25,)),
        make("vae", 50, 1, nll=86.4, units=(20,)),
        make("iwae", 1, 50, layers=2, nll=82.9, units=(26, 7)),
        make("vae", 50, 1, layers=2, nll=86.3, units=(27, 7)),
    ]
    deeper = claim(runs, "MNIST: 2 layers beat 1 for IWAE at k = 50")
    assert (deeper.family, deeper.decision) == (DEPTH, "holds")
    assert claim(runs, "MNIST: 2 layers beat 1 for VAE at k = 50").decision == "undecided"
    units = claim(runs, "MNIST, 1 layer: IWAE has more active units at k = 50")
    assert (units.family, units.decision, units.unit) == (UNITS, "holds", "units")
    assert units.paper_effect == 5
    both = claim(runs, "MNIST, 2 layers: IWAE has more active units at k = 50")
    assert (both.decision, both.effect and both.effect.value) == ("undecided", -1)


def test_drift_compares_with_the_first_stage_that_was_continued(make: Make) -> None:
    first = make(nll=86.8, units=(19,))
    other = make(seed=1, nll=70.0)
    second = make("iwae", 1, 50, experiment="burda-table2", continues=first.cell, nll=84.9, units=(22,))
    found = claim([first, other, second], "VAE k = 1 continued as IWAE k = 50 improves")
    assert (found.family, found.decision) == (DRIFT, "holds")
    assert found.effect is not None
    assert found.effect.value == pytest.approx(1.9)
    assert found.paper_effect == pytest.approx(86.76 - 84.88)


def sweep(make: Make, miwae: float, ciwae: float) -> list[RunResult]:
    """IWAE-64 of the ends -86.0 and -87.0, and of an interior MIWAE and CIWAE."""
    where = {"experiment": "rainforth-table1", "scale": "paper", "nll": 84.5}
    return [
        make("iwae", 1, 64, iwae_64=-86.0, **where),
        make("vae", 64, 1, iwae_64=-87.0, **where),
        make("miwae", 4, 16, iwae_64=miwae, **where),
        make("miwae", 8, 8, iwae_64=miwae - 0.1, **where),
        make("piwae", 8, 8, iwae_64=miwae, **where),
        make("ciwae", 1, 64, parameter=0.5, iwae_64=ciwae, **where),
    ]


@pytest.mark.parametrize(
    ("miwae", "expected"), [(-85.0, "holds"), (-85.7, "undecided"), (-86.2, "undecided"), (-86.9, "does not hold")]
)
def test_the_best_split_is_in_the_interior(make: Make, miwae: float, expected: str) -> None:
    found = claim(sweep(make, miwae, -86.5), "IWAE-64: the best MIWAE beats both ends")
    assert (found.family, found.decision) == (INTERIOR, expected)
    assert found.statement.endswith("ours is MIWAE(4, 16)")
    assert found.paper_effect == pytest.approx(86.11 - 85.60)
    assert found.effect is not None
    assert found.low == pytest.approx(found.effect.value - 2.58 * found.effect.uncertainty)


@pytest.mark.parametrize(
    ("ciwae", "expected"), [(-86.5, "holds"), (-86.1, "undecided"), (-85.0, "does not hold"), (-88.0, "does not hold")]
)
def test_ciwae_lies_between(make: Make, ciwae: float, expected: str) -> None:
    found = claim(sweep(make, -85.5, ciwae), "IWAE-64: CIWAE(β=0.5) lies between")
    assert (found.family, found.decision) == (BETWEEN, expected)
    assert found.paper_effect == pytest.approx(86.08 - 86.11)


def test_piwae_and_unverified_numbers(make: Make) -> None:
    results = sweep(make, -85.0, -86.5)
    found = claim(results, "IWAE-64: PIWAE(8, 8) beats IWAE")
    assert (found.family, found.decision, found.paper_verified) == (PIWAE, "holds", True)
    missing = claim(results, "IWAE-64: PIWAE(4, 16) beats IWAE")
    assert (missing.decision, missing.paper_verified) == ("not run", False)
    assert missing.missing == "rainforth-table1 MNIST 1 layer PIWAE(4, 16) not run"


def test_diverged_runs_are_named(make: Make) -> None:
    runs = [make("vae", 50, 1), make("iwae", 1, 50, status="diverged at step 9")]
    found = claim(runs, "MNIST, 1 layer: IWAE beats VAE at k = 50")
    assert found.decision == "not run"
    assert found.missing.endswith("IWAE(1, 50) diverged")


def test_at_other_scales_the_effect_is_shown_but_nothing_decided(quick: list[RunResult]) -> None:
    decided = decide_claims(gather(quick), "quick")
    assert {result.decision for result in decided} == {"not decided at this scale", "not run"}
    assert all((result.effect is None) == (result.decision == "not run") for result in decided)
    assert {result.family for result in decided} == set(FAMILIES)
    assert all(result.rule == FAMILIES[result.family] for result in decided)
