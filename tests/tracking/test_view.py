"""A saved view has the charts of the runs of one schedule."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking.publish import Publication
from pipeline.tracking.store import VIEW_TAG, locked_store
from pipeline.tracking.view import view_key
from tests.tracking.example import ONE, content, publish_all, two_cohorts

MAX_TAG_LENGTH = 5000
"""Of an experiment's tag, by MLflow's own rule."""


def view_tags(tags: dict[str, str]) -> dict[str, dict[str, Any]]:
    views = {key.removeprefix(VIEW_TAG): json.loads(value) for key, value in tags.items() if key.startswith(VIEW_TAG)}
    for view in views.values():
        view["state"] = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    return views


def test_an_experiment_has_a_view_of_each_schedule_whose_charts_have_their_numbers(root: Path) -> None:
    results = two_cohorts()
    results[2] = replace(results[2], spec=replace(results[2].spec, max_steps=30))
    publish_all(root, results)
    with locked_store(root) as client:
        (experiment,) = client.search_experiments()
        tags = dict(experiment.tags)
    assert tags["mlflow.note.content"].splitlines()[0].startswith("mnist at scale quick: ")
    views = view_tags(tags)
    assert set(views) == {"4-epochs", "30-updates"}
    assert max(len(value) for value in tags.values()) < MAX_TAG_LENGTH
    state = views["4-epochs"]["state"]
    assert state["searchFilter"] == "tags.schedule = '4 epochs'"
    with locked_store(root) as client:
        shown = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.data.tags["cell"] for run in shown} == {result.cell for result in results[:2]}
    run = content(root)[f"{ONE}/iwae-M1-K50-s0"]
    charts = state["compareRunCharts"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    (parallel,) = [chart for chart in charts if chart["type"] == "PARALLEL"]
    axes = [chart[axis] for chart in charts if chart["type"] == "SCATTER" for axis in ("xaxis", "yaxis")]
    params = {*parallel["selectedParams"], *(axis["key"] for axis in axes if axis["type"] == "PARAM")}
    assert params <= set(run[1])
    metrics = {chart["metricKey"] for chart in charts if "metricKey" in chart} | set(parallel["selectedMetrics"])
    metrics |= {axis["key"] for axis in axes if axis["type"] == "METRIC"}
    assert {name for name in metrics if not name.startswith("waypoint/")} - {"test/kl_q_p"} <= set(run[4])
    sections = {part["uuid"] for part in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert [chart["metricSectionId"] for chart in charts if chart["type"] == "PARALLEL"] == ["settings"]
    assert sum(chart["metricSectionId"] == "settings" for chart in charts) == 1


def test_a_store_of_an_earlier_version_gets_todays_views(root: Path) -> None:
    publish_all(root, two_cohorts())
    with locked_store(root) as client:
        (experiment,) = client.search_experiments()
        client.set_experiment_tag(experiment.experiment_id, f"{VIEW_TAG}4-epochs", "old")
    assert publish_all(root, two_cohorts()) == Publication(0, 3, 0)
    with locked_store(root) as client:
        assert client.get_experiment(experiment.experiment_id).tags == experiment.tags


@pytest.mark.parametrize(("schedule", "key"), [("3280 epochs", "3280-epochs"), ("80 updates", "80-updates")])
def test_views_have_names_that_an_address_may_hold(schedule: str, key: str) -> None:
    assert view_key(schedule) == key
