"""What reduced-precision products do to a trained model: `python -m benchmarks.precision [--steps 38740]`.

Trains one run of each case twice on MNIST, in float32 and as asked, from the same seed with the same batches and noise,
and prints both NLLs with the paired difference over test images. Needs the binarized data (`dvc repro binarize@mnist`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cases import CASES, TRAINING, Case, run_spec
from benchmarks.ours import PROTOCOL
from benchmarks.table import markdown
from pipeline.data.catalogue import DATASETS
from pipeline.data.datasets import load_dataset
from pipeline.evaluation.evaluate import Material, evaluate_weights
from pipeline.experiments.spec import BOUND_SAMPLES, NLL_SAMPLES, EvaluationSpec
from pipeline.records.run_folder import WEIGHTS, Job, read_weights
from pipeline.training.train import train


def log_p_hat(
    case: Case, precision: str, steps: int, test_images: int, data: Path
) -> tuple[NDArray[np.float32], float, float]:
    """Log p̂ of each test image, [test_images] nats, after `steps` updates; active units; the seconds of training."""
    dataset = load_dataset(data)
    count = DATASETS["mnist"].train_images_burda
    run = replace(run_spec(case, PROTOCOL, seed=0, precision=precision), train_images=count, max_steps=steps)
    spec = EvaluationSpec(
        seed=123,
        num_samples=NLL_SAMPLES,
        bound_samples=BOUND_SAMPLES,
        test_images=test_images,
        train_images=0,
        pruned_images=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        job = Job(run, "run", Path(folder) / "run", None)
        start = time.monotonic()
        train([job], torch.from_numpy(dataset.train_images), {}, lambda _: None, lambda: False, 1e9)
        seconds = time.monotonic() - start
        flat = read_weights(job.finished / WEIGHTS, run.latent)
    metrics, arrays = evaluate_weights(
        flat, run, spec, Material(dataset.train_images, dataset.test_bits, dataset.test_images)
    )
    return arrays["log_p_hat"], metrics["active_units_1"], seconds


def main() -> None:
    """Train the same runs in float32 and in a coarser precision; print NLLs and their difference, paired by image."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--precision", choices=("bfloat16", "tf32"), default="bfloat16")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in TRAINING], default=["k1-1L", "k50-1L"])
    parser.add_argument("--steps", type=int, default=38_740, help="updates (default: 13 epochs)")
    parser.add_argument("--images", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/binarized/mnist"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [["case", "precision", "NLL", "minus float32", "standard error", "active units", "seconds"]]
    for name in arguments.cases:
        exact: NDArray[np.float32] | None = None
        for precision in ("float32", arguments.precision):
            log_p, active, seconds = log_p_hat(
                CASES[name], precision, arguments.steps, arguments.images, arguments.data
            )
            cells = ["", ""]
            if exact is not None:
                difference = exact.astype(np.float64) - log_p
                cells = [f"{difference.mean():+.3f}", f"{difference.std(ddof=1) / np.sqrt(len(log_p)):.3f}"]
            exact = log_p if exact is None else exact
            nll = f"{-log_p.mean(dtype=np.float64):.3f}"
            rows.append([CASES[name].title, precision, nll, *cells, f"{active:.0f}", f"{seconds:.0f}"])
            print(f"{CASES[name].title}, {precision}: {nll}", flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
