"""Figures of single images: that they show the numbers of the results, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from pipeline.records.results import RunResult
from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.page import inline_svg
from pipeline.reporting.sections.density import unit_activity
from pipeline.reporting.sections.posterior import (
    digit_pictures,
    draw_samples_of_q,
    height,
    importance,
    latent_scatter,
    mass_levels,
    neighbours,
    posterior_contours,
    posterior_spread,
    reconstruction_pictures,
)
from pipeline.reporting.sections.posterior import sample_pictures as dreams

Make = Callable[..., RunResult]
MODELS = (("vae", 1), ("iwae", 5), ("iwae", 50))


def drawn(figure: Figure | MissingFigure) -> Figure:
    assert isinstance(figure, Figure)
    assert figure.svg.count("<svg") == 1
    assert figure.png.startswith(b"\x89PNG")
    assert len(figure.caption) > 100
    return figure


@pytest.fixture(scope="module")
def two_dimensional(make: Make) -> list[RunResult]:
    where = {"experiment": "two-dimensional"}
    # A second seed, and an objective that the figures do not compare, stay out.
    others = [make("vae", seed=1, **where), make("miwae", 5, 10, **where)]
    return [*(make(name, 1, k, q_sd=0.1 * k, **where) for name, k in MODELS), *others]


def test_mass_levels_of_a_gaussian() -> None:
    """The superlevel set of mass m of a 2-D Gaussian has density 1 - m relative to its peak."""
    side = np.linspace(-6, 6, 601)
    log_density = -0.5 * (side[:, None] ** 2 + side**2)
    np.testing.assert_allclose(mass_levels(log_density, [0.2, 0.5, 0.9]), [0.8, 0.5, 0.1], atol=2e-3)


def test_contours_give_both_posteriors(two_dimensional: list[RunResult]) -> None:
    figure = drawn(posterior_contours(two_dimensional))
    data = figure.data
    assert list(dict.fromkeys(data["model"])) == ["VAE k = 1", "IWAE k = 5", "IWAE k = 50"]
    assert list(data["digit"][:5]) == [0, 2, 4, 6, 8]
    # The fabricated posteriors are Gaussians with standard deviations 0.25 and 0.5 around the windows' centres.
    np.testing.assert_allclose(data["posterior_sd_1"], 0.25, atol=0.01)
    np.testing.assert_allclose(data["posterior_sd_2"], 0.5, atol=0.01)
    np.testing.assert_allclose(data["posterior_mean_1"], data["q_mean_1"], atol=0.01)
    assert "IWAE k = 50 1.5 nats" in figure.caption


def test_scatter_has_every_other_image_and_its_digit(two_dimensional: list[RunResult]) -> None:
    figure = drawn(latent_scatter(two_dimensional))
    assert len(figure.data) == 3 * 50
    # Image i shows digit i mod 10: every other image has the even ones.
    assert sorted(figure.data["digit"].unique()) == [0, 2, 4, 6, 8]
    assert "same digit: 100%" in figure.svg


def test_neighbours_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    points, labels = rng.normal(0, 1, (60, 2)), rng.integers(0, 3, 60)
    same = 0
    for i in range(60):
        distances = np.hypot(*(points - points[i]).T)
        distances[i] = np.inf
        same += labels[np.argmin(distances)] == labels[i]
    assert neighbours(points, labels) == same / 60


def test_reconstructions_of_every_model(make: Make, two_dimensional: list[RunResult]) -> None:
    runs = [*two_dimensional, *(make(name, 1, k, layers=layers) for layers in (1, 2) for name, k in MODELS)]
    figure = drawn(reconstruction_pictures(runs, "mnist"))
    assert figure.data.groupby("model", sort=False).size().to_dict().popitem()[1] == 10
    assert figure.data["model"].nunique() == 10
    assert (figure.data["pixels"].str.len() == 784).all()
    pixels = runs[0].arrays["pictures/reconstruction"][3]
    shown = figure.data[figure.data["model"].str.startswith("VAE k = 1, 2 latent units")]["pixels"].iloc[3]
    assert [int(digit, 16) * 17 for digit in shown] == pixels.tolist()
    omniglot = drawn(reconstruction_pictures([make(dataset="omniglot")], "omniglot"))
    assert omniglot.data["model"].nunique() == 2


def test_digits_are_framed_where_they_change(make: Make) -> None:
    runs = [make("vae", changes=0.0), make("iwae", 1, 5, changes=1.0)]
    figure = drawn(digit_pictures(runs))
    changed = figure.data["digit"] != figure.data["seen"]
    assert not changed[figure.data["model"].str.startswith("VAE")].any()
    assert changed[figure.data["model"].str.startswith("IWAE")].all()
    assert "100.0% change the digit" in figure.svg
    assert "97 test images" in figure.caption
    assert "97.0% right on the binarized test set" in figure.caption


def test_spread_with_its_intervals(make: Make) -> None:
    runs = [make("vae", q_sd=0.2), make("iwae", 1, 50, q_sd=0.6, changes=0.3), make(dataset="omniglot")]
    data = drawn(posterior_spread(runs)).data.set_index(["group", "model", "metric"])
    wide, narrow = (data.loc[("MNIST, 1 layer", model, "log_q_sd")] for model in ("IWAE k = 50", "VAE k = 1"))
    assert np.exp(wide["mean"]) == pytest.approx(0.6, rel=0.03)
    assert narrow["low"] < narrow["mean"] < narrow["high"] < wide["low"]
    error = runs[0].arrays["spread/log_q_sd"].std() / 10
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert ("OMNIGLOT, 1 layer", "VAE k = 1", "digit_changes") not in data.index


def test_marks_lie_around_their_label_and_one_alone_at_it() -> None:
    present = {"one": ["VAE k = 1"], "two": ["VAE k = 1", "IWAE k = 50"]}
    groups = list(present)
    assert height(groups, present, "one", "VAE k = 1") == 0
    assert [height(groups, present, "two", model) for model in present["two"]] == pytest.approx([0.89, 1.11])


def test_samples_are_told_apart_however_narrow_q_is(two_dimensional: list[RunResult]) -> None:
    """A q that is a speck among the means of all images fills a panel of its own, where its samples are numbered."""
    runs = [replace(run, arrays={**run.arrays, **samples_of(run)}) for run in two_dimensional]
    figure = drawn(importance(runs))
    assert figure.svg.count(">its q, enlarged<") == 2
    assert "Framed: a sample that shows another digit" in figure.see
    axes = Canvas().subplots()
    draw_samples_of_q(axes, runs[0], 0)
    for low, high, of_q in zip(*zip(axes.get_xlim(), axes.get_ylim(), strict=True), np.full(2, 0.1), strict=True):
        # Both standard deviations, and not much more.
        assert 4 * of_q <= high - low <= 12 * of_q


def samples_of(run: RunResult) -> dict[str, np.ndarray]:
    """Six samples of each pictured image's q, and weights that one of them has almost alone."""
    q_mean, q_sd = (np.repeat(run.arrays[f"posterior/{key}"], 2, axis=0)[:, None] for key in ("q_mean", "q_sd"))
    images, samples = run.arrays["pictures/decoded"].shape[:2]
    noise = np.random.default_rng(0).uniform(-2, 2, (images, samples, 2))
    return {
        "pictures/h": (q_mean + q_sd * noise).astype(np.float32),
        "pictures/log_w": np.tile(np.arange(samples, dtype=np.float32) * 3, (images, 1)),
    }


def test_no_empty_panel_is_drawn_for_models_that_are_not_run_yet(make: Make) -> None:
    runs = [make("vae"), make("iwae", 1, 5)]
    assert ">1 layer, k = 50<" not in drawn(unit_activity(runs, "mnist")).svg
    assert ">1 layer, k = 5<" in drawn(unit_activity(runs, "mnist")).svg
    assert ">1 layer, k = 4<" in drawn(unit_activity([make("iwae", 1, 4)], "mnist")).svg
    deep = [*runs, make("vae", layers=2)]
    frames = drawn(dreams(deep, "mnist")).svg.count("stroke: #cccccc")
    assert frames == 4 * len(deep)


def test_in_the_dark_filled_densities_take_the_pages_shades(two_dimensional: list[RunResult]) -> None:
    page = inline_svg(drawn(posterior_contours(two_dimensional)))
    assert "fill: var(--inner)" in page
    assert "fill: var(--outer)" in page
    assert "black" not in drawn(posterior_contours(two_dimensional)).caption


@pytest.mark.parametrize(
    "figure",
    [
        posterior_contours,
        latent_scatter,
        digit_pictures,
        posterior_spread,
        lambda r: reconstruction_pictures(r, "mnist"),
    ],
)
@pytest.mark.parametrize("runs", [0, 1])
def test_without_their_runs_figures_say_what_they_need(
    figure: Callable[[list[RunResult]], Figure | MissingFigure], runs: int, make: Make
) -> None:
    missing = figure([make("miwae", 5, 10, experiment="every-objective")][:runs])
    assert isinstance(missing, MissingFigure)
    assert "finished runs of" in missing.needs
