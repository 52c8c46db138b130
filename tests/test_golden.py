"""Twenty steps of every estimator, against numbers kept with their `algorithm_version`.

When this fails after a change that was not meant to change results, the change is wrong. When it was meant to: bump
`algorithm_version` in params.yaml, and run `python -m tests.test_golden` to write the numbers anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.evaluation.evaluate import evaluate_weights
from pipeline.experiments.params import load_params
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import EvaluationSpec, RunSpec, digest
from pipeline.objectives import OBJECTIVES
from pipeline.records.run_folder import HISTORY, WEIGHTS, Job, read_weights
from pipeline.training.train import train
from tests.conftest import ROOT, make_images, make_run, material_of

GOLDEN = Path(__file__).with_name("golden.json")
SPLITS = {"vae": (6, 1), "miwae": (2, 3), "piwae": (3, 2)}
EVALUATION = EvaluationSpec(seed=1, num_samples=70, bound_samples=64, test_images=20, train_images=0, pruned_images=0)


def golden_runs() -> list[RunSpec]:
    return [
        make_run(
            name, *SPLITS.get(name, (1, 6)), name=f"{name}-{layers}L-{protocol}", latent=latent, protocol_name=protocol
        )
        for name in OBJECTIVES
        for layers, latent in ((1, (50,)), (2, (100, 50)))
        for protocol in PROTOCOLS
    ]


def measure(run: RunSpec, images: NDArray[np.uint8], store: Path) -> dict[str, float]:
    """Where 20 steps lead: the last bound, two norms of the weights, and the likelihood estimate."""
    run_digest = digest(run, "golden")
    job = Job(run, run_digest, store / run_digest, None)
    train([job], torch.from_numpy(images), {}, lambda _: None, lambda: False, 1e9)
    flat = read_weights(job.finished / WEIGHTS, run.latent)
    rows = np.loadtxt(job.finished / HISTORY, delimiter=",", skiprows=1)
    metrics, _ = evaluate_weights(flat, run, EVALUATION, material_of(images))
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return {
        "bound": float(rows[-1, 4]),
        "norm": float(flat.double().norm()),
        "projection": float((flat.double() * wave).sum()),
        "nll": metrics["nll"],
        "active_units_test_1": metrics["active_units_test_1"],
    }


def near(expected: dict[str, float]) -> object:
    """Room for other processors' rounding; a changed rule moves the numbers by far more."""
    return pytest.approx(expected, rel=2e-5, abs=2e-3)


def test_golden_numbers_belong_to_this_algorithm_version() -> None:
    assert json.loads(GOLDEN.read_text())["algorithm_version"] == load_params(ROOT / "params.yaml").algorithm_version
    assert set(json.loads(GOLDEN.read_text())["runs"]) == {run.name for run in golden_runs()}


@pytest.mark.parametrize("run", golden_runs(), ids=lambda run: run.name)
def test_twenty_steps(run: RunSpec, grey_images: NDArray[np.uint8], tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())["runs"][run.name]
    assert measure(run, grey_images, tmp_path) == near(expected)


def main() -> None:
    version = load_params(ROOT / "params.yaml").algorithm_version
    kept = json.loads(GOLDEN.read_text())["runs"]
    runs = {}
    for run in golden_runs():
        with tempfile.TemporaryDirectory() as store:
            measured = measure(run, make_images(), Path(store))
        # What differs by this machine's rounding alone stays as it was.
        runs[run.name] = kept[run.name] if run.name in kept and measured == near(kept[run.name]) else measured
    GOLDEN.write_text(json.dumps({"algorithm_version": version, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
