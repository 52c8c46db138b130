"""What goes beyond the papers: effects against a reference, the protocol ablation, the (M, K) plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from pipeline.experiments.names import ProtocolName
from pipeline.experiments.protocol import PROTOCOLS, with_changes
from pipeline.published import Setting
from pipeline.records.results import RunResult, load_results, save_results
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.evidence.effects import Compared, difference, effects_data
from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.sections import ablation, later, plane

Make = Callable[..., RunResult]
LATER = {"experiment": "later-estimators"}


def compared(ours: list[RunResult], reference: list[RunResult]) -> Compared:
    (cell,), (base,) = (cells for runs in (ours, reference) for cells in gather(runs).values())
    return Compared("group", "label", cell, base)


def test_with_one_seed_the_images_are_paired_and_the_seeds_assumed(make: Make) -> None:
    stl, iwae = make("stl", 1, 5, nll=149.0, units=(14,), **LATER), make("iwae", 1, 5, nll=150.0, **LATER)
    one = compared([stl], [iwae])
    nll = difference(one, "nll")
    assert nll is not None
    per_image = stl.arrays["log_p_hat"] - iwae.arrays["log_p_hat"]
    assert nll.value == pytest.approx(-1.0)
    assert nll.images == pytest.approx(1.96 * per_image.std(ddof=1) / np.sqrt(len(per_image)))
    assert nll.images < 0.2 < 1.96 * stl.metrics["nll_se"]
    # Student's t with 18 degrees of freedom: the spread is assumed, not known.
    assert nll.whole == pytest.approx(np.hypot(nll.images, 2.100922 * np.sqrt(2) * 0.1))
    units = difference(one, "active_units")
    assert units is not None
    assert (units.value, units.images) == (2, 0)
    assert units.whole == pytest.approx(2.200985 * np.sqrt(2))


def test_with_several_seeds_runs_of_one_seed_are_paired(make: Make) -> None:
    """Seeds differ by nats, the difference hardly: the interval must be that of the difference."""
    levels, effects = (150.0, 155.0, 145.0), (-1.0, -1.2, -0.8)
    iwae = [make("iwae", 1, 5, seed=s, nll=level, noise=0.0, **LATER) for s, level in enumerate(levels)]
    pairs = enumerate(zip(levels, effects, strict=True))
    stl = [make("stl", 1, 5, seed=s, nll=level + effect, noise=0.0, **LATER) for s, (level, effect) in pairs]
    nll = difference(compared(stl, iwae), "nll")
    assert nll is not None
    assert nll.value == pytest.approx(-1.0)
    assert nll.whole == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.2 / np.sqrt(3), rel=1e-6)


def test_what_did_not_finish_has_no_difference(make: Make) -> None:
    diverged, iwae = make("stl", 1, 5, status="diverged at step 3", **LATER), make("iwae", 1, 5, **LATER)
    assert difference(compared([diverged], [iwae]), "nll") is None
    table = later.table(gather([diverged, iwae]))
    assert table is not None
    assert list(table.display["objective"]) == ["IWAE", "STL"]
    assert list(table.display["NLL"]) == [f"{iwae.metrics['nll']:.2f}", "diverged"]
    assert isinstance(later.forest(gather([diverged, iwae])), MissingFigure)


def test_each_estimator_is_compared_with_iwae_at_its_own_k(make: Make) -> None:
    runs = [make("iwae", 1, k, nll=150.0 - k / 10, **LATER) for k in (5, 50)]
    runs += [make("dreg", 1, k, parameter=0.5, nll=149.0 - k / 10, **LATER) for k in (5, 50)]
    runs += [make("vae-stl", 5, 1, nll=152.0, **LATER), make("vr", 1, 7, parameter=0.5, **LATER)]
    table = later.table(gather(runs))
    assert table is not None
    groups = [f"MNIST, 1 layer, k = {k}" for k in (5, 5, 5, 7, 50, 50)]
    assert list(table.groups) == groups
    assert list(table.display["objective"]) == ["IWAE", "DReG(α=0.5)", "VAE-STL", "VR(α=0.5)", "IWAE", "DReG(α=0.5)"]
    assert list(table.display["NLL − IWAE"]) == ["–", "−1.00", "+2.50", "–", "–", "−1.00"]
    figure = later.forest(gather(runs))
    assert isinstance(figure, Figure)
    assert "VAE-STL" in figure.svg
    assert "−1.00" in figure.svg


def test_vr_max_stands_beside_what_li_and_turner_print(make: Make) -> None:
    runs = [make("iwae", 1, 5, **LATER), make("vr-max", 1, 5, nll=85.5, **LATER), make("stl", 1, 5, **LATER)]
    table = later.table(gather(runs))
    assert table is not None
    assert dict(zip(table.display["objective"], table.display["paper's NLL"], strict=True)) == {
        "IWAE": "–",
        "STL": "–",
        "VR-max": "85.42",
    }
    assert table.data.set_index("objective").loc["vr-max", "nll_paper"] == 85.42
    assert "paper's NLL" not in later.table(gather([runs[0], runs[2]])).display  # type: ignore[union-attr]


def switched(run: RunResult, base: str = "published-code", **changes: bool | float | str) -> RunResult:
    """A run of the ablation under a protocol with these switches."""
    name = ProtocolName.switched(base, changes)
    protocol = with_changes(PROTOCOLS[base], changes)
    spec = replace(run.spec, name=f"{run.spec.name}{name.in_run_name}", protocol_name=str(name), protocol=protocol)
    return replace(run, spec=spec)


@pytest.fixture
def ablation_runs(make: Make) -> list[RunResult]:
    def one(nll: float, **where: int) -> RunResult:
        return make("iwae", 1, 5, experiment="protocol-ablation", nll=nll, **where)

    whole = one(148.0)
    named = {"name": "iwae-M1-K5-paper-text-s0", "protocol_name": "paper-text", "protocol": PROTOCOLS["paper-text"]}
    whole = replace(whole, spec=replace(whole.spec, **named))
    # In the order of their names, as results are read.
    return [
        switched(one(149.5), adam_beta1=0.9),
        switched(one(151.0), output_bias=False),
        whole,
        one(150.0),
        switched(one(150.25), shuffle=True),
        switched(one(149.0, layers=2), shuffle=True),
        one(148.5, layers=2),
    ]


def test_switches_stand_in_the_protocols_order_against_it_as_it_is(ablation_runs: list[RunResult]) -> None:
    table = ablation.table(gather(ablation_runs))
    assert table is not None
    one, two = "MNIST, 1 layer, IWAE(1, 5)", "MNIST, 2 layers, IWAE(1, 5)"
    assert list(zip(table.groups, table.display["protocol"], table.display["NLL − as it is"], strict=True)) == [
        (one, "published-code, as it is", "–"),
        (one, "adam beta1 = 0.9", "−0.50"),
        (one, "shuffle = true", "+0.25"),
        (one, "output bias = false", "+1.00"),
        (one, "all of protocol paper-text", "−2.00"),
        (two, "published-code, as it is", "–"),
        (two, "shuffle = true", "+0.50"),
    ]
    figure = ablation.forest(gather(ablation_runs))
    assert isinstance(figure, Figure)
    assert list(figure.data["nll_effect"].round(2)) == [-0.5, 0.25, 1.0, -2.0, 0.5]
    assert (figure.data["nll_half_width"] > figure.data["nll_half_width_images"]).all()


def test_before_the_reference_was_run_nothing_is_compared(ablation_runs: list[RunResult]) -> None:
    cells = gather(ablation_runs[:2])
    data = effects_data(ablation._compared(cells))
    assert data["nll_effect"].isna().all()
    assert isinstance(ablation.forest(cells), MissingFigure)
    assert ablation.table({}) is None


@pytest.mark.parametrize(
    ("objective", "M", "K", "setting"),
    [
        ("miwae", 1, 1, Setting("vae", 1, 1)),
        ("piwae", 1, 1, Setting("vae", 1, 1)),
        ("miwae", 1, 8, Setting("iwae", 1, 8)),
        ("piwae", 1, 8, Setting("iwae", 1, 8)),
        ("miwae", 8, 1, Setting("vae", 8, 1)),
        # The decoder of PIWAE(8, 1) climbs IWAE's bound: no VAE.
        ("piwae", 8, 1, Setting("piwae", 8, 1)),
        ("miwae", 8, 8, Setting("miwae", 8, 8)),
    ],
)
def test_where_estimators_coincide_one_run_serves(objective: str, M: int, K: int, setting: Setting) -> None:
    assert plane.setting_at(objective, M, K) == setting


@pytest.fixture
def plane_runs(make: Make) -> list[RunResult]:
    counts = (1, 2, 4, 8, 16, 32, 64)
    settings = {
        plane.setting_at(objective, M, K)
        for objective in ("miwae", "piwae")
        for M in counts
        for K in counts
        if M * K <= 64
    }
    runs = [make(s.objective, s.M, s.K, experiment="mk-plane", nll=100.0 + s.M - s.K / 100) for s in settings]
    return [run for run in runs if (run.spec.objective, run.spec.M, run.spec.K) != ("piwae", 8, 8)]


def test_the_plane_holds_ours_and_rainforths_values(plane_runs: list[RunResult]) -> None:
    data = plane.plane_data(gather(plane_runs)).set_index(["metric", "objective", "M", "K"])
    assert len(data.loc["nll"]) == 2 * 28
    shared = [data.loc[("nll", objective, 1, 32), "ours"] for objective in ("miwae", "piwae")]
    assert shared == [pytest.approx(100.68)] * 2
    assert data.loc[("nll", "miwae", 8, 8), "ours"] == pytest.approx(107.92)
    assert data.loc[("nll", "miwae", 8, 8), "paper"] == 84.97
    assert data.loc[("iwae_64", "miwae", 64, 1), "paper"] == -86.69
    assert data.loc[("kl_q_p", "piwae", 4, 16), "paper_tag"] == "unverified"
    assert data.loc[("nll", "piwae", 8, 8), "status"] == "not run"
    papers = data[data["paper"].notna()].index
    assert {M * K for _, _, M, K in papers} == {64}
    assert data.loc["snr_encoder", "ours"].isna().all()


def test_the_planes_picture(plane_runs: list[RunResult]) -> None:
    figure = plane.heatmaps(gather(plane_runs))
    assert isinstance(figure, Figure)
    assert "SNR of the" not in figure.svg
    for text in ("107.92", "paper (u)", "−86.69", "not run"):
        assert text in figure.svg
    with_snr = [replace(run, metrics={**run.metrics, "snr_encoder": 0.25}) for run in plane_runs]
    figure = plane.heatmaps(gather(with_snr))
    assert isinstance(figure, Figure)
    assert "SNR of the encoder" in figure.svg
    assert "SNR of the decoder" not in figure.svg
    assert isinstance(plane.heatmaps({}), MissingFigure)


def test_the_planes_table_has_a_row_a_run(plane_runs: list[RunResult]) -> None:
    table = plane.table(gather(plane_runs))
    assert table is not None
    assert len(table.data) == len(plane_runs) == 48
    assert list(dict.fromkeys(table.groups)) == [f"M × K = {2**i}" for i in range(7)]
    row = table.display.set_index("objective").loc["MIWAE(8, 8)"]
    assert (row["NLL"], row["paper's NLL"], row["paper's IWAE-64"]) == ("107.92", "84.97", "−85.69")


def test_results_of_switched_protocols_survive_the_disk(ablation_runs: list[RunResult], tmp_path: Path) -> None:
    save_results(tmp_path / "cohort", ablation_runs[:4])
    again = ablation.table(gather(load_results(tmp_path)))
    expected = ablation.table(gather(ablation_runs[:4]))
    assert again is not None
    assert expected is not None
    assert again.display.equals(expected.display)
