from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream
from pipeline.evaluation.evaluate import evaluate_run, save_evaluation
from pipeline.evaluation.snr import (
    BLOCKS,
    Moments,
    checkpoints,
    directional_ratio,
    estimate_snr,
    fresh_batches,
    jackknife,
    mean_snr,
    mean_square_snr,
    network_gradients,
    one_batch,
    parameter_snr,
)
from pipeline.experiments.schedule import stage_ends
from pipeline.experiments.spec import EvaluationSpec, Stage
from pipeline.files import read_json
from pipeline.models.log_weights import forward
from pipeline.models.networks import Parameters, initial_weights
from pipeline.objectives import OBJECTIVES
from pipeline.records.run_folder import WEIGHTS, Job, RunState, save_weights, waypoint_name, write_waypoint
from tests.conftest import make_run, material_of


def draws(count: int, parameters: int, snr: float = 0.5, seed: int = 0) -> Tensor:
    """Unit-variance normal gradients of one true SNR, far from zero so that a one-pass sum of squares would fail."""
    generator = torch.Generator().manual_seed(seed)
    return snr + torch.randn((count, parameters), generator=generator, dtype=torch.float64)


def test_streamed_moments_are_the_direct_ones() -> None:
    values = 1e6 + draws(23, 5)
    parts = [Moments.of(part) for part in values.split([1, 9, 13])]
    merged = parts[0].merged(parts[1]).merged(parts[2])
    torch.testing.assert_close(merged.mean, values.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.variance, values.var(0), rtol=1e-9, atol=0)
    rest = merged.without(parts[1])
    assert rest.count == 14
    direct = torch.cat([values[:1], values[10:]])
    torch.testing.assert_close(rest.mean, direct.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(rest.variance, direct.var(0), rtol=1e-8, atol=0)


def test_snr_of_known_numbers() -> None:
    moments = Moments.of(torch.tensor([[1.0, -1.0, 7.0], [3.0, -1.0, 7.0], [2.0, 5.0, 7.0]]))
    snr = parameter_snr(moments)
    assert snr[0] == pytest.approx(2.0)
    assert snr[1] == pytest.approx(1 / np.sqrt(12))
    assert torch.isnan(snr[2])
    assert mean_snr(moments) == pytest.approx((2 + 1 / np.sqrt(12)) / 2)


@pytest.mark.parametrize("snr", [0.0, 0.4, 3.0])
def test_mean_square_has_no_bias_from_few_draws(snr: float) -> None:
    """Over 40,000 independent parameters its error is far below the bias that |mean| / sd has."""
    moments = Moments.of(draws(16, 40_000, snr))
    assert mean_square_snr(moments) == pytest.approx(snr**2, abs=4e-3 + 0.01 * snr**2)
    if snr == 0:
        assert mean_snr(moments) == pytest.approx(np.sqrt(2 / (np.pi * 16)), rel=0.1)


def test_directional_ratio_of_right_angles() -> None:
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    vectors = torch.tensor([[-6.0, -8.0], [-0.8, 0.6], [5.0, 5.0]])
    ratios = directional_ratio(vectors, direction)
    assert ratios[0] > 1e6
    assert ratios[1] == pytest.approx(0, abs=1e-6)
    assert ratios[2] == pytest.approx(7.0, rel=1e-6)


@pytest.mark.parametrize("per_pass", [1, 3, 100])
def test_streaming_agrees_with_all_draws_at_once(per_pass: int) -> None:
    values = draws(50, 7)
    served = 0

    def draw(number: int, count: int) -> dict[str, Tensor]:
        nonlocal served
        served += count
        return {"g": values[served - count : served]}

    estimate = estimate_snr(draw, len(values), per_pass)["g"]
    assert served == len(values)
    torch.testing.assert_close(estimate.per_parameter, values.mean(0).abs() / values.std(0))
    first, second = values[:26], values[26:]  # 50 draws in eight blocks: 7, 7, 6, 6, 6, 6, 6, 6
    direction = first.mean(0) / first.mean(0).norm()
    parallel = second @ direction
    across = (second - parallel.unsqueeze(1) * direction).norm(dim=1)
    torch.testing.assert_close(estimate.ratios, parallel.abs() / across)
    assert estimate.dsnr == pytest.approx(float((parallel.abs() / across).mean()))


def test_jackknife_is_the_textbook_one_and_predicts_the_spread() -> None:
    blocks = [Moments.of(part) for part in draws(80, 1, 2.0).chunk(BLOCKS)]
    whole = Moments.of(draws(80, 1, 2.0))
    kept = draws(80, 1, 2.0).chunk(BLOCKS)
    left_out = [mean_snr(Moments.of(torch.cat([k for j, k in enumerate(kept) if j != i]))) for i in range(BLOCKS)]
    expected = np.sqrt((BLOCKS - 1) / BLOCKS * np.square(left_out - np.mean(left_out)).sum())
    assert jackknife([mean_snr], whole, blocks)[0] == pytest.approx(expected, rel=1e-9)
    repeats = [Moments.of(draws(80, 4, 2.0, seed)) for seed in range(100)]
    actual = np.std([mean_square_snr(moments) for moments in repeats])
    chunks = [[Moments.of(part) for part in draws(80, 4, 2.0, seed).chunk(BLOCKS)] for seed in range(30)]
    told = np.mean([jackknife([mean_square_snr], m, chunk)[0] for m, chunk in zip(repeats[:30], chunks, strict=True)])
    assert told == pytest.approx(actual, rel=0.35)


@pytest.mark.parametrize(("objective", "M", "K"), [("vae", 4, 1), ("piwae", 2, 3), ("iwae-dreg", 1, 4)])
@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_network_gradients_are_autograds(objective: str, M: int, K: int, latent: tuple[int, ...]) -> None:
    """Each draw along the run axis against autograd on a plain network, for the parameters that a bound has."""
    run = make_run(objective, M, K, latent=latent, precision="float64")
    flat = initial_weights(latent, replace(run.protocol, identical_initial_layers=False), 1, np.full(784, 0.2)).double()
    images = (torch.rand((3, 784), generator=torch.Generator().manual_seed(0)) < 0.3).double()
    drawn = network_gradients(flat, run, one_batch(images), seed=5)(7, 2)
    noise = [
        torch.stack([Stream(5, f"snr{l}", flat.device).normal(number, (run.T, 3, u)).double() for number in (7, 8)])
        for l, u in enumerate(latent, start=1)
    ]
    entry = OBJECTIVES[objective]
    for r in range(2):
        p = Parameters(latent, flat.unsqueeze(0).clone().requires_grad_())
        grouped = forward(p, images.unsqueeze(0), [eps[r : r + 1] for eps in noise]).log_w[0].unflatten(0, (M, K))
        encoder = sum(tensor.numel() for name, tensor in p.named_tensors(0).items() if name.startswith("q"))
        (of_bound,) = torch.autograd.grad(entry.bound(grouped).mean(), p.flat, retain_graph=True)
        torch.testing.assert_close(drawn["decoder"][r], of_bound[0, encoder:], rtol=1e-9, atol=1e-12)
        if not entry.drops_score:
            bound = (entry.encoder_bound or entry.bound)(grouped)
            (of_bound,) = torch.autograd.grad(bound.mean(), p.flat)
            torch.testing.assert_close(drawn["encoder"][r], of_bound[0, :encoder], rtol=1e-9, atol=1e-12)


def test_gradients_do_not_depend_on_how_many_are_drawn_at_once() -> None:
    run = make_run("iwae", 1, 3)
    flat = initial_weights(run.latent, run.protocol, 0, np.full(784, 0.2))
    images = (torch.rand((2, 784), generator=torch.Generator().manual_seed(0)) < 0.3).float()
    draw = network_gradients(flat, run, one_batch(images), seed=5)
    together, apart = draw(0, 4)["encoder"], torch.cat([draw(0, 1)["encoder"], draw(1, 3)["encoder"]])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(together[0], together[1]).all()


def test_more_groups_help_and_more_samples_hurt_the_encoder() -> None:
    """At one point: VAE(16, 1) above MIWAE(4, 4) above IWAE(1, 16), each by more than its errors."""
    images = (torch.rand((4, 784), generator=torch.Generator().manual_seed(0)) < 0.2).float()
    estimates = []
    for objective, M, K in (("vae", 16, 1), ("miwae", 4, 4), ("iwae", 1, 16)):
        run = make_run(objective, M, K)
        flat = initial_weights(run.latent, run.protocol, 0, np.full(784, 0.2))
        estimates.append(estimate_snr(network_gradients(flat, run, one_batch(images), 0), 32, 4)["encoder"])
    for better, worse in pairwise(estimates):
        assert better.snr - worse.snr > 5 * np.hypot(better.snr_se, worse.snr_se)
        assert better.dsnr - worse.dsnr > 5 * np.hypot(better.dsnr_se, worse.dsnr_se)


def test_fresh_batches_are_training_images_binarized_anew(grey_images: NDArray[np.uint8]) -> None:
    batches = fresh_batches(grey_images, 5, torch.device("cpu"), torch.float32)
    drawn = batches(torch.arange(40))
    assert drawn.shape == (40, 20, 784)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    # Those of one number are the same, whichever others are asked for.
    assert torch.equal(drawn[7], batches(torch.tensor([7]))[0])
    assert not torch.equal(drawn[7], drawn[8])
    assert float(drawn.mean()) == pytest.approx(grey_images.mean() / 255, rel=0.03)
    # An all-on image among black ones is met as often as it should be: 3 of 600.
    planted = np.zeros_like(grey_images)
    planted[[4, 300, 599]] = 255
    met = fresh_batches(planted, 5, torch.device("cpu"), torch.float32)(torch.arange(400))
    assert float(met[:, :, 0].mean()) == pytest.approx(3 / 600, abs=4 * (3 / 600 / 8000) ** 0.5)


def test_minibatches_that_vary_lower_the_snr() -> None:
    """A VAE with many samples has little noise of its own: at one batch its SNR is high, over minibatches it is not."""
    run = make_run("vae", 16, 1)
    flat = initial_weights(run.latent, run.protocol, 0, np.full(784, 0.2))
    grey = np.random.default_rng(0).integers(0, 256, (50, 784)).astype(np.uint8)
    fresh = fresh_batches(grey, 0, flat.device, torch.float32)
    fixed = one_batch(fresh(torch.arange(1))[0])
    same, varied = (estimate_snr(network_gradients(flat, run, batches, 0), 32, 8) for batches in (fixed, fresh))
    for group in ("encoder", "decoder"):
        assert varied[group].snr < same[group].snr


def test_checkpoints_of_a_run(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    run = make_run(max_steps=45, schedule=(Stage(1, 1e-3), Stage(3, 1e-3), Stage(9, 1e-3)))
    assert stage_ends(run) == [10, 40]
    flats = {name: torch.randn(initial_weights(run.latent, run.protocol, 0, np.full(784, 0.5)).shape) for name in "abc"}
    folder = tmp_path / waypoint_name(45)
    for steps, flat in zip((10, 40, 45), flats.values(), strict=True):
        save_weights(tmp_path / waypoint_name(steps) / WEIGHTS, run.latent, flat, "digest", steps)
    waypoints = list(checkpoints(folder, run, grey_images))
    assert [step for step, _ in waypoints] == [0, 10, 40, 45]
    for (_, weights), flat in zip(waypoints[1:], flats.values(), strict=True):
        assert torch.equal(weights, flat)
    mean = grey_images[:200].mean(0, dtype=np.float64) / 255
    assert torch.equal(waypoints[0][1], initial_weights(run.latent, run.protocol, run.seed, mean))
    whole = replace(run, max_steps=40)
    assert [step for step, _ in checkpoints(tmp_path / waypoint_name(40), whole, grey_images)] == [0, 10, 40]
    assert [step for step, _ in checkpoints(folder, replace(run, continues="a/b"), grey_images)] == [10, 40, 45]


def test_evaluation_adds_gradient_snr_where_asked_for(grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    run = make_run(K=2, max_steps=5)
    mean = grey_images[:200].mean(0, dtype=np.float64) / 255
    flat = initial_weights(run.latent, run.protocol, 0, mean)
    state = RunState(5, flat, torch.zeros_like(flat), torch.zeros_like(flat))
    job = Job(run, "digest", tmp_path, None)
    write_waypoint(job, state, {})
    spec = EvaluationSpec(1, 4, 2, test_images=4, train_images=0, pruned_images=0, snr_gradients=16)
    evaluation = evaluate_run(job.finished, run, spec, material_of(grey_images), torch.device("cpu"))
    save_evaluation(tmp_path / "evaluation", evaluation, {})
    with np.load(tmp_path / "evaluation.npz") as arrays:
        assert arrays["snr/step"].tolist() == [0, 5]
        # The same weights at both: images and noise are the same too.
        assert arrays["snr/snr_encoder"][0] == arrays["snr/snr_encoder"][1] > 0
        names = [f"{kind}_{group}" for kind in ("snr", "dsnr") for group in ("encoder", "decoder")]
        assert {f"snr/{name}{end}" for name in names for end in ("", "_se")} <= set(arrays.files)
    metrics = read_json(tmp_path / "evaluation.json")["metrics"]
    assert metrics["snr_gradients"] == 16
    assert {f"{name}_fresh{end}" for name in names for end in ("", "_se")} <= set(metrics)
    assert all(metrics[name] > 0 for name in names)
