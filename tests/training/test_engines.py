"""The engines of a GPU, here on a CPU as far as they go: held to the plain one, chosen, and interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.experiments.spec import RunSpec, Stage
from pipeline.models.gradient import estimator_key
from pipeline.records.run_folder import Job, RunState
from pipeline.training import device_stack, engines
from pipeline.training import train as trainer
from pipeline.training.batches import Batches
from pipeline.training.device_stack import DeviceStack, Means
from pipeline.training.engines import DEVICE_ENGINES, device_stack_for, stack_for
from pipeline.training.plain_stack import PlainStack
from pipeline.training.stack import Buffers
from pipeline.training.train import initial_state
from pipeline.training.update import Update
from pipeline.work.interruption import Interrupted
from tests.conftest import make_run
from tests.training.test_train import final_weights, history, job_for, mixed_runs, run_all


def states_of(runs: list[RunSpec], images: Tensor) -> list[RunState]:
    states = [initial_state(Job(run, "", Path(), None), images) for run in runs]
    for r, state in enumerate(states):
        # Some go on from another run's end, at positions of their own.
        state.earlier_steps = 7 * (r % 2)
    return states


@pytest.mark.parametrize("layers", [1, 2])
def test_a_device_makes_the_very_updates_of_the_plain_stack(layers: int, grey_images: NDArray[np.uint8]) -> None:
    """Bit for bit, across the ends of epochs and of a stage of the schedule, every estimator, both protocols."""
    schedule = (Stage(1, 1e-3), Stage(2, 5e-4))
    runs = [replace(run, train_images=100, schedule=schedule) for run in mixed_runs(layers, "float32")]
    runs.sort(key=estimator_key)
    images = torch.from_numpy(grey_images)
    plain = PlainStack(runs, states_of(runs, images), images)
    device = DeviceStack(runs, states_of(runs, images), images, "one by one", Means())
    plain.advance(10)
    for steps in (3, 4, 3):
        device.advance(steps)
    for name in ("flat", "m", "v", "sums", "counter"):
        assert torch.equal(getattr(device.buffers, name), getattr(plain.buffers, name)), name
    assert device.step == plain.step == int(plain.buffers.counter) == 10


def test_compiled_updates_agree_with_plain_ones(grey_images: NDArray[np.uint8]) -> None:
    """torch.compile on this device, in float64 so that nothing but a mistake can part them."""
    runs = [make_run("iwae", 1, 6, precision="float64"), make_run("piwae", 2, 3, seed=1, precision="float64")]
    images = torch.from_numpy(grey_images)
    plain = PlainStack(runs, states_of(runs, images), images)
    compiled = DeviceStack(runs, states_of(runs, images), images, "compiled without a graph", Means(compile=True))
    for _ in range(2):
        plain.advance(5)
        compiled.advance(5)
    # Noise is made in float32, so it differs by its rounding.
    torch.testing.assert_close(compiled.buffers.flat, plain.buffers.flat, rtol=0, atol=1e-8)
    torch.testing.assert_close(compiled.buffers.sums, plain.buffers.sums, rtol=1e-6, atol=0)


def test_a_run_is_computed_in_its_own_precision(grey_images: NDArray[np.uint8]) -> None:
    """Large products round to bfloat16 where the run asks for it, in the stack beside one that does not."""
    images = torch.from_numpy(grey_images)
    moments = {}
    for precision in ("float32", "bfloat16", "tf32"):
        runs = [make_run("iwae", 1, 50, precision=precision)]
        stack = PlainStack(runs, states_of(runs, images), images)
        stack.advance(1)
        moments[precision] = stack.buffers.m
    exact = moments["float32"]
    assert torch.equal(moments["tf32"], exact)
    assert 1e-4 < float((moments["bfloat16"] - exact).norm() / exact.norm()) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("engine", ["graph", "compiled", "fused"])
@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_engines_of_a_gpu_agree_with_plain_updates(
    engine: str, latent: tuple[int, ...], grey_images: NDArray[np.uint8]
) -> None:
    runs = [make_run("iwae", 1, 6, latent=latent), make_run("piwae", 2, 3, seed=1, latent=latent)]
    images = torch.from_numpy(grey_images).cuda()
    plain, other = (stack_for(runs, states_of(runs, images), images, name) for name in ("plain", engine))
    start = plain.buffers.flat.clone()
    for steps in (7, 20, 33):
        plain.advance(steps)
        other.advance(steps)
    way = float((plain.buffers.flat - start).norm())
    assert float((other.buffers.flat - plain.buffers.flat).norm()) < 0.02 * way


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with a CPU")
def test_a_gpu_draws_what_a_cpu_draws(grey_images: NDArray[np.uint8]) -> None:
    runs = sorted(mixed_runs(2, "float32"), key=estimator_key)
    images = torch.from_numpy(grey_images)
    here, there = (Batches(runs, [0] * len(runs), on, torch.float32) for on in (images, images.cuda()))
    for step in (0, 9, 10, 17):
        for batches in (here, there):
            batches.prepare(step, 1)
        assert torch.equal(here.images(torch.tensor(step)), there.images(torch.tensor(step).cuda()).cpu())
        for one, other in zip(here.noise(torch.tensor(step)), there.noise(torch.tensor(step).cuda()), strict=True):
            assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("asked", ["odd", "auto"])
def test_an_engine_that_computes_something_else_is_not_used(
    asked: str, grey_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(update: Update, buffers: Buffers, means: Means, tf32: bool) -> Callable[[int], None]:
        def odd(steps: int) -> None:
            buffers.flat.add_(1e-2 * steps)

        return odd

    monkeypatch.setattr(engines, "DEVICE_ENGINES", {"odd": Means()})
    monkeypatch.setattr(device_stack, "_runner", runner)
    runs, images = [make_run()], torch.from_numpy(grey_images)
    if asked == "auto":
        assert device_stack_for(runs, states_of(runs, images), images, asked).engine == "plain"
        return
    with pytest.raises(UserError, match=r"engine odd: cannot be used here \(after 5 updates its parameters are .*% of"):
        stack_for(runs, states_of(runs, images), images, asked)


def test_an_engine_that_was_tried_starts_where_the_states_are(
    grey_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "DEVICE_ENGINES", {"one by one": Means()})
    runs, images = [make_run("iwae", 1, 3)], torch.from_numpy(grey_images)
    tried = stack_for(runs, states_of(runs, images), images, "one by one")
    fresh = PlainStack(runs, states_of(runs, images), images)
    assert (tried.engine, tried.step, int(tried.buffers.counter)) == ("one by one", 0, 0)
    for stack in (tried, fresh):
        stack.advance(7)
    assert torch.equal(tried.buffers.flat, fresh.buffers.flat)
    assert torch.equal(tried.buffers.sums, fresh.buffers.sums)


def test_what_cannot_run_here_is_refused_by_name(grey_images: NDArray[np.uint8]) -> None:
    runs, images = [make_run()], torch.from_numpy(grey_images)
    if not torch.cuda.is_available():
        with pytest.raises(
            UserError, match=r"engine graph: cannot be used here \(CUDA graphs need a GPU\); allowed: a"
        ):
            stack_for(runs, states_of(runs, images), images, "graph")
    with pytest.raises(UserError, match=r"engine steam: there is no such engine; allowed: auto, fused, "):
        stack_for(runs, states_of(runs, images), images, "steam")
    assert all(means.graph for means in DEVICE_ENGINES.values())


def test_interrupted_and_resumed_is_bit_identical(
    grey_images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device(runs: list[RunSpec], states: list[RunState], images: Tensor, engine: str) -> DeviceStack:
        return DeviceStack(runs, states, images, engine, Means())

    monkeypatch.setattr(trainer, "stack_for", device)
    monkeypatch.setattr(DeviceStack, "steps_between_checks", 7)
    runs = [make_run("miwae", 2, 3, max_steps=40), make_run("vae", 6, 1, seed=1, max_steps=40)]
    unbroken, broken = ([job_for(run, tmp_path / name) for run in runs] for name in ("unbroken", "broken"))
    run_all(unbroken, grey_images)
    checks = iter([False, False, False, True])
    with pytest.raises(Interrupted):
        run_all(broken, grey_images, lambda: next(checks))
    run_all(broken, grey_images)
    for one, other in zip(unbroken, broken, strict=True):
        assert torch.equal(final_weights(one), final_weights(other))
        assert np.array_equal(history(one), history(other))
