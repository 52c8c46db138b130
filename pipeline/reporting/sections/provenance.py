"""How results were made: cells and their commands, time, machines, data, protocol, departures from the papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pandas as pd

from pipeline.experiments.known import RAINFORTH_TABLE1
from pipeline.experiments.names import CellName, CohortKey
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import CohortSpec
from pipeline.published import RAINFORTH_RUNS
from pipeline.records.metrics import value_of
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import NOT_RUN, dataset_name, gather
from pipeline.reporting.forms.numbers import DASH, number
from pipeline.reporting.forms.tables import Table

HOURS = ("GPU-hours", "core-hours")


def cohort_command(cohort: str) -> str:
    """What makes a cohort, with everything that it needs."""
    return f"dvc repro evaluate@{cohort}"


def duration(seconds: float) -> str:
    """`42 s`, `12 min 30 s` or `5 h 03 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def elapsed(runs: Sequence[RunResult]) -> float:
    """Seconds from the first start to the last finish of the runs' training."""
    starts = [datetime.fromisoformat(run.training["started"]) for run in runs if run.training.get("started")]
    ends = [datetime.fromisoformat(run.training["finished"]) for run in runs if run.training.get("finished")]
    if not starts or not ends:
        return max((training_wall_seconds(run) for run in runs), default=0.0)
    return (max(ends) - min(starts)).total_seconds()


def training_wall_seconds(run: RunResult) -> float:
    """Wall time of a run's training, all stretches together; 0 where it is not recorded, as in DVC's copies."""
    return float(run.training.get("wall_s", 0.0))


def evaluation_wall_seconds(run: RunResult) -> float:
    """Wall time of a run's evaluation; 0 where it is not recorded."""
    return float(run.evaluation.get("wall_s", 0.0))


def gpu_minutes(run: RunResult) -> float | None:
    """A run's share of the GPU's time: its stack's, over the runs that trained in it. None where a CPU trained it."""
    return None if on_cpu(run) else training_wall_seconds(run) / 60 / int(run.training.get("stacked", 1))


def on_cpu(run: RunResult) -> bool:
    """Whether a CPU trained the run; its device is then named for the processor, else for the graphics card."""
    device = str(run.training.get("device", "")).lower()
    return not any(maker in device for maker in ("nvidia", "radeon", "instinct"))


def device_hours(runs: Sequence[RunResult]) -> tuple[float, float]:
    """(GPU-hours, core-hours) of a cohort's training and evaluation.

    On a GPU the runs of a cohort train at once, so that the longest counts; on a CPU each occupies its threads.
    """
    cores = [run for run in runs if on_cpu(run)]
    stacked = [run for run in runs if not on_cpu(run)]
    core_seconds = sum(
        int(run.training.get("threads", 1)) * (training_wall_seconds(run) + evaluation_wall_seconds(run))
        for run in cores
    )
    gpu_seconds = max(map(training_wall_seconds, stacked), default=0.0) + sum(map(evaluation_wall_seconds, stacked))
    return gpu_seconds / 3600, core_seconds / 3600


def by_cohort(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Cohort key -> its runs; cohorts and runs keep the order in which they are met."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.cohort, []).append(result)
    return groups


def _distinct(values: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _table(
    name: str, title: str, caption: str, rows: list[dict[str, Any]], groups: Sequence[str] | None = None
) -> Table:
    """A table whose data are what it shows."""
    frame = pd.DataFrame(rows)
    return Table(name, title, caption, frame, frame, tuple(groups or [""] * len(rows)), kinds=("csv",))


def _hours(value: float) -> str:
    return f"{value:.2f}" if value else DASH


def cohorts(results: Sequence[RunResult]) -> Table:
    """What each cohort took; the caption adds up."""
    rows = []
    hours = [0.0, 0.0]
    for key, runs in by_cohort(results).items():
        gpu, core = device_hours(runs)
        hours = [hours[0] + gpu, hours[1] + core]
        rows.append(
            {
                "cohort": CohortKey.of(key).name,
                "runs": str(len(runs)),
                "training": duration(elapsed(runs)),
                "evaluation": duration(sum(map(evaluation_wall_seconds, runs))),
                "GPU-hours": _hours(gpu),
                "core-hours": _hours(core),
                "device": _distinct([run.training.get("device") for run in runs]),
            }
        )
    total = " and ".join(f"{value:.2f} {unit}" for value, unit in zip(hours, HOURS, strict=True) if value)
    caption = (
        f"In all {total or 'no time'}.\nTraining: from the first start to the last finish of a cohort's runs, pauses "
        "included. Evaluation: summed over runs. In GPU-hours a cohort's runs, which train at once, count as one."
    )
    return _table("cohorts", "Time that each cohort took", caption, rows)


def machines(results: Sequence[RunResult]) -> Table:
    """Hardware and versions, each combination once."""
    groups: dict[tuple[str, ...], int] = {}
    for run in results:
        made = run.training
        key = (
            str(made.get("device", DASH)),
            str(made.get("workers", DASH)),
            str(made.get("threads", DASH)),
            str(made.get("torch", DASH)),
            str(made.get("python", DASH)),
            run.spec.precision,
            str(made.get("git_revision") or DASH)[:10],
        )
        groups[key] = groups.get(key, 0) + 1
    names = ("device", "processes", "threads each", "torch", "python", "precision", "revision")
    rows = [{**dict(zip(names, key, strict=True)), "runs": str(count)} for key, count in groups.items()]
    caption = "What trained the runs.\nThe revision is the commit of this project at the time."
    return _table("machines", "Hardware and versions", caption, rows)


def cells(results: Sequence[RunResult], planned: Sequence[CohortSpec]) -> Table:
    """One row per run, of the grid or beyond it, with the command that makes it."""
    known = {result.cell: result for result in results}
    names = {f"{cohort.key}/{run.name}": cohort.key for cohort in planned for run in cohort.runs}
    names |= {result.cell: result.cohort for result in results}
    data, display = [], []
    for cell, cohort in sorted(names.items(), key=lambda item: item[1]):
        run = known.get(cell)
        made, evaluated = (run.training, run.evaluation) if run else ({}, {})
        nll, steps = (value_of(run.metrics, "nll"), run.training.get("steps")) if run else (None, None)
        data.append(
            {
                "cell": CellName.of(cell).within_scale,
                "status": run.status if run else NOT_RUN,
                "nll": nll,
                "steps": steps,
                "training_s": training_wall_seconds(run) if run else None,
                "evaluation_s": evaluation_wall_seconds(run) if run else None,
                "gpu_minutes": gpu_minutes(run) if run else None,
                "digest": run.digest if run else None,
                "algorithm_version": run.spec.algorithm_version if run else None,
                "engine": made.get("engine"),
                "revision": made.get("git_revision"),
                "training_command": made.get("command"),
                "evaluation_command": evaluated.get("command"),
                "command": cohort_command(cohort),
            }
        )
        display.append(
            {
                "run": CellName.of(cell).run,
                "status": run.status if run else NOT_RUN,
                "NLL": number(nll),
                "steps": DASH if steps is None else f"{steps:,}",
                "training": duration(training_wall_seconds(run)) if run else DASH,
                "evaluation": duration(evaluation_wall_seconds(run)) if run else DASH,
                "GPU minutes": number(gpu_minutes(run) if run else None),
                "engine": str(made.get("engine") or DASH),
                "algorithm version": str(run.spec.algorithm_version) if run else DASH,
                "digest": run.digest if run else DASH,
                "revision": str(made.get("git_revision") or DASH)[:10],
                "command": cohort_command(cohort),
                "trained by": str(made.get("command") or DASH),
                "evaluated by": str(evaluated.get("command") or DASH),
            }
        )
    caption = (
        "The command makes the cell's cohort and all that it needs.\nWhat is finished already is not computed again. "
        "Trained by and evaluated by: what computed these numbers, which may have been for another cohort with the "
        "same run. GPU minutes: the training time over the runs that trained in one stack. Digest: names the run's "
        "configuration and data; algorithm version: rises when the training code comes to compute other numbers; "
        "engine: which of the implementations of training ran; revision: the commit of this project."
    )
    groups = tuple(sorted(names.values()))
    title = "Every cell and the command that makes it"
    return Table("cells", title, caption, pd.DataFrame(data), pd.DataFrame(display), groups, kinds=("csv",))


def protocol(results: Sequence[RunResult]) -> Table:
    """What the paper says beside what the authors' code does; single switches are in a table of their own."""
    used = {result.spec.protocol_name for result in results}
    fields = {name: {key: str(value) for key, value in asdict(of).items()} for name, of in PROTOCOLS.items()}
    titles = {name: f"{name} (used here)" if name in used else name for name in PROTOCOLS}
    details = list(next(iter(fields.values())))
    rows = [
        {"detail": detail.replace("_", " "), **{titles[name]: values[detail] for name, values in fields.items()}}
        for detail in details
    ]
    caption = "Details on which the paper's text (paper-text) and the authors' code (published-code) differ."
    return _table("protocol", "Protocol", caption, rows)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix} / {key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _flatten(inner, prefix)
    else:
        yield prefix, str(value)


def data_sources(results: Sequence[RunResult]) -> list[tuple[str, str, str]]:
    """(dataset, what, digest or source) of the data that the runs were trained on, each once."""
    rows = ((r.spec.dataset, *row) for r in results for row in _flatten(r.training.get("data", {})))
    return list(dict.fromkeys(rows))


def data(results: Sequence[RunResult]) -> Table:
    """Where each dataset came from, how many images it has, and the SHA-256 digests of its files."""
    rows = [{"what": what, "digest or source": value} for _, what, value in data_sources(results)]
    caption = "SHA-256 digests of the raw files and of what was made of them, with their sources and counts."
    groups = [dataset for dataset, _, _ in data_sources(results)]
    return _table("data", "Data", caption, rows, groups)


def _spread(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def measured(results: list[RunResult]) -> str:
    """On how much the numbers rest: `1,000 updates per run, 100 test images, 5,000 samples per image, 1 seed`."""
    finished = [run for run in results if run.is_finished]
    if not finished:
        return ""
    parts = [f"{_spread([int(run.training.get('steps', run.spec.total_steps)) for run in finished])} updates per run"]
    for key, words in (("test_images", "test images"), ("num_samples", "samples per image")):
        if values := [int(run.metrics[key]) for run in finished if key in run.metrics]:
            parts.append(f"{_spread(values)} {words}")
    seeds = _spread(
        [len({run.spec.seed for run in cell.runs}) for place_cells in gather(finished).values() for cell in place_cells]
    )
    return ", ".join([*parts, "1 seed" if seeds == "1" else f"{seeds} seeds"])


def deviations(results: Sequence[RunResult]) -> list[str]:
    """Where these results depart from what the papers did, one sentence each."""
    sentences = []
    epochs = sum(stage.epochs for stage in burda_schedule(True))
    cut = [
        run
        for run in results
        if run.spec.continues is None and run.spec.total_steps < epochs * run.spec.steps_per_epoch
    ]
    if cut:
        wanted = [epochs * run.spec.steps_per_epoch for run in cut]
        sentences.append(
            f"Training stops early: {_spread([run.spec.total_steps for run in cut])} updates in place of "
            f"{_spread(wanted)} ({epochs:,} epochs)."
        )
    fewer: dict[tuple[str, int], set[int]] = {}
    for run in results:
        counts = run.training.get("data", {}).get("counts", {}).get("test_images")
        if "test_images" in run.metrics and counts is not None and run.metrics["test_images"] < counts:
            fewer.setdefault((dataset_name(run.spec.dataset), int(counts)), set()).add(int(run.metrics["test_images"]))
    sentences += [
        f"NLL over {_spread(list(few))} of the {all_:,} test images of {name}."
        for (name, all_), few in sorted(fewer.items())
    ]
    paper = asdict(PROTOCOLS["paper-text"])
    whole = {run.spec.protocol_name: run.spec.protocol for run in results if run.spec.protocol_name in PROTOCOLS}
    for name, used in whole.items():
        other = [key.replace("_", " ") for key, value in asdict(used).items() if value != paper[key]]
        if other:
            sentences.append(f"Protocol {name} differs from the paper's text in: {', '.join(other)}.")
    for precision in dict.fromkeys(run.spec.precision for run in results if run.spec.precision != "float32"):
        sentences.append(f"Matrix products in {precision}.")
    seeds = [
        len({run.spec.seed for run in runs})
        for runs in by_cohort(results).values()
        if runs[0].experiment == RAINFORTH_TABLE1
    ]
    if seeds and min(seeds) < RAINFORTH_RUNS:
        sentences.append(f"Rainforth et al. average {RAINFORTH_RUNS} runs; here {_spread(seeds)} of each setting.")
    if results:
        sentences.append(
            "Random numbers, the test set's binarization among them, come from another generator than the authors'."
        )
    return sentences
