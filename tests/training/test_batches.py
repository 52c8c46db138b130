from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.draws.philox import normal, permutation, stream_key, uniform
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import RunSpec
from pipeline.training.batches import Batches, Orders
from tests.conftest import make_run
from tests.training.test_train import mixed_runs

FLOAT = torch.float32


def identifiable_images(count: int) -> torch.Tensor:
    """Image i has its number in binary, as pixels 0 and 255: what is drawn of it names it."""
    bits = (np.arange(count)[:, None] >> np.arange(784) % 16) & 1
    return torch.from_numpy((255 * bits).astype(np.uint8))


def batches_of(runs: list[RunSpec], images: torch.Tensor) -> Batches:
    return Batches(runs, [0] * len(runs), images, FLOAT)


def images_at(batches: Batches, step: int) -> torch.Tensor:
    batches.prepare(step, 1)
    return batches.images(torch.tensor(step))


def visited(batches: Batches, steps: range) -> list[int]:
    weights = 2 ** torch.arange(16)
    drawn = torch.cat([images_at(batches, step)[0] for step in steps])
    return (drawn[:, :16].long() @ weights).tolist()


def test_published_code_visits_images_in_file_order_every_epoch() -> None:
    batches = batches_of([make_run(train_images=200)], identifiable_images(230))
    assert visited(batches, range(10)) == list(range(200))
    assert visited(batches, range(10, 20)) == list(range(200))


def test_shuffled_epochs_see_every_image_once_in_a_new_order() -> None:
    run = make_run(train_images=200, protocol_name="paper-text")
    batches = batches_of([run], identifiable_images(230))
    first, second = visited(batches, range(10)), visited(batches, range(10, 20))
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second
    # A later step can be drawn alone.
    assert visited(batches_of([run], identifiable_images(230)), range(13, 14)) == second[60:80]


def test_binarization_is_drawn_anew_at_every_visit_with_the_grey_value_as_its_mean(
    grey_images: NDArray[np.uint8],
) -> None:
    images = torch.from_numpy(grey_images)
    batches = batches_of([make_run(train_images=20)], images)
    draws = torch.stack([images_at(batches, step)[0] for step in range(2000)])
    grey = images[:20].float() / 255
    error = (grey * (1 - grey) / 2000).sqrt()
    assert not torch.equal(draws[0], draws[1])
    assert ((draws.mean(0) - grey).abs() <= 5 * error + 1e-6).all()


def test_fixed_binarization_is_never_redrawn() -> None:
    images = identifiable_images(40)
    batches = batches_of([make_run(train_images=20)], images)
    for step in range(50):
        assert torch.equal(images_at(batches, step)[0], (images[:20] == 255).float())


def test_runs_share_draws_where_they_agree_and_only_there(grey_images: NDArray[np.uint8]) -> None:
    images = torch.from_numpy(grey_images)
    run = make_run(train_images=200)
    other_seed, shuffled = replace(run, seed=1), replace(run, protocol=PROTOCOLS["paper-text"])
    batches = batches_of([run, run, other_seed, shuffled], images)
    x, noise = images_at(batches, 3), batches.noise(torch.tensor(3))[0]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])
    assert not torch.equal(x[0], x[3])
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], noise[3])
    assert not torch.equal(noise[0], noise[2])
    for r, member in enumerate((run, run, other_seed, shuffled)):
        alone = batches_of([member], images)
        assert torch.equal(images_at(alone, 3)[0], x[r])
        assert torch.equal(alone.noise(torch.tensor(3))[0][0], noise[r])


def test_noise_shapes_of_two_layers(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(K=5, latent=(100, 50))
    noise = batches_of([run], torch.from_numpy(grey_images)).noise(torch.tensor(0))
    assert [tuple(part.shape) for part in noise] == [(1, 5, 20, 100), (1, 5, 20, 50)]


def philox(draw: Callable[..., torch.Tensor], count: int, seed: int, purpose: str, index: int) -> torch.Tensor:
    return draw(count, torch.tensor([stream_key(seed, purpose)]), torch.tensor([index]))[0]


@pytest.mark.parametrize("layers", [1, 2])
def test_every_run_draws_what_philox_says_of_its_seed_and_update(layers: int, grey_images: NDArray[np.uint8]) -> None:
    """Run by run, with the arithmetic on the host: both protocols, and runs that go on from an update of their own."""
    images = torch.from_numpy(grey_images)
    runs = [replace(run, train_images=100 + 20 * (i % 2)) for i, run in enumerate(mixed_runs(layers, "float32"))]
    earlier = [7 * (i % 2) for i in range(len(runs))]
    batches = Batches(runs, earlier, images, FLOAT)
    for step in (0, 3, 4, 5, 61):
        batches.prepare(step, 1)
        x, eps = batches.images(torch.tensor(step)), batches.noise(torch.tensor(step))
        for r, (run, before) in enumerate(zip(runs, earlier, strict=True)):
            epoch, batch = divmod(before + step, run.steps_per_epoch)
            order = torch.arange(run.train_images)
            if run.protocol.shuffle:
                order = philox(permutation, run.train_images, run.seed, "order", epoch)
            grey = images[order[20 * batch : 20 * batch + 20]].float() / 255
            u = philox(uniform, 20 * 784, run.seed, "binarization", before + step).view(20, 784)
            assert torch.equal(x[r], (u < grey).float())
            for l, units in enumerate(run.latent, start=1):
                noise = philox(normal, run.T * 20 * units, run.seed, f"noise{l}", before + step)
                assert torch.equal(eps[l - 1][r].flatten(), noise)


def test_orders_are_those_of_their_epochs() -> None:
    orders = Orders([(0, 0, 100, 1), (3, 7, 60, 0)], torch.device("cpu"))
    assert orders.shortest_epoch == 3
    for step in range(0, 30, 2):
        orders.load(step, 2)
        for position in (step, step + 1):
            indices = orders.indices(torch.tensor([position, position + 7]))
            epoch, batch = divmod(position, 5)
            order = philox(permutation, 100, 0, "order", epoch)
            assert torch.equal(indices[0], order[batch * 20 : batch * 20 + 20])
            assert torch.equal(indices[1], torch.arange(20) + (position + 7) % 3 * 20)
