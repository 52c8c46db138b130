"""The plain file that shows the method does what the pipeline does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples import one_run
from examples.pipeline_run import ROWS
from pipeline.evaluation.active_units import posterior_means, unit_variances
from pipeline.evaluation.images import Images
from pipeline.evaluation.likelihood import likelihoods, model_log_weights
from pipeline.experiments.schedule import learning_rate
from pipeline.experiments.spec import BATCH_SIZE, RunSpec
from pipeline.models.gradient import estimator_groups, gradient_estimate
from pipeline.models.networks import Parameters, initial_weights
from pipeline.objectives import OBJECTIVES
from pipeline.records.metrics import ACTIVE_VARIANCE
from pipeline.records.run_folder import Job
from pipeline.training.batches import Batches
from pipeline.training.engines import stack_for
from pipeline.training.train import initial_state
from tests.conftest import ROOT, make_run, write_dataset
from tests.plain import gradients_of, model_of, pipeline_gradients

LATENTS = [(50,), (100, 50)]


def split(objective: str) -> tuple[int, int]:
    """M groups of K samples, M != K wherever the objective is defined for that."""
    if OBJECTIVES[objective].single_K:
        return 4, 1
    return (1, 5) if OBJECTIVES[objective].single_M else (2, 3)


def exact_run(objective: str, latent: tuple[int, ...]) -> RunSpec:
    M, K = split(objective)
    return make_run(objective, M, K, latent=latent, protocol_name="paper-text", precision="float64", train_images=500)


def draws_of(run: RunSpec, images: Tensor) -> Callable[[int], one_run.Batch]:
    """What the pipeline draws for an update of a run, by the update's number."""
    batches = Batches([run], [0], images, torch.float64)

    def draw(step: int) -> one_run.Batch:
        batches.prepare(step, 1)
        counter = torch.tensor(step)
        return batches.images(counter)[0], [noise[0] for noise in batches.noise(counter)]

    return draw


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_the_pipelines(objective: str, latent: tuple[int, ...], grey_images: NDArray[np.uint8]) -> None:
    run = exact_run(objective, latent)
    mean_image = grey_images.mean(0) / 255
    flat = initial_weights(latent, run.protocol, 3, mean_image).double()
    # Away from the zero biases that training starts with.
    flat += 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = Parameters(latent, flat.unsqueeze(0))
    x, eps = draws_of(run, torch.from_numpy(grey_images))(7)
    scale = torch.full((1, 1, 1), 1 / BATCH_SIZE, dtype=torch.float64)
    noise = [draw.unsqueeze(0) for draw in eps]
    theirs, _ = gradient_estimate(p, x.unsqueeze(0), noise, estimator_groups([run]), scale)
    model = model_of(p)
    one_run.set_gradients(model, OBJECTIVES[objective], run.M, (x, eps), run.parameter)
    ours = gradients_of(model)
    for name, expected in pipeline_gradients(theirs).items():
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        assert error.item() < 1e-6, name


@pytest.mark.parametrize("objective", ["vae", "piwae", "dreg"])
@pytest.mark.parametrize("latent", LATENTS)
def test_training_on_the_pipelines_draws_is_the_pipelines_training(
    objective: str, latent: tuple[int, ...], grey_images: NDArray[np.uint8]
) -> None:
    run, images = exact_run(objective, latent), torch.from_numpy(grey_images)
    stack = stack_for([run], [initial_state(Job(run, "", Path(), None), images)], images)
    model = model_of(Parameters(latent, stack.buffers.flat))
    data = map(draws_of(run, images), range(run.total_steps))
    optimizer = one_run.adam(model)
    one_run.train(model, optimizer, OBJECTIVES[objective], run.M, learning_rate(run, 0), data, run.parameter)
    stack.advance(run.total_steps)
    after = model_of(Parameters(latent, stack.buffers.flat)).state_dict()
    before = model_of(Parameters(latent, initial_state(Job(run, "", Path(), None), images).flat.unsqueeze(0)))
    for name, expected in after.items():
        way = (expected - before.state_dict()[name]).abs().max()
        assert (model.state_dict()[name] - expected).abs().max() < 1e-6 * way, name


def trained(latent: tuple[int, ...], images: Tensor) -> Parameters:
    """A model after some updates: importance weights neither all equal nor a single one."""
    run = make_run("iwae", 1, 5, latent=latent, protocol_name="paper-text", train_images=500, max_steps=200)
    stack = stack_for([run], [initial_state(Job(run, "", Path(), None), images)], images)
    stack.advance(run.total_steps)
    return Parameters(latent, stack.buffers.flat)


@pytest.mark.parametrize("latent", LATENTS)
def test_likelihood_and_active_units_are_the_pipelines(latent: tuple[int, ...], grey_images: NDArray[np.uint8]) -> None:
    p = trained(latent, torch.from_numpy(grey_images))
    model = model_of(p)
    x = torch.from_numpy((grey_images[500:520] > 127).astype(np.float32))
    samples = 2000
    torch.manual_seed(0)
    ours = one_run.log_likelihoods(model, x, samples)
    numbered = Images(x, torch.arange(len(x)))
    theirs = likelihoods(model_log_weights(p, seed=1), numbered, samples, 64)
    # Two independent estimates of each image; the variance of log mean w is Var(w) / E[w]^2 / samples.
    error = np.sqrt(2 * theirs.relative_variance.astype(np.float64).sum() / samples) / len(x)
    assert abs(float(ours.mean()) - float(theirs.log_p_hat.mean())) < 4 * error
    assert error < 0.3

    counts = one_run.active_units(model, x)
    means = posterior_means(p, numbered, seed=1)
    assert counts[0] == int((unit_variances(means[0]) > ACTIVE_VARIANCE).sum())
    assert counts[0] > 0


def test_without_its_noise_an_inactive_unit_does_not_count() -> None:
    """A unit whose posterior mean no image moves is inactive, whatever its spread."""
    model = one_run.Model((50,))
    model.initialize(torch.full((784,), 0.5))
    mean = model.encoder["q1"].mean
    with torch.no_grad():
        mean.weight[:20] = 0
        mean.weight[20:] *= 30
    x = (torch.rand(200, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert one_run.active_units(model, x) == [30]


def test_first_batches_cover_every_image_once() -> None:
    model = one_run.Model((50,))
    grey = torch.zeros(60, 784)
    grey[torch.arange(60), torch.arange(60)] = 1
    (first, second) = (
        torch.cat([x for x, _ in one_run.batches(model, grey, T=2, epochs=1)]).argmax(1) for _ in range(2)
    )
    assert sorted(first.tolist()) == list(range(60)) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


def test_command_prints_both_columns(tmp_path: Path, grey_images: NDArray[np.uint8]) -> None:
    folder = write_dataset(tmp_path / "mnist", grey_images)
    words = ["--stages", "1", "--images", "2", "--objective", "ciwae", "--parameter", "0.5", "--data", str(folder)]
    command = [sys.executable, "-m", "examples.one_run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    table = {line[:28].strip(): line[28:].split() for line in done.stdout.splitlines()[-4:]}
    assert set(table) == set(ROWS)
    ours, theirs = map(float, table["NLL, nats per image"])
    assert ours > 0
    assert theirs > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--objective iwae --M 4", "options.M: iwae has one group of samples, so M must be 1, not 4"),
        ("--objective ciwae", "options.parameter: ciwae needs its beta"),
        ("--data no-such-folder", "no-such-folder"),
        ("--images 20000", "--images: from 1 to "),
    ],
)
def test_command_names_the_option_at_fault(
    words: str,
    said: str,
    tmp_path: Path,
    grey_images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_dataset(tmp_path / "mnist", grey_images)
    monkeypatch.setattr(sys, "argv", ["one_run", "--data", str(folder), *words.split()])
    with pytest.raises(SystemExit) as ended:
        one_run.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
