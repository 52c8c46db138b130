"""Pictures of a run."""

from __future__ import annotations

import numpy as np

from pipeline.tracking.pictures import figures, pixel_pictures, sample_grid


def test_samples_fill_the_grid_row_by_row() -> None:
    samples = np.zeros((100, 784))
    samples[12] = 1.0
    pixels = np.asarray(sample_grid(samples))
    assert pixels.shape == (560, 560)
    assert pixels[56:112, 112:168].min() == 255
    assert pixels.sum() == 56 * 56 * 255


def test_reconstructions_stand_under_their_image_and_decoded_samples_under_them() -> None:
    x, reconstruction = np.zeros((10, 784), np.uint8), np.full((10, 784), 100, np.uint8)
    decoded = np.full((10, 20, 784), 200, np.uint8)
    x[3] = 255
    made = pixel_pictures({"pictures/x": x, "pictures/reconstruction": reconstruction, "pictures/decoded": decoded})
    assert set(made) == {"reconstructions"}
    pixels = np.asarray(made["reconstructions"])
    assert pixels.shape == (10 * 56, 10 * 56)
    assert pixels[:56, 3 * 56 : 4 * 56].min() == 255
    assert pixels[:56].sum() == 56 * 56 * 255
    assert set(np.unique(pixels[56:112])) == {100}
    assert set(np.unique(pixels[112:])) == {200}


def test_a_2d_posterior_is_drawn_with_the_encoders_ellipses() -> None:
    count, points = 3, 9
    grid = {
        "center": np.zeros((count, 2)),
        "radius": np.ones(count),
        "log_density": np.zeros((count, points, points)),
        "q_mean": np.zeros((count, 2)),
        "q_sd": np.full((count, 2), 0.25),
        "log_p": np.zeros(count),
        "kl_q_p": np.array([1.0, 2.0, 3.0]),
    }
    made = figures({f"posterior/{name}": values for name, values in grid.items()})
    assert set(made) == {"posterior"}
    panels = made["posterior"].axes
    assert [panel.get_title() for panel in panels] == [f"KL(q‖p) = {kl:.1f} nats" for kl in (1, 2, 3)]
    assert [patch.width for patch in panels[0].patches] == [0.5, 1.0]  # type: ignore[attr-defined]
    assert figures({}) == {}
