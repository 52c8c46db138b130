"""Signal-to-noise ratios of every estimator's gradient at the weights of one trained run.

    python -m stages.snr paper/burda-table1-mnist-1L-T1 vae-M1-K1-s0 --gradients 1000

The runs of Rainforth's Table 1 are measured at their own weights, where objectives differ by their models too; here all
estimators are asked at the same model: the five of the paper's figure, 64 samples each. With one minibatch for all
gradients, and with a fresh one for each, as in training.

Optional: no other stage asks for it. Prints a table in Markdown; a run that was not trained on this machine is looked
at by its shipped weights.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from pipeline.data.datasets import load_dataset
from pipeline.evaluation.snr import FRESH, SMALLEST, BatchSource, common_batch, fresh_batches, one_batch, snr_at
from pipeline.experiments.params import load_params
from pipeline.paths import Paths
from pipeline.published import Setting
from pipeline.records.run_folder import read_weights
from pipeline.records.trained import trained_run
from pipeline.reporting.evidence.cells import setting_name
from pipeline.reporting.forms.numbers import DASH
from pipeline.reporting.sections.gradients import PAPER_ENCODER_SNR, TRAINED
from pipeline.work.console import ProgressMeter
from pipeline.work.machine import resolve_device
from pipeline.work.memory import keep_freed_memory
from stages import run_stage

HEADINGS = ("estimator", "encoder", "encoder, fresh", "decoder", "decoder, fresh", "paper, encoder in training")


def enough(text: str) -> int:
    """An option's value as a whole number.

    Raises: argparse.ArgumentTypeError below `SMALLEST`, where a ratio would be noise.
    """
    value = int(text)
    if value < SMALLEST:
        raise argparse.ArgumentTypeError(f"{value} is too few; at least {SMALLEST}")
    return value


def parse() -> argparse.Namespace:
    """Which run the command line asks for, and from how many gradients ratios are taken."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m stages.snr", description=__doc__, formatter_class=shape)
    parser.add_argument("cohort", help="e.g. paper/burda-table1-mnist-1L-T1")
    parser.add_argument("run", help="e.g. vae-M1-K1-s0")
    parser.add_argument("--gradients", type=enough, default=1000, help="so many of each estimator (default 1000)")
    parser.add_argument("--seed", type=int, default=123)
    return parser.parse_args()


def row(setting: Setting, measured: dict[str, float]) -> list[str]:
    """A line of the table: `measured` as of `snr_at`, of both kinds of minibatches."""
    names = [f"snr_{group}{kind}" for group in ("encoder", "decoder") for kind in ("", FRESH)]
    values = [f"{measured[name]:.3f} ± {measured[f'{name}_se']:.3f}" for name in names]
    printed = PAPER_ENCODER_SNR.get(setting)
    return [setting_name(setting), *values, DASH if printed is None else f"~ {printed:.2g}"]


def main(paths: Paths) -> None:
    """Measure every estimator's gradient at the weights of one run, on one batch and on fresh ones; print the table."""
    asked = parse()
    device = resolve_device(load_params(paths.params).device)
    keep_freed_memory()
    model = trained_run(asked.cohort, asked.run, paths)
    flat = read_weights(model.weights, model.spec.latent, model.digest).to(device)
    grey = load_dataset(paths.binarized(model.spec.dataset)).train_images
    count = model.spec.train_images
    kinds: dict[str, BatchSource] = {
        "": one_batch(common_batch(grey, count, asked.seed, device).to(flat.dtype)),
        FRESH: fresh_batches(grey[:count], asked.seed, device, flat.dtype),
    }
    start, rows = time.monotonic(), []
    meter = ProgressMeter(f"{model.spec.name} snr", len(TRAINED) * len(kinds), "estimate")
    try:
        for setting in TRAINED:
            run = replace(
                model.spec, objective=setting.objective, M=setting.M, K=setting.K, parameter=setting.parameter
            )
            measured: dict[str, float] = {}
            for kind, batches in kinds.items():
                measured |= snr_at(flat, run, batches, asked.gradients, asked.seed, kind)
                meter.advance(1)
            rows.append(row(setting, measured))
    finally:
        meter.close()
    print(f"{asked.cohort}/{asked.run}, {asked.gradients} gradients each, mean SNR, {time.monotonic() - start:.0f} s\n")
    for line in (HEADINGS, ("---", *["--:"] * (len(HEADINGS) - 1)), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    run_stage(main)
