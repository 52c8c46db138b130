from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.gaussian_toy import GROUPS
from pipeline.evaluation.gaussian_toy import SWEEPS as MEASURED_SWEEPS
from pipeline.evaluation.snr import BLOCKS
from pipeline.files import write_json
from pipeline.published import Setting
from pipeline.records.results import ARRAYS, METRICS, TOY, RunResult
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.evidence.claims import HOLDS, NOT_DECIDED, NOT_RUN, UNDECIDED, Effect
from pipeline.reporting.evidence.toy import ToyResult, load_toy
from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.forms.section import Section
from pipeline.reporting.page import build_report
from pipeline.reporting.report import Report
from pipeline.reporting.sections import gradients
from pipeline.reporting.sections.ais import ais_tables
from pipeline.reporting.sections.gradients import (
    DECODER_RATIO,
    JACKKNIFE_DF,
    RATIOS,
    SLOPES,
    SWEEP_TITLES,
    gradient_claims,
    log_snr,
    minibatch_table,
    noise_floor,
    random_dsnr,
    section,
    slopes_table,
)

SAMPLES = np.array([1, 4, 16, 64])
EXPONENT = {"iwae": -0.5, "vae": 0.5, "iwae-dreg": 0.5}


def fabricated_toy() -> ToyResult:
    """Power laws with the slopes of the theory."""
    rng = np.random.default_rng(0)
    metrics, arrays = {"gradients": 100.0}, {"samples": SAMPLES}
    for sweep, exponent in EXPONENT.items():
        for group in GROUPS:
            key, slope = f"{sweep}/{group}", 0.5 if group == "mu" else exponent
            snr = SAMPLES[:, None] ** slope * rng.uniform(0.5, 2, (1, 30))
            arrays |= {f"{key}/snr": snr, f"{key}/snr_closed_form": snr, f"{key}/draws": rng.normal(0, 1, (4, 50))}
            arrays |= {f"{key}/square": np.square(snr).mean(1), f"{key}/square_se": 0.01 * np.square(snr).mean(1)}
            arrays[f"{key}/dsnr"] = np.stack([snr.mean(1), 0.8 * snr.mean(1), 1.2 * snr.mean(1)], axis=1)
            metrics |= {f"slope/{key}": slope, f"slope_se/{key}": 0.02}
            metrics |= {f"slope_closed_form/{key}": slope, f"slope_limit/{key}": slope}
    return ToyResult(metrics, arrays)


def with_snr(run: RunResult, encoder: float, decoder: float) -> RunResult:
    values = {"snr_encoder": encoder, "dsnr_encoder": encoder, "snr_decoder": decoder, "dsnr_decoder": decoder}
    metrics = values | {f"{name}_se": 0.05 * value for name, value in values.items()}
    arrays = {f"snr/{name}": np.array([value, value]) for name, value in metrics.items()}
    return replace(run, metrics=run.metrics | metrics, arrays=run.arrays | arrays | {"snr/step": np.array([0, 300])})


def with_gradients(results: list[RunResult]) -> list[RunResult]:
    """SNR that falls with K at T = 64, as sqrt(M / K) for the encoder."""
    return [
        with_snr(run, np.sqrt(run.spec.M / run.spec.K) + (run.spec.parameter or 0), 2.0 + run.spec.K)
        if run.experiment == "rainforth-table1"
        else run
        for run in results
    ]


def save_toy(toy: ToyResult, results: Path) -> None:
    (results / TOY).mkdir(parents=True)
    write_json(results / TOY / METRICS, toy.metrics)
    np.savez(results / TOY / ARRAYS, **toy.arrays)  # type: ignore[arg-type]


def test_the_report_knows_every_sweep_that_is_measured() -> None:
    assert set(SWEEP_TITLES) == set(MEASURED_SWEEPS)


def test_claims_from_made_up_slopes_and_ratios(make_quick: Callable[..., list[RunResult]]) -> None:
    one_seed = with_gradients(make_quick("paper"))
    decided = gradient_claims(gather(one_seed), fabricated_toy(), judged=True)
    assert [result.family for result in decided] == [SLOPES] * 3 + [RATIOS] * 4 + [DECODER_RATIO]
    # How far runs differ by their seeds is not known of one.
    assert [result.decision for result in decided] == [HOLDS] * 3 + [UNDECIDED] * 5
    second = [replace(run, spec=replace(run.spec, seed=1)) for run in one_seed]
    cells = gather(one_seed + second)
    decided = gradient_claims(cells, fabricated_toy(), judged=True)
    assert [result.decision for result in decided] == [HOLDS] * 8
    slopes = [result.effect.value for result in decided[:3] if result.effect]
    assert slopes == [0.5, 0.5, 0.5]
    vae = decided[3]
    assert vae.effect is not None
    assert vae.effect.value == pytest.approx(np.log(8 / (1 / 8)))
    # Two cells of two runs each.
    assert vae.effect.uncertainty == pytest.approx(0.05)
    assert vae.paper_effect == pytest.approx(np.log(0.825 / 0.18))
    assert not vae.paper_verified
    assert {result.decision for result in gradient_claims(cells, fabricated_toy(), judged=False)} == {NOT_DECIDED}


def test_the_error_of_draws_has_the_degrees_of_freedom_of_its_blocks(
    make_quick: Callable[..., list[RunResult]],
) -> None:
    """A slope 2.2 standard errors from zero: p = .028 by a normal, .064 by t with 7 degrees of freedom."""
    assert JACKKNIFE_DF == BLOCKS - 1
    toy = fabricated_toy()
    toy.metrics["slope_se/iwae/mu"] = 0.5 / 2.2
    rises = gradient_claims({}, toy, judged=True)[1]
    assert rises.p_value == pytest.approx(2 * stats.t.sf(2.2, 7))
    runs = with_gradients(make_quick("paper"))
    ratio = gradient_claims(gather(runs), toy, judged=True)[3]
    assert ratio.effect is not None
    assert ratio.effect.image_df == pytest.approx(14)


def test_few_seeds_have_students_intervals(make_quick: Callable[..., list[RunResult]]) -> None:
    """Two seeds whose SNR differ by a tenth: one degree of freedom, not infinitely many."""
    runs = [run for run in make_quick("paper") if (run.experiment, run.spec.objective) == ("rainforth-table1", "vae")]
    seeds = [with_snr(replace(run, spec=replace(run.spec, seed=s)), 2 * 1.1**s, 3.0) for run in runs for s in (0, 1)]
    ((cell,),) = gather(seeds).values()
    logs = log_snr(cell, "encoder")
    assert logs is not None
    assert (logs.seed_se, logs.seed_df) == (pytest.approx(np.log(1.1) / 2), 1)
    half = gradients._over_seeds(cell, "snr_encoder")["half_width"].iloc[-1]
    draws, between = 0.05 * np.hypot(2, 2.2) / 2, 0.2 / 2
    assert half == pytest.approx(Effect(0.0, draws, between, 1).half_width)
    assert half > 1.8 * 1.96 * np.hypot(draws, between)


def test_fresh_minibatches_stand_beside_the_batch_that_stays(make_quick: Callable[..., list[RunResult]]) -> None:
    runs = with_gradients(make_quick("paper"))
    assert minibatch_table(gather(runs)) is None
    both = [
        replace(run, metrics=run.metrics | {"snr_encoder_fresh": 0.3, "snr_encoder_fresh_se": 0.003})
        for run in runs
        if "snr_encoder" in run.metrics
    ]
    table = minibatch_table(gather(both))
    assert table is not None
    assert list(table.display["objective"]) == [
        "VAE(64, 1)",
        "CIWAE(β=0.5)",
        "MIWAE(8, 8)",
        "PIWAE(8, 8)",
        "IWAE(1, 64)",
    ]
    assert table.display.iloc[0].tolist() == ["VAE(64, 1)", "8.00 ± 0.40", "0.30 ± 0.00", "0.82"]


def test_claims_without_gradients_say_what_is_missing(quick: list[RunResult]) -> None:
    decided = gradient_claims(gather(quick), None, judged=False)
    assert {result.decision for result in decided} == {NOT_RUN}
    assert "toy" in decided[0].missing
    assert "VAE(64, 1)" in decided[3].missing
    assert "IWAE(1, 64)" in decided[3].missing


def test_seeds_add_their_spread(make: Callable[..., RunResult]) -> None:
    runs = [
        with_snr(make("iwae", 1, 64, experiment="rainforth-table1", seed=seed), value, 1.0)
        for seed, value in enumerate((1.0, np.e, np.e**2))
    ]
    (cell,) = next(iter(gather(runs).values()))
    effect = log_snr(cell, "encoder")
    assert effect is not None
    assert effect.value == pytest.approx(1.0)
    assert effect.seed_se == pytest.approx(1 / np.sqrt(3))
    assert effect.image_se == pytest.approx(0.05 / np.sqrt(3))


def test_figures_are_drawn_or_say_what_they_need(make_quick: Callable[..., list[RunResult]]) -> None:
    results = make_quick()

    def made(runs: list[RunResult], toy: ToyResult | None) -> Section:
        return section(Report("quick", False, runs, [], gather(runs), [], toy, (), Path("none")))

    drawn = made(with_gradients(results), fabricated_toy())
    by_name = {figure.name: figure for figure in drawn.figures}
    assert list(by_name) == ["toy_snr", "snr_training", "snr_sweep", "toy_dsnr", "toy_histograms"]
    for figure in drawn.figures:
        assert isinstance(figure, Figure)
        assert len(figure.data) > 0
    toy = by_name["toy_snr"].data
    curve = toy[(toy["sweep"] == "iwae") & (toy["group"] == "b")]
    np.testing.assert_allclose(curve["rms_snr"], curve["closed_form"])
    training = by_name["snr_training"].data
    assert set(training["setting"]) == {"VAE(64, 1)", "CIWAE(β=0.5)", "MIWAE(8, 8)", "PIWAE(8, 8)", "IWAE(1, 64)"}
    empty = made(results, None)
    assert empty.figures == ()
    assert all(isinstance(missing, MissingFigure) for missing in empty.missing)
    assert len(empty.missing) == 5


def test_slopes_and_second_opinions_as_tables(tmp_path: Path) -> None:
    assert slopes_table(None) == []
    (table,) = slopes_table(fabricated_toy())
    assert len(table.data) == 12
    assert table.display["limit"].str.replace("−", "-").astype(float).abs().unique().tolist() == [0.5]
    assert ais_tables(tmp_path) == []
    summary = {
        "test/estimate": -100.0,
        "test/lower": -98.5,
        "test/lower_minus_estimate": 1.5,
        "test/lower_minus_estimate_se": 0.2,
        "simulated/estimate": -90.0,
        "simulated/lower": -89.0,
        "simulated/upper": -88.9,
    }
    how = {"num_samples": 5000, "images": 20, "transitions": 1000, "chains": 16}
    opinion = {"cohort": "quick/c", "run": "iwae-M1-K50-s0", "summary": summary, "how": how}
    write_json(tmp_path / "c" / "ais-iwae-M1-K50-s0.json", opinion)
    (second,) = ais_tables(tmp_path)
    assert second.display.iloc[0].tolist() == [
        "iwae-M1-K50-s0",
        "100.00",
        "98.50",
        "1.50",
        "0.20",
        "90.00",
        "89.00",
        "88.90",
    ]
    assert second.groups == ("quick/c",)


def test_page_shows_gradients(tmp_path: Path, make_quick: Callable[..., list[RunResult]]) -> None:
    save_toy(fabricated_toy(), tmp_path / "results")
    loaded = load_toy(tmp_path / "results")
    assert loaded is not None
    assert loaded.metrics == fabricated_toy().metrics
    runs = [run for run in make_quick() if run.experiment == "rainforth-table1"][:2]
    page = build_report(with_gradients(runs), "quick", tmp_path).read_text()
    for text in (
        'id="figure-toy_snr"',
        'id="figure-snr_training"',
        'id="table-toy_slopes"',
        'href="#gradients"',
        SLOPES,
    ):
        assert text in page
    assert (tmp_path / "figures" / "toy_snr.png").stat().st_size > 10_000


def test_reference_values() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200_000, 5))
    ratios = np.abs(vectors[:, 0]) / np.linalg.norm(vectors[:, 1:], axis=1)
    assert random_dsnr(5) == pytest.approx(ratios.mean(), rel=0.01)
    noise = rng.normal(size=(16, 20_000))
    assert noise_floor(16) == pytest.approx(np.abs(noise.mean(0) / noise.std(0, ddof=1)).mean(), rel=0.08)


def test_settings_of_the_training_figure_are_in_the_grid() -> None:
    from pipeline.reporting.sections.gradients import PAPER_ENCODER_SNR

    assert Setting("ciwae", 1, 64, 0.5) in PAPER_ENCODER_SNR
    assert list(PAPER_ENCODER_SNR.values()) == sorted(PAPER_ENCODER_SNR.values(), reverse=True)
