"""A second opinion on a trained run's likelihood: annealed importance sampling beside the importance-weighted estimate.

    python -m stages.ais quick/burda-table1-mnist-1L-T50 iwae-M1-K50-s0 --images 20 --steps 1000 --chains 16
    python -m stages.ais paper

The second form takes VAE k = 1 and IWAE k = 50 of Burda's Table 1 at every dataset and depth of a scale, as far as they
are trained and were not done before: is "IWAE beats VAE" about decoders or about proposals? A run that was not trained
on this machine is looked at by its shipped weights.

Optional: no other stage asks for it. Says what it will take, then writes
`reports/<scale>/results/<cohort>/ais-<run>.json`, which the report shows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.ais import AisSpec, facts, second_opinion
from pipeline.evaluation.images import Images
from pipeline.evaluation.spacing import evenly_spaced
from pipeline.experiments.cohorts import load_cohort, load_cohorts
from pipeline.experiments.known import BURDA_TABLE1
from pipeline.experiments.params import Params, load_params
from pipeline.experiments.spec import CohortSpec, RunSpec
from pipeline.files import content_of, write_json
from pipeline.paths import Paths
from pipeline.published import Setting
from pipeline.records.run_folder import read_weights
from pipeline.records.sums import read_sealed, sealed
from pipeline.records.trained import Trained, trained, trained_run
from pipeline.reporting.evidence.proposals import IWAE, VAE
from pipeline.work.console import ProgressMeter
from pipeline.work.machine import resolve_device
from pipeline.work.memory import keep_freed_memory
from stages import run_stage

TIMED_TRANSITIONS = 5
REMEDY = "delete it, and run the same command again"


def positive(text: str) -> int:
    """An option's value as a whole number.

    Raises: argparse.ArgumentTypeError below 2, where no standard error can be told.
    """
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too few; at least 2")
    return value


def parse() -> argparse.Namespace:
    """Which runs the command line asks for, and with how many images, temperatures and chains."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m stages.ais", description=__doc__, formatter_class=shape)
    parser.add_argument("cohort", help="e.g. quick/burda-table1-mnist-1L-T50; or a scale, e.g. paper")
    parser.add_argument("run", nargs="?", help="e.g. iwae-M1-K50-s0; none with a scale")
    parser.add_argument("--images", type=positive, default=20, help="test images, and as many simulated (default 20)")
    parser.add_argument("--steps", type=positive, default=1000, help="temperatures of the path (default 1000)")
    parser.add_argument("--chains", type=positive, default=16, help="chains per image (default 16)")
    parser.add_argument("--seed", type=int, default=123)
    return parser.parse_args()


def pairs_of(scale: str, paths: Paths) -> list[tuple[CohortSpec, RunSpec]]:
    """VAE k = 1 and IWAE k = 50 of Burda's Table 1 at every dataset and depth that a scale has.

    Raises: UserError when there is no such scale, or when it does not run that table.
    """
    every = load_cohorts(paths.cohorts).values()
    pairs = [
        (cohort, run)
        for cohort in every
        if (cohort.scale, cohort.experiment) == (scale, BURDA_TABLE1)
        for run in cohort.runs
        if Setting.of(run) in (VAE, IWAE)
    ]
    if not pairs:
        scales = sorted({cohort.scale for cohort in every if cohort.experiment == BURDA_TABLE1})
        raise UserError(
            f"{scale}: no scale with {BURDA_TABLE1}; choose one of {', '.join(scales)}, or name cohort and run"
        )
    return pairs


def target_of(cohort: CohortSpec, run: RunSpec, paths: Paths) -> Path:
    """Where the opinion on a run is kept: `reports/<scale>/results/<cohort>/ais-<run>.json`."""
    return paths.cohort_results(cohort.key) / f"ais-{run.name}.json"


def is_done(target: Path, digest: str, asked: dict[str, int]) -> bool:
    """Whether these weights were looked at in this way before, as the file `target` tells."""
    if not target.exists():
        return False
    known = read_sealed(target, REMEDY)
    with content_of(target, "a second opinion", REMEDY):
        return bool(known["digest"] == digest and all(known["how"].get(name) == value for name, value in asked.items()))


def main(paths: Paths) -> None:
    """Estimate log p(x) by annealed importance sampling for one run, or for the pairs of a scale that lack it."""
    asked = parse()
    params = load_params(paths.params)
    device = resolve_device(params.device)
    keep_freed_memory()
    if asked.run is not None:
        known = load_cohort(paths.cohorts, asked.cohort)
        second_opinion_of(trained_run(asked.cohort, asked.run, paths), known, asked, params, device, paths)
        return
    how = {"images": asked.images, "transitions": asked.steps, "chains": asked.chains, "seed": asked.seed}
    for cohort, run in pairs_of(asked.cohort, paths):
        model, target = trained(cohort, run, paths), target_of(cohort, run, paths)
        if model is None:
            print(f"{cohort.key}/{run.name}: not trained yet; left out", flush=True)
        elif is_done(target, model.digest, how):
            print(f"{cohort.key}/{run.name}: done before -> {target}", flush=True)
        else:
            second_opinion_of(model, cohort, asked, params, device, paths)


def second_opinion_of(
    model: Trained, cohort: CohortSpec, asked: argparse.Namespace, params: Params, device: torch.device, paths: Paths
) -> None:
    """Check one trained run and write what was found."""
    run = model.spec
    flat = read_weights(model.weights, run.latent, model.digest).to(device)
    bits = load_dataset(paths.binarized(run.dataset)).test_bits
    test = Images.of(bits, evenly_spaced(len(bits), asked.images), device)
    samples = params.scales[cohort.scale].evaluation.num_samples
    spec = AisSpec(len(test), asked.steps, asked.chains, samples, asked.seed)
    print(f"{cohort.key}/{run.name}: {expected(flat, run, test, spec)}", flush=True)
    start = time.monotonic()
    meter = ProgressMeter(f"{run.name} ais", spec.work, "transition")
    try:
        summary, arrays = second_opinion(flat, run.latent, test, spec, meter.advance)
    finally:
        meter.close()
    target = target_of(cohort, run, paths)
    images = {name: values.tolist() for name, values in arrays.items()}
    identity = {"cohort": cohort.key, "run": run.name, "digest": model.digest}
    write_json(target, sealed({**identity, "summary": summary, "images": images, "how": facts(spec, flat)}))
    print(
        f"NLL of {len(test)} test images: {-summary['test/estimate']:.2f} by {samples} samples,"
        f" {-summary['test/lower']:.2f} by AIS (lower by {summary['test/lower_minus_estimate']:.2f}"
        f" ± {summary['test/lower_minus_estimate_se']:.2f}); on simulated images the sandwich is"
        f" {summary['simulated/upper_minus_lower']:.2f} nats wide; {time.monotonic() - start:.0f} s -> {target}"
    )


def expected(flat: torch.Tensor, run: RunSpec, test: Images, spec: AisSpec) -> str:
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
