"""Estimates over seeds and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipeline.published import Place, Setting, published_value
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import estimate, find, first_stage, gather, images, setting_name

Make = Callable[..., RunResult]


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
    other = replace(run, spec=replace(run.spec, protocol_name="paper-text"))
    (cells,) = gather([run, other]).values()
    assert [cell.protocol for cell in cells] == ["published-code", "paper-text"]
    assert all(len(cell.runs) == 1 for cell in cells)


def test_a_second_stage_finds_the_runs_it_continues(make: Make) -> None:
    first = [make(seed=seed) for seed in (0, 1)]
    second = make("iwae", 1, 50, experiment="burda-table2", continues=first[1].cell)
    cells = gather([*first, second])
    place = Place.of(first[0])
    continued = first_stage(cells, find(cells, Place.of(second)), place)
    assert continued is not None
    assert continued.runs == (first[1],)
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
