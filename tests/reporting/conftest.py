"""Fabricated results: plausible shapes and numbers, drawn from a seeded generator; nothing is trained."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import RunSpec, Stage
from pipeline.records.results import RunResult, Waypoint, save_results
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.evidence.claims import decide_claims
from pipeline.reporting.forms import tables
from pipeline.reporting.forms.tables import Table
from pipeline.reporting.page import build_report
from pipeline.reporting.sections import beyond, density, later, plane, sweep, training

Make = Callable[..., RunResult]
SCALES = ("quick", "paper")


def fabricate(
    objective: str = "vae",
    M: int = 1,
    K: int = 1,
    *,
    parameter: float | None = None,
    seed: int = 0,
    dataset: str = "mnist",
    layers: int = 1,
    experiment: str = "burda-table1",
    scale: str = "quick",
    nll: float | None = None,
    images: int = 200,
    noise: float = 0.5,
    units: tuple[int, ...] | None = None,
    iwae_64: float | None = None,
    continues: str | None = None,
    status: str = "finished",
    q_sd: float = 0.5,
    changes: float = 0.1,
) -> RunResult:
    """A run whose per-image values share the images' difficulty, so that pairing matters (its sd is 15 nats)."""
    latent = (2,) if experiment == "two-dimensional" else (50,) if layers == 1 else (100, 50)
    suffix = "" if parameter is None else f"-p{parameter:g}"
    name = f"{objective}-M{M}-K{K}{suffix}-s{seed}"
    cohort = f"{scale}/{experiment}-{dataset}-{layers}L-T{M * K}" + ("-from-" + objective if continues else "")
    rng = np.random.default_rng(zlib.crc32(f"{cohort}/{name}".encode()))
    spec = RunSpec(
        name=name,
        objective=objective,
        M=M,
        K=K,
        parameter=parameter,
        seed=seed,
        dataset=dataset,
        latent=latent,
        train_images=59600,
        protocol_name="published-code",
        protocol=PROTOCOLS["published-code"],
        schedule=(Stage(1, 1e-3), Stage(3, 7.2e-4)),
        max_steps=300,
        precision="float32",
        continues=continues,
        algorithm_version=1,
    )
    training = {
        "steps": 300,
        "epochs": 0.1,
        "wall_s": 12.5,
        "started": "2024-01-01T00:00:00+00:00",
        "finished": "2024-01-01T00:00:13+00:00",
        "device": "cpu",
        "threads": 1,
        "torch": "2.9.0",
        "python": "3.11.9",
        "git_revision": "0" * 40,
        "data": {"digest": "abc", "sources": {"train-images": "sha256:0123"}},
    }
    evaluation = {"wall_s": 3.0, "device": "cpu", "torch": "2.9.0", "seed": 123, "digest": "def"}
    base = cohort, experiment, spec, f"{zlib.crc32(name.encode()):016x}"
    if status != "finished":
        return RunResult(*base, status, training, evaluation, {}, {})
    target = 150.0 - np.log(K) if nll is None else nll
    difficulty = np.random.default_rng(1).normal(0, 15, images)
    deviation = rng.normal(0, noise, images)
    log_p_hat = difficulty - difficulty.mean() + deviation - deviation.mean() - target
    bound = log_p_hat - 1.0 - rng.gamma(2, 0.1, images) if iwae_64 is None else log_p_hat + (iwae_64 + target)
    ess = rng.beta(2, 5, images)
    points = np.unique(np.geomspace(1, 300, 60).astype(int))
    curve = -target - 300 / np.sqrt(points) + rng.normal(0, 1, len(points))
    samples = np.zeros((100, 28, 28))
    samples[:, 8:20, 12:16] = rng.uniform(0.5, 1, (100, 12, 4))
    arrays = {
        "log_p_hat": log_p_hat,
        "iwae_64": bound,
        "ess_64": ess,
        "samples": samples.reshape(100, 784),
        "history/step": points,
        "history/epoch": points / 2980,
        "history/learning_rate": np.full(len(points), 1e-3),
        "history/seconds": points * 0.04,
        "history/bound": curve,
        "history/elbo": curve - 5,
        "history/iwae": curve + 1,
        "history/reconstruction": curve + 20,
    }
    arrays |= fabricate_diagnostics(rng, latent, labelled=dataset == "mnist", q_sd=q_sd, changes=changes)
    counts = units or ((2,) if latent == (2,) else (12,) if layers == 1 else (9, 3))
    for layer, (size, active) in enumerate(zip(latent, counts, strict=True), 1):
        variance = 10 ** rng.normal(-4, 0.6, size)
        variance[:active] = 10 ** rng.normal(-0.5, 0.3, active)
        arrays[f"unit_variance_{layer}"] = variance
    metrics = {
        "nll": target,
        "nll_se": float(np.std(log_p_hat, ddof=1) / np.sqrt(images)),
        "nll_pruned": target + 0.01,
        "iwae_64": float(bound.mean()),
        "elbo": float(bound.mean()) - 3,
        "log_p_hat": -target,
        "kl_q_p": float(bound.mean()) + target,
        "ess_64": float(ess.mean()),
        "train_nll": target - 0.7,
        "train_nll_se": 0.3,
        "log_q_sd": float(arrays["spread/log_q_sd"].mean()),
        "decoded_sd": float(arrays["spread/decoded_sd"].mean()),
        "num_samples": 5000,
        "test_images": images,
        **{f"active_units_{layer}": active for layer, active in enumerate(counts, 1)},
        **{f"active_units_test_{layer}": active for layer, active in enumerate(counts, 1)},
    }
    if dataset == "mnist":
        metrics |= {"digit_changes": changes, "digit_reader_accuracy": 0.97}
    return RunResult(*base, status, training, evaluation, metrics, arrays)


def fabricate_diagnostics(
    rng: np.random.Generator, latent: tuple[int, ...], labelled: bool, q_sd: float, changes: float
) -> dict[str, NDArray[Any]]:
    """What the evaluation keeps of spread, pictures and digits; with two units also Gaussian posteriors."""
    levels = np.zeros((10, 7, 28, 28), np.uint8)
    levels[:, :, 8:20, 12:16] = 17 * rng.integers(8, 16, (10, 7, 12, 4))
    levels = levels.reshape(10, 7, 784)
    labels = np.arange(100, dtype=np.uint8) % 10
    decoded = np.where(rng.random((100, 20)) < changes, (labels[:, None] + 1) % 10, labels[:, None]).astype(np.uint8)
    arrays: dict[str, NDArray[Any]] = {
        "bound_gaps": (1.5 / 2.0 ** np.arange(13) * rng.uniform(0.5, 1.5, (40, 1))).astype(np.float16),
        "relative_variance": rng.gamma(2, 2, 40).astype(np.float32),
        "spread/log_q_sd": (np.log(q_sd) + rng.normal(0, 0.05, 100)).astype(np.float32),
        "spread/decoded_sd": (0.1 * q_sd + rng.normal(0, 0.003, 100)).astype(np.float32),
        "pictures/x": np.where(levels[:, 0] > 120, 255, 0).astype(np.uint8),
        "pictures/reconstruction": levels[:, 0],
        "pictures/decoded": levels[:, 1:],
    }
    if labelled:
        image = labels.copy()
        image[:3] = 9 - image[:3]
        arrays |= {"digits/label": labels, "digits/image": image, "digits/decoded": decoded}
        arrays |= {"pictures/label": labels[:10], "pictures/digits": decoded[:10, :6]}
    if latent == (2,):
        centers = 4 * np.stack([np.cos(0.63 * np.arange(10)), np.sin(0.63 * np.arange(10))], 1)
        side = np.linspace(-2, 2, 21)
        density = -0.5 * ((side[:, None] / 0.5) ** 2 + (side / 0.25) ** 2)
        arrays |= {
            "pictures/h": (centers[:, None] + rng.normal(0, q_sd, (10, 6, 2))).astype(np.float32),
            "pictures/log_w": rng.normal(-150, 2, (10, 6)).astype(np.float32),
            "latent/mean": (centers[labels] + rng.normal(0, 0.3, (100, 2))).astype(np.float16),
            "posterior/center": centers[::2].astype(np.float32),
            "posterior/radius": np.full(5, 2, np.float32),
            "posterior/log_density": np.maximum(density, -30)[None].repeat(5, 0).astype(np.float16),
            "posterior/q_mean": centers[::2].astype(np.float32),
            "posterior/q_sd": np.full((5, 2), q_sd, np.float32),
            "posterior/log_p": np.full(5, -150, np.float32),
            "posterior/kl_q_p": np.full(5, 1.5, np.float32),
        }
        if labelled:
            arrays["latent/label"] = labels
    return arrays


def fabricate_quick(scale: str = "quick", datasets: tuple[str, ...] = ("mnist",)) -> list[RunResult]:
    """The runs of the quick experiments: Burda's tables, every objective and T = 64."""
    results = []
    for dataset in datasets:
        table = "burda-table3" if dataset == "fixed-mnist" else "burda-table1"
        for layers in (1, 2):
            where = {"dataset": dataset, "layers": layers, "scale": scale}
            results.append(fabricate("vae", experiment=table, **where))
            for k in (5, 50):
                results.append(fabricate("vae", k, 1, experiment=table, **where))
                results.append(fabricate("iwae", 1, k, experiment=table, **where))
            if dataset != "fixed-mnist":
                for k in (5, 50):
                    results.append(fabricate("ciwae", 1, k, parameter=0.5, experiment="every-objective", **where))
                for objective in ("miwae", "piwae"):
                    results.append(fabricate(objective, 5, 10, experiment="every-objective", **where))
    first = f"{scale}/burda-table1-mnist-1L"
    second = {"experiment": "burda-table2", "scale": scale}
    results.append(fabricate("iwae", 1, 50, continues=f"{first}-T1/vae-M1-K1-s0", **second))
    results.append(fabricate("vae", 1, 1, continues=f"{first}-T50/iwae-M1-K50-s0", **second))
    for objective, k in (("vae", 1), ("iwae", 5), ("iwae", 50)):
        results.append(fabricate(objective, 1, k, experiment="two-dimensional", scale=scale, q_sd=0.2 + 0.01 * k))
    sweep = [("iwae", 1, 64, None), ("vae", 64, 1, None), *(("ciwae", 1, 64, b) for b in (0.05, 0.25, 0.5, 0.75))]
    sweep += [(name, M, 64 // M, None) for name in ("miwae", "piwae") for M in (2, 4, 8, 16, 32)]
    for objective, M, K, beta in sweep:
        results.append(fabricate(objective, M, K, parameter=beta, experiment="rainforth-table1", scale=scale))
    return results


def deepened(run: RunResult, epochs: int, planned: int = 0) -> RunResult:
    """A run as it is after so many epochs of the papers' schedule, of `planned` ones, with its earlier waypoints."""
    whole = tuple(burda_schedule(True))
    steps = run.spec.train_images // 20
    ends = [end for end in (1, 4, 13, 40, 121, 364, 1093, 3280) if end <= epochs]

    def lift(at: int) -> float:
        return 60 / np.sqrt(at) - 60 / np.sqrt(epochs)

    waypoints = tuple(
        Waypoint(
            steps=at * steps,
            epochs=float(at),
            status="finished",
            evaluation={"seed": 123},
            metrics={
                **{key: run.metrics[key] for key in ("num_samples", "test_images", "nll_se")},
                **{key: value for key, value in run.metrics.items() if key.startswith("active_units_")},
                "nll": run.metrics["nll"] + lift(at),
                "log_p_hat": run.metrics["log_p_hat"] - lift(at),
            },
            arrays={"log_p_hat": run.arrays["log_p_hat"] - lift(at)},
        )
        for at in ends
        if at < epochs
    )
    spec = replace(run.spec, schedule=whole, max_steps=epochs * steps)
    training = {**run.training, "steps": epochs * steps, "epochs": float(epochs)}
    return replace(run, spec=spec, training=training, waypoints=waypoints, planned_steps=(planned or epochs) * steps)


def fabricate_overnight() -> list[RunResult]:
    """Every cell of the papers after 40 epochs, with the waypoints before."""
    runs = fabricate_quick("overnight", ("mnist", "omniglot", "fixed-mnist"))
    return [deepened(run, 40) for run in runs]


def fabricate_paper() -> tuple[list[RunResult], list[RunResult]]:
    """Part of Burda's Table 1: some cells at the full schedule, others after 364 epochs."""
    done = [make_burda(*setting) for setting in (("vae", 1, 1, 86.7), ("iwae", 1, 50, 84.9), ("vae", 50, 1, 86.4))]
    on_their_way = [make_burda("iwae", 1, 5, 87.7), make_burda("vae", 5, 1, 88.6)]
    return [deepened(run, 3280) for run in done], [deepened(run, 364, 3280) for run in on_their_way]


def make_burda(objective: str, M: int, K: int, nll: float) -> RunResult:
    return fabricate(objective, M, K, nll=nll, units=(19,), scale="paper")


def all_tables(results: list[RunResult], scale: str = "quick") -> list[Table]:
    """The tables that have files of every kind, without the figures that stand between them on the page."""
    cells = gather(results)
    made = [
        tables.claims(decide_claims(cells, judged=scale == "paper")),
        density.burda(cells, "burda-table1", scale),
        density.burda_table2(cells, scale),
        density.burda(cells, "burda-table3", scale),
        density.every_objective(cells, scale),
        sweep.rainforth(cells, scale),
        later.table(cells),
        plane.table(cells),
        beyond.other_runs(cells, scale),
        training.diagnostics(results),
    ]
    return [table for table in made if table is not None]


@pytest.fixture(scope="session")
def make() -> Make:
    """Makes one run: objective, M, K and any keyword of `fabricate`."""
    return fabricate


@pytest.fixture(scope="session")
def make_quick() -> Callable[..., list[RunResult]]:
    """Makes the runs of the quick scale, or the same ones at another scale and on more datasets."""
    return fabricate_quick


@pytest.fixture(scope="session")
def report(quick: list[RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report at the quick scale, with the results to which it links, as the stages leave them."""
    root = tmp_path_factory.mktemp("reports")
    folder = root / "quick"
    # A page that a switch of scales leads to.
    (root / "paper").mkdir()
    (root / "paper" / "index.html").write_text("<!DOCTYPE html><title>paper</title><h1>paper</h1>", encoding="utf-8")
    for cohort in dict.fromkeys(run.cohort for run in quick):
        runs = [run for run in quick if run.cohort == cohort]
        save_results(folder / "results" / cohort.partition("/")[2], runs)
    build_report(quick, "quick", folder, scales=SCALES)
    return folder


@pytest.fixture(scope="session")
def quick() -> list[RunResult]:
    return fabricate_quick()
