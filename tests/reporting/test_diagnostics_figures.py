"""Bias, generalization and convergence figures on results whose answer is known."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.evidence.claims import decide_claims
from pipeline.reporting.forms.drawing import COLOURS, Figure, MissingFigure, whole_numbers
from pipeline.reporting.sections.bias import ess_violins, log_mean, log_mean_bias
from pipeline.reporting.sections.claims import claims_forest
from pipeline.reporting.sections.training import convergence_in_time, generalization_gap

Make = Callable[..., RunResult]


def drawn(figure: Figure | MissingFigure) -> Figure:
    assert isinstance(figure, Figure)
    assert figure.svg.count("<svg") == 1
    assert figure.png.startswith(b"\x89PNG")
    return figure


def test_bias_of_toy_and_trained_models(make: Make) -> None:
    runs = [make("iwae", 1, 5), make("iwae", 1, 50), make("iwae", 1, 5, experiment="two-dimensional")]
    data = drawn(log_mean_bias(runs)).data
    toy = data[data["panel"] == "toy"]
    assert sorted(toy["model"].unique()) == ["sigma 0.5", "sigma 1", "sigma 2"]
    last = toy[(toy["model"] == "sigma 1") & (toy["K"] == 64)].iloc[0]
    assert last["gap"] == pytest.approx(last["predicted"], rel=0.1)
    trained = data[(data["panel"] == "burda-table1") & (data["model"] == "IWAE k = 5")].set_index("K")
    np.testing.assert_allclose(trained["gap"], runs[0].arrays["bound_gaps"].astype(float).mean(0)[: len(trained)])
    variance = runs[0].arrays["relative_variance"].mean()
    assert trained.loc[8, "predicted"] == pytest.approx(variance / 2 * (1 / 8 - 1 / 5000), rel=1e-5)
    assert trained.index.max() == 512
    # The last panel takes the half with the steadiest weights.
    half = data[data["panel"] == "two-dimensional"]
    assert set(half["images"]) == {20}
    steady = np.argsort(runs[2].arrays["relative_variance"])[:20]
    expected = runs[2].arrays["bound_gaps"].astype(float)[steady].mean(0)
    np.testing.assert_allclose(half["gap"], expected[: len(half)])


def test_the_flat_lines_of_trained_models_are_named(make: Make) -> None:
    assert ">flat: mean of M logs<" in drawn(log_mean([make("iwae", 1, 5)])).svg


def test_a_violin_alone_is_no_wider_than_one_of_many(make: Make) -> None:
    def width(runs: list[RunResult]) -> float:
        return float(re.findall(r'width="([\d.]+)pt"', drawn(ess_violins(runs, "mnist")).svg)[0])

    one, *others = [make("vae"), *(make(name, 1, k) for name in ("vae", "iwae") for k in (5, 50))]
    assert width([one]) < 0.5 * width([one, *others])


def test_claims_at_a_glance_have_no_objectives_colour(make: Make) -> None:
    """Ours are solid and the paper's hollow, in the colour of letters: blue and orange are IWAE's and CIWAE's."""
    runs = [make("vae", 5, 1, nll=86.0), make("iwae", 1, 5, nll=85.0)]
    svg = drawn(claims_forest(decide_claims(gather(runs), True, ()))).svg
    assert not {colour for colour in COLOURS.values() if colour in svg}


def test_what_is_counted_has_no_halves() -> None:
    axes = Canvas().subplots()
    axes.set_ylim(25.5, 41)
    whole_numbers(axes.yaxis)
    assert all(float(tick).is_integer() for tick in axes.get_yticks())


def test_gap_between_test_and_training(make: Make) -> None:
    seeds = [make("vae", 5, 1, seed=seed, nll=86.0 + seed) for seed in (0, 1)]
    runs = [make(nll=87.0), *seeds, make(dataset="omniglot"), make(experiment="burda-table2", continues="x/y/z")]
    figure = drawn(generalization_gap(runs, gather(runs)))
    assert list(figure.data["dataset"]) == ["mnist", "mnist", "omniglot"]
    np.testing.assert_allclose(figure.data["gap"], 0.7)
    assert figure.data["standard_error"][0] == pytest.approx(np.hypot(runs[0].metrics["nll_se"], 0.3), rel=1e-6)
    assert "paper: 0.62 to 0.79" in figure.svg
    assert "paper: 2.39 to 2.65" in figure.svg


def test_convergence_against_wall_time(make: Make) -> None:
    runs = [make("vae"), make("iwae", 1, 50), make("iwae", 1, 50, layers=2)]
    figure = drawn(convergence_in_time(runs, "mnist"))
    curve = figure.data[figure.data["run"] == "vae-M1-K1-s0"]
    assert curve["seconds"].is_monotonic_increasing
    middle = len(curve) // 2
    kept = runs[0].arrays["history/iwae"][-len(curve) :]
    assert curve["iwae"].iloc[middle] == pytest.approx(kept[middle - 4 : middle + 5].mean())
    assert "seconds of training" in figure.svg
    # Twelve seconds become twelve hours, and less than one second.
    for factor, unit in ((3600.0, "hours"), (1e-6, "seconds")):
        for run in runs:
            run.arrays["history/seconds"] = factor * run.arrays["history/seconds"]
        assert f"{unit} of training" in drawn(convergence_in_time(runs, "mnist")).svg


def test_a_run_that_ended_before_its_clock_moved_has_no_curve(make: Make) -> None:
    """Its seconds are all written as 0.0; where no other run is there, the figure is missing."""
    quick, other = make("vae"), make("iwae", 1, 50)
    quick.arrays["history/seconds"] = 0 * quick.arrays["history/seconds"]
    assert set(drawn(convergence_in_time([quick, other], "mnist")).data["run"]) == {other.spec.name}
    assert isinstance(convergence_in_time([quick], "mnist"), MissingFigure)


def test_without_their_runs_figures_say_what_they_need(make: Make) -> None:
    bare = make()
    del bare.metrics["train_nll"]
    figures = log_mean_bias([]), generalization_gap([bare], gather([bare])), convergence_in_time([], "mnist", T=64)
    for figure in figures:
        assert isinstance(figure, MissingFigure)
        assert "finished runs" in figure.needs or "rainforth-table1" in figure.needs
