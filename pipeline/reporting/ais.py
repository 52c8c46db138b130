"""The second opinions on NLL that `python -m stages.ais` left among the results, as a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.files import read_json
from pipeline.reporting.tables import Table, number

COLUMNS = {
    "test/estimate": "NLL, estimate",
    "test/lower": "NLL, AIS",
    "test/lower_minus_estimate": "estimate − AIS",
    "simulated/estimate": "simulated: estimate",
    "simulated/lower": "AIS",
    "simulated/upper": "reverse chain",
}
NLL = {"test/estimate", "test/lower", "simulated/estimate", "simulated/lower", "simulated/upper"}


def ais_tables(results: Path) -> list[Table]:
    """One table of every `ais-<run>.json` under `reports/<scale>/results`; none where there is none."""
    found = [read_json(path) for path in sorted(results.glob("*/ais-*.json"))]
    if not found:
        return []
    rows = []
    for one in found:
        summary, how = one["summary"], one["how"]
        values = {name: -summary[name] if name in NLL else summary[name] for name in COLUMNS}
        error = {"se": summary["test/lower_minus_estimate_se"]}
        asked = {name: how[name] for name in ("num_samples", "images", "transitions", "chains")}
        rows.append({"cohort": one["cohort"], "run": one["run"], **values, **error, **asked})
    data = pd.DataFrame(rows)
    display = pd.DataFrame({"run": data["run"]})
    for name, heading in COLUMNS.items():
        display[heading] = [number(value) for value in data[name]]
        if name == "test/lower_minus_estimate":
            display["±"] = [number(value) for value in data["se"]]
    how = found[0]["how"]
    caption = (
        f"NLL in nats of evenly spaced test images: the estimate of {how['num_samples']:,} importance samples from the "
        "encoder beside annealed importance sampling, which does not use the encoder. Both are upper bounds of the "
        "NLL on average, so their difference (± over images) is what the estimate is off by at least. On images "
        "simulated from the model the reverse chain bounds the NLL from below: the truth lies between it and AIS."
    )
    return [Table("ais", "A second opinion on NLL", caption, data, display, tuple(data["cohort"]))]
