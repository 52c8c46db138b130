"""Saved views of an experiment, one for each schedule, in the form in which MLflow's own page saves one.

MLflow has no call for this: the page keeps a view as a tag of the experiment, and one that it cannot read does no harm.
`view.json` holds what all views share: columns, sections and their charts.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

VIEW_TEMPLATE = Path(__file__).with_name("view.json")
SHARED = {"deleted": False, "isGenerated": False}
BY_TYPE: dict[str, dict[str, Any]] = {
    "SCATTER": {"runsCountToCompare": 100},
    "LINE": {
        "lineSmoothness": 0,
        "xAxisScaleType": "log",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    },
}
"""What every chart of a type has besides."""


def view_key(schedule: str) -> str:
    """The name of a schedule's view in addresses: `1000 updates` -> `1000-updates`."""
    return re.sub(r"[^a-z0-9]+", "-", schedule.lower()).strip("-")


def _chart(index: int, chart: dict[str, Any]) -> dict[str, Any]:
    settings = {"uuid": f"{chart['type'].lower()}-{index}", "runsCountToCompare": 20, **SHARED}
    if chart["type"] == "LINE":
        settings["selectedMetricKeys"] = [chart["metricKey"]]
    return {**settings, **BY_TYPE.get(chart["type"], {}), **chart}


def view_state(schedule: str) -> dict[str, Any]:
    """What the page is to show: the runs of one schedule alone, since others do not compare."""
    state: dict[str, Any] = json.loads(VIEW_TEMPLATE.read_text(encoding="utf-8"))
    return {
        **state,
        "searchFilter": f"tags.schedule = '{schedule}'",
        "compareRunCharts": [_chart(index, chart) for index, chart in enumerate(state["compareRunCharts"])],
        "compareRunSections": [
            {"display": True, "isReordered": False, **SHARED, **section} for section in state["compareRunSections"]
        ],
    }


def saved_view(schedule: str) -> str:
    """The value of the tag `mlflow.sharedViewState.<view_key>` of an experiment."""
    packed = base64.b64encode(zlib.compress(json.dumps(view_state(schedule)).encode(), 9)).decode()
    return json.dumps({"name": schedule, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})
