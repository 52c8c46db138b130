"""The stack that lives on its device, here a CPU: against the one that the host drives, and its engines against it."""

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
from pipeline.models import kernels, products
from pipeline.models.philox import normal, stream_key, uniform
from pipeline.randomness import Randomness
from pipeline.schedule import learning_rate
from pipeline.spec import BATCH_SIZE, RunSpec, Stage
from pipeline.training import device_stack
from pipeline.training import train as trainer
from pipeline.training.batches import Batches
from pipeline.training.device_stack import ENGINES, DeviceSchedule, DeviceStack, Engine, Orders, stack_for
from pipeline.training.stack import Stack, estimator_key
from pipeline.training.state import Job, RunState
from pipeline.training.train import Interrupted, initial_state
from tests.conftest import make_run
from tests.training.test_train import final_weights, history, job_for, mixed_runs, run_all

CPU = torch.device("cpu")


class OneByOne(Batches):
    """The oracle of the device's draws: every run, every step by itself, with the arithmetic on the host."""

    def _stream(self, run: RunSpec, purpose: str, step: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([stream_key(run.seed, purpose)]), torch.tensor([step])

    def images(self, steps: list[int]) -> Tensor:
        drawn = []
        for run, step in zip(self._runs, steps, strict=True):
            epoch, batch = divmod(step, run.steps_per_epoch)
            order = torch.arange(run.train_images)
            if run.protocol.shuffle:
                order = Randomness(CPU).permutation(run.train_images, run.seed, "order", epoch)
            grey = self._images[order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]].float() / 255
            u = uniform(grey.numel(), *self._stream(run, "binarization", step)).view_as(grey)
            drawn.append((u < grey).to(self._dtype))
        return torch.stack(drawn)

    def noise(self, steps: list[int]) -> list[Tensor]:
        layers = []
        for l, units in enumerate(self._runs[0].latent, start=1):
            shape = (self._runs[0].T, BATCH_SIZE, units)
            rows = [
                normal(shape[0] * shape[1] * units, *self._stream(run, f"noise{l}", step)).view(shape)
                for run, step in zip(self._runs, steps, strict=True)
            ]
            layers.append(torch.stack(rows).to(self._dtype))
        return layers


def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: neither compiled kernels nor oneDNN."""
    monkeypatch.setattr(kernels, "library", lambda: None)
    monkeypatch.setattr(products, "_ONEDNN", False)


def states_of(runs: list[RunSpec], images: Tensor) -> list[RunState]:
    states = [initial_state(Job(run, "", Path(), None), images) for run in runs]
    for r, state in enumerate(states):
        # Some go on from another run's end, at positions of their own.
        state.earlier_steps = 7 * (r % 2)
    return states


def pair(runs: list[RunSpec], images: Tensor) -> tuple[Stack, DeviceStack]:
    host = Stack(runs, states_of(runs, images), images)
    host.batches = OneByOne(runs, images, host.dtype)
    return host, DeviceStack(runs, states_of(runs, images), images, "plain")


@pytest.mark.parametrize("layers", [1, 2])
def test_ten_updates_as_the_host_makes_them(
    layers: int, grey_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the end of an epoch and of a stage of the schedule, every estimator, both protocols."""
    in_torch(monkeypatch)
    schedule = (Stage(1, 1e-3), Stage(2, 5e-4))
    runs = [replace(run, train_images=100, schedule=schedule) for run in mixed_runs(layers, "float64")]
    runs.sort(key=estimator_key)
    host, device = pair(runs, torch.from_numpy(grey_images))
    host.advance(10)
    device.advance(10)
    for name, ours, expected in [
        ("parameters", device.parameters.flat, host.parameters.flat),
        ("m", device.m, host.m),
        ("v", device.v, host.v),
        ("sums", device.sums, host.sums),
    ]:
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert (device.step, device.summed) == (host.step, host.summed)
    assert int(device.counter) == 10


def test_compiled_updates_agree_with_plain_ones(
    grey_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile on this device, in float64 so that nothing but a mistake can part them."""
    in_torch(monkeypatch)
    runs = [make_run("iwae", 1, 6, precision="float64"), make_run("piwae", 2, 3, seed=1, precision="float64")]
    images = torch.from_numpy(grey_images)
    _, plain = pair(runs, images)
    monkeypatch.setitem(ENGINES, "compiled without a graph", Engine(compile=True))
    compiled = DeviceStack(runs, states_of(runs, images), images, "compiled without a graph")
    assert compiled.engine == "compiled without a graph"
    for _ in range(2):
        plain.advance(5)
        compiled.advance(5)
    # Noise is made in float32, so it differs by its rounding.
    torch.testing.assert_close(compiled.parameters.flat, plain.parameters.flat, rtol=0, atol=1e-8)
    torch.testing.assert_close(compiled.sums, plain.sums, rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("engine", ["graph", "compiled", "fused"])
@pytest.mark.parametrize("latent", [(50,), (100, 50)])
def test_engines_of_a_gpu_agree_with_plain_updates(
    engine: str, latent: tuple[int, ...], grey_images: NDArray[np.uint8]
) -> None:
    runs = [make_run("iwae", 1, 6, latent=latent), make_run("piwae", 2, 3, seed=1, latent=latent)]
    images = torch.from_numpy(grey_images).cuda()
    plain, other = (DeviceStack(runs, states_of(runs, images), images, name) for name in ("plain", engine))
    start = plain.parameters.flat.clone()
    for steps in (7, 20, 33):
        plain.advance(steps)
        other.advance(steps)
    assert float((other.parameters.flat - plain.parameters.flat).norm()) < 0.02 * float(
        (plain.parameters.flat - start).norm()
    )


@pytest.mark.parametrize("asked", ["odd", "auto"])
def test_an_engine_that_computes_something_else_is_not_used(
    asked: str, grey_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, odd = DeviceStack._runner, Engine(compile=True)

    def runner(stack: DeviceStack, engine: Engine) -> Callable[[int], None]:
        if engine is not odd:
            return honest(stack, engine)
        return lambda steps: stack.parameters.flat.add_(1e-2 * steps).numel() * 0 or None

    monkeypatch.setattr(device_stack, "ENGINES", {"odd": odd, "plain": Engine()})
    monkeypatch.setattr(DeviceStack, "_runner", runner)
    runs, images = [make_run()], torch.from_numpy(grey_images)
    if asked == "auto":
        assert DeviceStack(runs, states_of(runs, images), images, asked).engine == "plain"
        return
    with pytest.raises(UserError, match=r"engine odd: cannot be used here \(after 5 updates its parameters are .*% of"):
        DeviceStack(runs, states_of(runs, images), images, asked)


def test_what_cannot_run_here_is_passed_over(grey_images: NDArray[np.uint8]) -> None:
    runs, images = [make_run()], torch.from_numpy(grey_images)
    stack = DeviceStack(runs, states_of(runs, images), images, "auto")
    assert stack.engine == "plain"
    with pytest.raises(UserError, match=r"engine graph: cannot be used here \(CUDA graphs need a GPU\); allowed: auto"):
        DeviceStack(runs, states_of(runs, images), images, "graph")
    assert type(stack_for(runs, states_of(runs, images), images, "auto")) is Stack


def test_interrupted_and_resumed_is_bit_identical(
    grey_images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "stack_for", DeviceStack)
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


def test_orders_are_those_of_their_epochs() -> None:
    orders = Orders([(0, 0, 100, 1), (3, 7, 60, 0)], CPU)
    assert orders.shortest_epoch == 3
    for step in range(0, 30, 2):
        orders.load(step, 2)
        for position in (step, step + 1):
            found = orders.indices(torch.tensor([position, position + 7]))
            epoch, batch = divmod(position, 5)
            order = Randomness(CPU).permutation(100, 0, "order", epoch)
            assert torch.equal(found[0], order[batch * 20 : batch * 20 + 20])
            assert torch.equal(found[1], torch.arange(20) + (position + 7) % 3 * 20)


def test_learning_rates_are_those_of_the_schedule() -> None:
    runs = [make_run(train_images=40), make_run(train_images=60, schedule=(Stage(5, 0.25),))]
    schedule = DeviceSchedule(runs, CPU)
    for step in range(15):
        expected = [learning_rate(run, step) for run in runs]
        assert schedule.rate(torch.tensor(step)).tolist() == expected
