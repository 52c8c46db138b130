"""The second opinions on NLL that `python -m stages.ais` left among the results, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.experiments.names import CohortKey
from pipeline.files import content_of
from pipeline.records.results import RunResult
from pipeline.records.sums import read_sealed
from pipeline.reporting.evidence.cells import dataset_name, layers_name
from pipeline.reporting.evidence.proposals import gains
from pipeline.reporting.forms.numbers import number
from pipeline.reporting.forms.tables import Table

COLUMNS = {
    "test/estimate": "NLL, estimate",
    "test/lower": "NLL, AIS",
    "test/lower_minus_estimate": "estimate − AIS",
    "simulated/estimate": "simulated: estimate",
    "simulated/lower": "AIS",
    "simulated/upper": "reverse chain",
}
REMEDY = "delete it, and make it anew where it is wanted (python -m stages.ais)"
NEGATED = {"test/estimate", "test/lower", "simulated/estimate", "simulated/lower", "simulated/upper"}


def opinions(results: Path) -> list[dict[str, Any]]:
    """The content of every `ais-<run>.json` under `reports/<scale>/results`.

    Raises: UserError naming the file that is not one.
    """
    contents = []
    for path in sorted(results.glob("*/ais-*.json")):
        one = read_sealed(path, REMEDY)
        with content_of(path, "a second opinion", REMEDY):
            contents.append({"cohort": str(one["cohort"]), "run": str(one["run"]), **one})
    return contents


def ais_tables(results: Path) -> list[Table]:
    """One table of every `ais-<run>.json` under `reports/<scale>/results`; none where there is none."""
    second_opinions = opinions(results)
    if not second_opinions:
        return []
    rows = []
    for one in second_opinions:
        with content_of(
            results / CohortKey.of(one["cohort"]).name / f"ais-{one['run']}.json", "a second opinion", REMEDY
        ):
            summary, how = one["summary"], one["how"]
            values = {name: -summary[name] if name in NEGATED else summary[name] for name in COLUMNS}
            error = {"se": summary["test/lower_minus_estimate_se"]}
            asked = {name: how[name] for name in ("num_samples", "images", "transitions", "chains")}
            rows.append({"cohort": one["cohort"], "run": one["run"], **values, **error, **asked})
    data = pd.DataFrame(rows)
    display = pd.DataFrame({"run": data["run"]})
    for name, heading in COLUMNS.items():
        display[heading] = [number(value) for value in data[name]]
        if name == "test/lower_minus_estimate":
            display["±"] = [number(value) for value in data["se"]]
    how = second_opinions[0]["how"]
    caption = (
        "The estimate and AIS should agree: what they differ by, the estimate is off by at least.\n"
        f"NLL in nats of evenly spaced test images: the estimate of {how['num_samples']:,} importance samples from the "
        "encoder beside annealed importance sampling, which does not use the encoder. Both are upper bounds of the "
        "NLL on average, so their difference (± over images) is what the estimate is off by at least. On images "
        "simulated from the model the reverse chain bounds the NLL from below: the truth lies between it and AIS."
    )
    return [Table("ais", "Is the NLL right? A second opinion", caption, data, display, tuple(data["cohort"]))]


def gains_table(results: Path, runs: Sequence[RunResult]) -> Table | None:
    """What IWAE k = 50 gains over VAE k = 1, by the estimate and by AIS; None before both were looked at."""
    rows = gains(opinions(results), {run.cell: run for run in runs})
    if not rows:
        return None
    data = pd.DataFrame([asdict(one) for one in rows])
    display = pd.DataFrame(
        [
            {
                "depth": layers_name(one.layers),
                "seed": str(one.seed),
                "gain, estimate": f"{number(one.estimate, signed=True)} ± {number(one.estimate_se)}",
                "gain, AIS": f"{number(one.ais, signed=True)} ± {number(one.ais_se)}",
                "AIS − estimate": f"{number(one.proposals, signed=True)} ± {number(one.proposals_se)}",
            }
            for one in rows
        ]
    )
    caption = (
        "Where both columns give the same gain, it is the decoder's and not the proposal's.\n"
        f"log p(x) of IWAE k = 50 minus VAE k = 1 in nats, ± over the {rows[0].images} test images, paired. The "
        "estimate uses each model's encoder, AIS the decoder alone."
    )
    title = "Does IWAE's gain lie in the decoder?"
    return Table("ais_gains", title, caption, data, display, tuple(dataset_name(one.dataset) for one in rows))
