from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.protocol import PROTOCOLS
from pipeline.training.batches import Batches
from tests.conftest import make_run

FLOAT = torch.float32


def identifiable_images(count: int) -> torch.Tensor:
    """Image i has its number in binary, as pixels 0 and 255: what is drawn of it names it."""
    bits = (np.arange(count)[:, None] >> np.arange(784) % 16) & 1
    return torch.from_numpy((255 * bits).astype(np.uint8))


def visited(batches: Batches, steps: range) -> list[int]:
    weights = 2 ** torch.arange(16)
    drawn = torch.cat([batches.images([step])[0] for step in steps])
    return (drawn[:, :16].long() @ weights).tolist()


def test_published_code_visits_images_in_file_order_every_epoch() -> None:
    batches = Batches([make_run(train_images=200)], identifiable_images(230), FLOAT)
    assert visited(batches, range(10)) == list(range(200))
    assert visited(batches, range(10, 20)) == list(range(200))


def test_shuffled_epochs_see_every_image_once_in_a_new_order() -> None:
    run = make_run(train_images=200, protocol_name="paper")
    batches = Batches([run], identifiable_images(230), FLOAT)
    first, second = visited(batches, range(10)), visited(batches, range(10, 20))
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second
    # A later step can be drawn alone.
    assert visited(Batches([run], identifiable_images(230), FLOAT), range(13, 14)) == second[60:80]


def test_binarization_is_drawn_anew_at_every_visit_with_the_grey_value_as_its_mean(
    grey_images: NDArray[np.uint8],
) -> None:
    images = torch.from_numpy(grey_images)
    batches = Batches([make_run(train_images=20)], images, FLOAT)
    draws = torch.stack([batches.images([step])[0] for step in range(2000)])
    grey = images[:20].float() / 255
    error = (grey * (1 - grey) / 2000).sqrt()
    assert not torch.equal(draws[0], draws[1])
    assert ((draws.mean(0) - grey).abs() <= 5 * error + 1e-6).all()


def test_fixed_binarization_is_never_redrawn() -> None:
    images = identifiable_images(40)
    batches = Batches([make_run(train_images=20)], images, FLOAT)
    for step in range(50):
        assert torch.equal(batches.images([step])[0], (images[:20] == 255).float())


def test_runs_share_draws_where_they_agree_and_only_there(grey_images: NDArray[np.uint8]) -> None:
    images = torch.from_numpy(grey_images)
    run = make_run(train_images=200)
    other_seed, shuffled = replace(run, seed=1), replace(run, protocol=PROTOCOLS["paper"])
    batches = Batches([run, run, other_seed, shuffled], images, FLOAT)
    x, noise = batches.images([3] * 4), batches.noise([3] * 4)[0]
    assert torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[2])
    assert not torch.equal(x[0], x[3])
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], noise[3])
    assert not torch.equal(noise[0], noise[2])
    for r, member in enumerate((run, run, other_seed, shuffled)):
        alone = Batches([member], images, FLOAT)
        assert torch.equal(alone.images([3])[0], x[r])
        assert torch.equal(alone.noise([3])[0][0], noise[r])


def test_noise_shapes_of_two_layers(grey_images: NDArray[np.uint8]) -> None:
    run = make_run(K=5, latent=(100, 50))
    noise = Batches([run], torch.from_numpy(grey_images), FLOAT).noise([0])
    assert [tuple(part.shape) for part in noise] == [(1, 5, 20, 100), (1, 5, 20, 50)]
