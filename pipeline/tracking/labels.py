"""What a run and an experiment are called in MLflow, and what stands beside them: params, tags, numbers, notes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from pipeline.experiments.names import CellName, CohortKey
from pipeline.experiments.schedule import burda_schedule, learning_rate
from pipeline.experiments.spec import BATCH_SIZE, RunSpec
from pipeline.records.metrics import METRIC_TABLE, value_of
from pipeline.records.results import RunResult

# Tags by which the store's runs are recognised.
CELL, COHORT, SCALE, DIGEST = "cell", "cohort", "scale", "digest"
SCHEDULE = "schedule"
"""How much a run is trained, in words; the saved views have one each."""
COMPLETE = "complete"
"""Fingerprint of the published content; set last, so that an interrupted publication is never taken for a whole one."""
LOGGED_FILES = "files"
"""What a published run logged: by name the beginning of each file's SHA-256, as JSON."""
NOTE = "mlflow.note.content"
COLOUR = "mlflow.runColor"

FINAL_METRICS = (
    *("nll", "nll_se", "nll_pruned", "iwae_64", "kl_q_p", "ess_64"),
    *("active_units", "active_units_1", "active_units_2"),
)
"""What MLflow shows of an evaluation under `test/`; the artifact `result.json` has all of it."""
WAYPOINT_METRICS = ("nll", "active_units")
"""What it shows of the evaluations on the way, under `waypoint/`."""


def experiment_name(scale: str, dataset: str) -> str:
    """The name of MLflow's experiment that has the runs of a scale on a dataset."""
    return f"{scale}/{dataset}"


def schedule(spec: RunSpec) -> str:
    """`3280 epochs`, or `1000 updates` where the schedule is cut inside of an epoch."""
    epochs, rest = divmod(spec.total_steps, spec.steps_per_epoch)
    if rest or not epochs:
        return f"{spec.total_steps} updates"
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def run_title(spec: RunSpec, experiment: str) -> str:
    """`iwae-M1-K50-1L-s0, burda-table1, 3280 epochs`: no other run of the scale and dataset is called so.

    A continued run also says what it continues: `... after vae-M1-K1, ...`.
    """
    suffix = f"-s{spec.seed}"
    name = f"{spec.name.removesuffix(suffix)}-{spec.layers}L{suffix}"
    if spec.continues is not None:
        name = f"{name} after {CellName.of(spec.continues).run.removesuffix(suffix)}"
    return f"{name}, {experiment}, {schedule(spec)}"


def vae_weight(spec: RunSpec) -> float | None:
    """CIWAE's beta, of which VAE and IWAE are the ends, so that all can stand on one axis; None for Renyi's bounds."""
    if spec.objective.startswith("vr"):
        return None
    return spec.parameter if spec.objective == "ciwae" else float(spec.objective == "vae")


def run_params(spec: RunSpec) -> dict[str, str]:
    """All that one would filter or group by, numbers as numbers.

    `beta` is the weight of the VAE's bound in the objective, which all but VR have. The protocol's fields have their
    own names.
    """
    # torch takes seconds to import, which opening the store alone should not pay.
    from pipeline.models.networks import HIDDEN_WIDTHS
    from pipeline.objectives import OBJECTIVES

    known = OBJECTIVES.get(spec.objective)
    params = {
        "objective": spec.objective,
        "M": spec.M,
        "K": spec.K,
        "T": spec.T,
        "beta": vae_weight(spec),
        (known and known.parameter) or "parameter": spec.parameter,
        "layers": spec.layers,
        "latent": "+".join(map(str, spec.latent)),
        "hidden": "+".join(map(str, HIDDEN_WIDTHS[: spec.layers])),
        "seed": spec.seed,
        "batch_size": BATCH_SIZE,
        "learning_rate_first": spec.schedule[0].learning_rate,
        "learning_rate_last": learning_rate(spec, spec.total_steps - 1),
        "train_images": spec.train_images,
        "max_steps": spec.max_steps,
        "total_steps": spec.total_steps,
        "precision": spec.precision,
        "protocol": spec.protocol_name,
        **asdict(spec.protocol),
    }
    return {name: _as_text(value) for name, value in params.items() if value is not None}


def _as_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_tags(
    cohort: str, experiment: str, spec: RunSpec, digest: str, dvc_stage: str | None, git_revision: str | None
) -> dict[str, str]:
    """The tags by which a run is found in MLflow; what is not known has none.

    `cohort`: its key. `experiment`: its name in params.yaml. `digest`: of the trained run. `dvc_stage`: the stage that
    trained it.
    """
    tags = {
        SCALE: CohortKey.of(cohort).scale,
        "experiment": experiment,
        COHORT: cohort,
        CELL: f"{cohort}/{spec.name}",
        "objective": spec.objective,
        "dataset": spec.dataset,
        "layers": str(spec.layers),
        SCHEDULE: schedule(spec),
        DIGEST: digest,
        "dvc.stage": dvc_stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "stages/train.py",
        "mlflow.source.git.commit": git_revision,
    }
    return {name: value for name, value in tags.items() if value is not None}


def _chosen(metrics: Mapping[str, float], names: Iterable[str], group: str) -> dict[str, float]:
    """`<group>/<name>` -> the metric, as far as a run with these `metrics` has it."""
    values = {f"{group}/{name}": value_of(metrics, name) for name in names}
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def waypoint_metrics(result: RunResult) -> list[tuple[int, dict[str, float]]]:
    """Updates and the numbers under `waypoint/` there, to be drawn as curves; none for a run without waypoints."""
    if not result.waypoints:
        return []
    measured = [*((waypoint.steps, waypoint.metrics) for waypoint in result.waypoints)]
    measured.append((result.spec.total_steps, result.metrics))
    return [(steps, _chosen(metrics, WAYPOINT_METRICS, "waypoint")) for steps, metrics in measured]


def final_metrics(result: RunResult, paper: float | None) -> dict[str, float]:
    """The numbers of the evaluation under `test/`, and the published one, where there is one, under `paper/`."""
    values = _chosen(result.metrics, FINAL_METRICS, "test")
    if paper is not None and math.isfinite(paper):
        values["paper/nll"] = round(paper, 4)
        if (nll := value_of(result.metrics, "nll")) is not None:
            values["paper/delta"] = round(nll - paper, 4)
    return values


def content_fingerprint(result: RunResult, metrics: dict[str, float]) -> str:
    """Changes whenever a published number does, be it ours or the paper's."""
    note = run_description(result, metrics)
    content = [
        run_title(result.spec, result.experiment),
        run_params(result.spec),
        metrics,
        result.evaluation.get("digest"),
        note,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _meanings() -> str:
    """A line for each metric under `test/`, of the one table of metrics."""
    lines = []
    for name in FINAL_METRICS:
        metric = METRIC_TABLE[name]
        better = f", {metric.better} is better" if metric.better else ""
        lines.append(f"- `test/{name}` ({metric.unit}{better}): {metric.meaning}")
    return "\n".join(lines)


def description(scale: str, dataset: str) -> str:
    """What the page of one MLflow experiment says on top, in Markdown; its first line also stands in their list."""
    full = sum(stage.epochs for stage in burda_schedule(rounded=True))
    return (
        f"{dataset} at scale {scale}: runs of Burda et al. (2016) and Rainforth et al. (2018).\n"
        f"\n{_meanings()}\n"
        "- `paper/nll`: the published value, `paper/delta`: ours minus the paper's, which compares only after the "
        f"papers' {full} epochs\n"
        "- `train/*`: averages per image over training, in nats\n"
        "- `waypoint/*`: NLL and active units at the ends of the schedule's stages\n"
        "- `beta`: weight of the VAE's bound: 1 for VAE, 0 for IWAE, MIWAE and PIWAE, between for CIWAE\n\n"
        "The saved views have the charts to begin with, one view for each schedule, since only runs of one "
        "schedule compare. Tick runs and press *Compare*, or group by the tag `objective` or the param `K`. "
        f"Tables with the papers' numbers: `reports/{scale}/index.html`."
    )


def run_description(result: RunResult, metrics: Mapping[str, float]) -> str:
    """What a run's page says: its cell and how to make it, its NLL beside the paper's, where to read on."""
    under_way = f", under way to {result.planned_steps} updates" if result.is_under_way else ""
    lines = [f"Cell `{result.cell}`, made by `dvc repro evaluate@{result.cohort}`: {result.status}{under_way}."]
    if "test/nll" in metrics:
        paper = "no published value"
        if "paper/nll" in metrics:
            paper = f"the paper {metrics['paper/nll']:.2f}, ours minus the paper's {metrics['paper/delta']:+.2f}"
        error = f" ± {metrics['test/nll_se']:.2f}" if "test/nll_se" in metrics else ""
        lines.append(f"Test NLL {metrics['test/nll']:.2f}{error} nats; {paper}.")
    lines.append(
        f"Beside all other cells: `reports/{result.scale}/index.html`; every number: the artifact `result.json`."
    )
    return "\n\n".join(lines)
