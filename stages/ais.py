"""A second opinion on a trained run's likelihood: annealed importance sampling beside the importance-weighted estimate.

    python -m stages.ais quick/burda-table1-mnist-1L-T50 iwae-M1-K50-s0 --images 20 --steps 1000 --chains 16

Optional: no other stage asks for it. Says what it will take, then writes
`reports/<scale>/results/<cohort>/ais-<run>.json`, which the report shows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from pipeline.cohorts import COHORTS, RUNS, binarized, load_cohort
from pipeline.config import load_params
from pipeline.console import ProgressMeter
from pipeline.data.datasets import load_dataset
from pipeline.device import resolve_device
from pipeline.errors import UserError
from pipeline.evaluation.ais import AisSpec, facts, second_opinion
from pipeline.evaluation.evaluate import evenly_spaced
from pipeline.files import write_json
from pipeline.grid import PARAMS
from pipeline.memory import keep_freed_memory
from pipeline.spec import RunSpec
from pipeline.store import training_folder
from pipeline.training.state import WEIGHTS, read_run, read_weights
from stages import run_stage

TIMED_TRANSITIONS = 5


def positive(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too few; at least 2")
    return value


def parse() -> argparse.Namespace:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m stages.ais", description=__doc__, formatter_class=shape)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50")
    parser.add_argument("run", help="e.g. iwae-M1-K50-s0")
    parser.add_argument("--images", type=positive, default=20, help="test images, and as many simulated (default 20)")
    parser.add_argument("--steps", type=positive, default=1000, help="temperatures of the path (default 1000)")
    parser.add_argument("--chains", type=positive, default=16, help="chains per image (default 16)")
    parser.add_argument("--seed", type=int, default=123)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    cohort = load_cohort(COHORTS, asked.cohort)
    names = [run.name for run in cohort.runs]
    if asked.run not in names:
        raise UserError(f"{cohort.key} has no run {asked.run!r}; choose one of {', '.join(names)}")
    folder = training_folder(RUNS, cohort.key) / asked.run
    content = read_run(folder)
    if content["status"] != "finished":
        raise UserError(f"{cohort.key}/{asked.run} {content['status']}; its likelihood means nothing")
    run = RunSpec.from_json(content["spec"])
    params = load_params(PARAMS)
    device = resolve_device(params.device)
    keep_freed_memory()
    flat = read_weights(folder / WEIGHTS, run.latent).to(device)
    bits = load_dataset(binarized(run.dataset)).test_bits
    test = torch.from_numpy(bits[evenly_spaced(len(bits), asked.images)]).float().to(device)
    samples = params.scales[cohort.scale].evaluation.num_samples
    spec = AisSpec(len(test), asked.steps, asked.chains, samples, asked.seed)
    print(f"{cohort.key}/{run.name}: {expected(flat, run, test, spec)}", flush=True)
    start = time.monotonic()
    meter = ProgressMeter(f"{run.name} ais", spec.work, "transition")
    try:
        summary, arrays = second_opinion(flat, run.latent, test, spec, meter.advance)
    finally:
        meter.close()
    took = time.monotonic() - start
    target = Path("reports") / cohort.scale / "results" / cohort.name / f"ais-{run.name}.json"
    images = {name: values.tolist() for name, values in arrays.items()}
    done = {**facts(spec, flat), "wall_s": round(took, 1)}
    identity = {"cohort": cohort.key, "run": run.name, "digest": content["digest"]}
    write_json(target, {**identity, "summary": summary, "images": images, "how": done})
    print(
        f"NLL of {len(test)} test images: {-summary['test/estimate']:.2f} by {samples} samples,"
        f" {-summary['test/lower']:.2f} by AIS (lower by {summary['test/lower_minus_estimate']:.2f}"
        f" ± {summary['test/lower_minus_estimate_se']:.2f}); on simulated images the sandwich is"
        f" {summary['simulated/upper_minus_lower']:.2f} nats wide; {took:.0f} s -> {target}"
    )


def expected(flat: torch.Tensor, run: RunSpec, test: torch.Tensor, spec: AisSpec) -> str:
    """What the work will take, from a few timed transitions of one block."""
    few = AisSpec(len(test), TIMED_TRANSITIONS, spec.chains, 2, spec.seed)
    start: list[float] = []
    second_opinion(flat, run.latent, test, few, lambda count: start.append(time.monotonic()))
    seconds = (start[-1] - start[0]) / (len(start) - 1) * spec.work
    length = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    images = f"{spec.images} test and {spec.images} simulated images"
    return f"{images}, {spec.chains} chains, {spec.transitions} temperatures: about {length}"


if __name__ == "__main__":
    run_stage(main)
