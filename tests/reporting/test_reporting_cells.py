"""Estimates over seeds and images, and the verdict's boundaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipeline.published import Place, Published, Setting, published_value
from pipeline.reporting.cells import estimate, find, first_stage, gather, images, setting_name, verdict
from pipeline.results import RunResult

Make = Callable[..., RunResult]


def published(value: float, tag: str = "read") -> Published:
    return Published(value, None, "a paper", tag)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (86.76, "reproduced"),
        (87.01, "reproduced"),
        (86.51, "reproduced"),
        (87.02, "worse"),
        (86.50, "better"),
        (87.0101, "worse"),
    ],
)
def test_verdict_on_nll_at_the_paper_scale(make: Make, ours: float, expected: str) -> None:
    (cell,) = gather([make(nll=ours, scale="paper")])[Place("burda-table1", "mnist", 1, Setting("vae", 1, 1))]
    assert verdict(cell, "nll", published(86.76), "paper") == expected


@pytest.mark.parametrize(("ours", "expected"), [(-84.0, "better"), (-84.77, "reproduced"), (-84.78, "worse")])
def test_verdict_on_metrics_of_which_more_is_better(make: Make, ours: float, expected: str) -> None:
    run = make("iwae", 1, 64, experiment="rainforth-table1", scale="paper", nll=-ours)
    ((cell,),) = gather([run]).values()
    assert verdict(cell, "log_p_hat", published(-84.52), "paper") == expected


@pytest.mark.parametrize(
    ("ours", "sd", "expected"),
    [
        # Theirs .10 / 2 with .10 assumed for one seed: 2 * hypot(.05, .10) = .2236.
        ([-84.75], 0.10, "worse"),
        ([-84.74], 0.10, "reproduced"),
        # Four seeds of sd .02: 2 * hypot(.05, .01) = .102.
        ([-84.65, -84.61, -84.61, -84.65], 0.10, "worse"),
        ([-84.63, -84.59, -84.59, -84.63], 0.10, "reproduced"),
        ([-84.30], 0.02, "better"),
        ([-84.75], None, "reproduced"),
    ],
)
def test_a_published_error_sets_the_tolerance(make: Make, ours: list[float], sd: float | None, expected: str) -> None:
    runs = [
        make("iwae", 1, 64, experiment="rainforth-table1", scale="paper", seed=seed, nll=-value)
        for seed, value in enumerate(ours)
    ]
    ((cell,),) = gather(runs).values()
    paper = Published(-84.52, sd, "a paper", "read")
    assert verdict(cell, "log_p_hat", paper, "paper") == expected


def test_burdas_tables_are_judged_under_their_codes_protocol_alone(make: Make) -> None:
    def under(protocol: str, run: RunResult) -> str:
        ((cell,),) = gather([replace(run, spec=replace(run.spec, protocol_name=protocol))]).values()
        return verdict(cell, "nll", published(86.76), "paper")

    burda = make(nll=86.76, scale="paper")
    assert under("published-code", burda) == "reproduced"
    assert under("paper", burda) == "other protocol"
    rainforth = make("vae", 64, 1, experiment="rainforth-table1", nll=86.76, scale="paper")
    assert under("paper", rainforth) == "reproduced"


def test_other_verdicts(make: Make) -> None:
    ((cell,),) = gather([make(nll=86.76)]).values()
    ((diverged,),) = gather([make(status="diverged at step 7")]).values()
    assert verdict(cell, "nll", published(86.76), "quick") == "not comparable"
    assert verdict(cell, "nll", published(86.76), "tiny") == "not comparable"
    assert verdict(cell, "nll", None, "paper") == "no published value"
    assert verdict(cell, "nll", published(86.76, "unverified"), "paper") == "not judged"
    assert verdict(None, "nll", published(86.76), "paper") == "not run"
    assert verdict(diverged, "nll", published(86.76), "paper") == "diverged"


def test_estimate_over_images_and_seeds(make: Make) -> None:
    runs = [make(seed=seed, nll=nll) for seed, nll in enumerate((86.0, 87.0, 88.0))]
    ((cell,),) = gather(runs).values()
    known = estimate(cell, "nll")
    assert known is not None
    assert known.value == pytest.approx(87.0)
    assert known.seed_sd == pytest.approx(1.0)
    assert known.seeds == 3
    mean = np.mean([run.arrays["log_p_hat"] for run in runs], axis=0)
    assert known.se == pytest.approx(np.std(mean, ddof=1) / np.sqrt(len(mean)))


def test_seeds_with_other_numbers_of_images_are_not_paired(make: Make) -> None:
    ((cell,),) = gather([make(seed=0, images=100), make(seed=1, images=200)]).values()
    known = estimate(cell, "nll")
    assert images(cell, "nll") is None
    assert known is not None
    assert known.se == pytest.approx(np.sqrt(np.mean([run.metrics["nll_se"] ** 2 for run in cell.runs])))


def test_a_diverged_seed_is_left_out_of_the_mean(make: Make) -> None:
    ((cell,),) = gather([make(seed=0, nll=90.0), make(seed=1, status="diverged at step 3")]).values()
    known = estimate(cell, "nll")
    assert known is not None
    assert (known.value, known.seeds, known.seed_sd) == (pytest.approx(90.0), 1, None)


def test_kl_is_the_bound_minus_the_likelihood_whatever_the_sign_stored(make: Make) -> None:
    run = make("iwae", 1, 64, experiment="rainforth-table1", nll=84.5, iwae_64=-86.0)
    run = replace(run, metrics={**run.metrics, "kl_q_p": 1.5})
    ((cell,),) = gather([run]).values()
    known = estimate(cell, "kl_q_p")
    assert known is not None
    assert known.value == pytest.approx(-1.5)


def test_protocols_are_never_averaged(make: Make) -> None:
    run = make()
    other = replace(run, spec=replace(run.spec, protocol_name="paper"))
    (cells,) = gather([run, other]).values()
    assert [cell.protocol for cell in cells] == ["published-code", "paper"]
    assert all(len(cell.runs) == 1 for cell in cells)


def test_a_second_stage_finds_the_runs_it_continues(make: Make) -> None:
    first = [make(seed=seed) for seed in (0, 1)]
    second = make("iwae", 1, 50, experiment="burda-table2", continues=first[1].cell)
    cells = gather([*first, second])
    place = Place.of(first[0])
    found = first_stage(cells, find(cells, Place.of(second)), place)
    assert found is not None
    assert found.runs == (first[1],)
    assert first_stage(cells, None, place) == find(cells, place)


def test_published_value_of_a_run(make: Make) -> None:
    nll = published_value(make("vae", 5, 1, seed=3, layers=2))
    assert nll is not None
    assert nll.value == 85.01
    assert published_value(make("stl", 1, 50)) is None
    assert published_value(make("iwae", 1, 50, experiment="every-objective")) is None


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (Setting("miwae", 8, 8), "MIWAE(8, 8)"),
        (Setting("ciwae", 1, 64, 0.05), "CIWAE(β=0.05)"),
        (Setting("rws-dreg", 1, 5), "RWS-DReG(1, 5)"),
        (Setting("novel", 1, 5, 2.0), "NOVEL(2)"),
    ],
)
def test_names(setting: Setting, name: str) -> None:
    assert setting_name(setting) == name
