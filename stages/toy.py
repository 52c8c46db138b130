"""Gradient signal-to-noise on Rainforth's Gaussian model: `python -m stages.toy quick` -> reports/<scale>/results/."""

from __future__ import annotations

import argparse
import time

from pipeline.array_files import write_arrays
from pipeline.errors import UserError
from pipeline.evaluation.gaussian_toy import measure_toy
from pipeline.experiments.params import load_params
from pipeline.files import write_json
from pipeline.paths import Paths
from pipeline.records.results import ARRAYS, METRICS, TOY
from pipeline.records.sums import write_sums
from pipeline.work.console import ProgressMeter
from pipeline.work.machine import resolve_device
from pipeline.work.memory import keep_freed_memory
from stages import run_stage


def main(paths: Paths) -> None:
    """Measure the Gaussian model as a scale asks, and print the slopes of the ratios against K beside the closed forms.

    Raises: UserError when the scale asks for none.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.toy", description=__doc__)
    parser.add_argument("scale", help="e.g. quick")
    scale = parser.parse_args().scale
    params = load_params(paths.params)
    known = [name for name, settings in params.scales.items() if settings.toy]
    if scale not in known:
        raise UserError(f"{scale}: no scale with a `toy` in {paths.params}; choose one of {', '.join(known)}")
    toy = params.scales[scale].toy
    assert toy is not None
    spec = toy.spec()
    keep_freed_memory()
    start = time.monotonic()
    meter = ProgressMeter(f"{scale} toy", spec.gradients * sum(spec.samples), "sample")
    try:
        metrics, arrays = measure_toy(spec, resolve_device(params.device), advance=meter.advance)
    finally:
        meter.close()
    folder = paths.results(scale) / TOY
    write_arrays(folder / ARRAYS, arrays)
    write_json(folder / METRICS, metrics)
    write_sums(folder, (ARRAYS, METRICS))
    slopes = ", ".join(
        f"{name} {metrics[f'slope/{key}']:.2f} ({metrics[f'slope_closed_form/{key}']:.2f} in closed form)"
        for name, key in (("IWAE encoder", "iwae/encoder"), ("IWAE decoder", "iwae/mu"))
    )
    print(f"{scale} toy: slopes over K: {slopes}; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run_stage(main)
