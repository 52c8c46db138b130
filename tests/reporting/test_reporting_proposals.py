"""IWAE's gain by the estimate and by AIS, on opinions of which the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import write_json
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.proposals import gains
from pipeline.reporting.sections.ais import gains_table

Make = Callable[..., RunResult]


def opinion(run: RunResult, estimate: np.ndarray, ais: np.ndarray) -> dict[str, object]:
    images = {"test/estimate": estimate.tolist(), "test/lower": ais.tolist()}
    return {"cohort": run.cohort, "run": run.spec.name, "images": images}


def test_the_gain_is_paired_over_images_and_split_between_decoder_and_proposal(make: Make, tmp_path: Path) -> None:
    """The decoder gains 2 nats; IWAE's encoder hides 0.5 of them."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(-90, 15, 40)
    vae, iwae, other = make(), make("iwae", 1, 50), make("iwae", 1, 5)
    opinions = [
        opinion(vae, difficulty, difficulty + 0.1),
        opinion(iwae, difficulty + 1.5 + rng.normal(0, 0.1, 40), difficulty + 2.1),
        opinion(other, difficulty, difficulty),
    ]
    runs = {run.cell: run for run in (vae, iwae, other)}
    (gain,) = gains(opinions, runs)
    assert (gain.dataset, gain.layers, gain.images) == ("mnist", 1, 40)
    assert gain.estimate == pytest.approx(1.5, abs=0.05)
    assert gain.ais == pytest.approx(2.0)
    assert gain.proposals == pytest.approx(0.5, abs=0.05)
    assert gain.estimate_se == pytest.approx(gain.proposals_se)
    assert 0.01 < gain.proposals_se < 0.025
    for one in opinions:
        write_json(tmp_path / str(one["cohort"]).partition("/")[2] / f"ais-{one['run']}.json", one)
    table = gains_table(tmp_path, [vae, iwae, other])
    assert table is not None
    assert list(table.display["gain, AIS"]) == ["+2.00 ± 0.00"]
    assert table.groups == ("MNIST",)


def test_without_both_or_on_other_images_nothing_is_said(make: Make, tmp_path: Path) -> None:
    vae, iwae, deep = make(), make("iwae", 1, 50), make("iwae", 1, 50, layers=2)
    runs = {run.cell: run for run in (vae, iwae, deep)}
    few, many = np.zeros(10), np.zeros(20)
    assert gains([opinion(vae, few, few)], runs) == []
    assert gains([opinion(vae, few, few), opinion(deep, few, few)], runs) == []
    assert gains([opinion(vae, few, few), opinion(iwae, many, many)], runs) == []
    assert gains_table(tmp_path, [vae]) is None
