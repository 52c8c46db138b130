"""`dvc plots show` draws without the network, each depth of network and each schedule apart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

CELLS = """cell,nll,steps
a-mnist-1L-T5/iwae-M1-K5-s0,86.5,1000
a-mnist-2L-T5/iwae-M1-K5-s0,85.5,1000
b-mnist-1L/iwae-M1-K5-s0,120.5,80
b-mnist-1L/diverged-s0,,80
"""
CURVES = """cohort,run,epoch,bound
quick/a-mnist-1L-T5,iwae-M1-K5-s0,0.1,-200
quick/a-mnist-1L-T5,iwae-M1-K5-s0,1,-100
quick/a-mnist-2L-T5,iwae-M1-K5-s0,0.1,-190
quick/a-mnist-2L-T5,iwae-M1-K5-s0,1,-90
"""


def dvc(folder: Path, *words: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["dvc", *words], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dvc plots show` writes of small files where dvc.yaml looks for its own."""
    folder = tmp_path_factory.mktemp("plots")
    dvc(folder, "init", "-q", "--no-scm")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    shutil.copy2(ROOT / ".dvc/config", folder / ".dvc/config")
    dvc(folder, "config", "--local", "core.no_scm", "true")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    for (plot,) in (entry.values() for entry in plots):
        (name,) = plot["y"]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CELLS if plot["template"] == "cells" else CURVES)
    dvc(folder, "plots", "show", "-o", "shown")
    return folder / "shown/index.html"


def test_the_page_needs_no_network(page: Path) -> None:
    text = page.read_text()
    assert "vegaEmbed('#" in text
    assert re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", text) == []


def test_each_depth_and_schedule_has_a_panel(page: Path) -> None:
    playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium to look at the page with; on Debian: apt-get install chromium")
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox refuses to work for root.
        chromium = driver.chromium.launch(executable_path=executable, args=[] if os.geteuid() else ["--no-sandbox"])
        shown = chromium.new_page()
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        shown.goto(page.as_uri())
        panels = shown.eval_on_selector_all("div.panel", "parts => parts.map(part => part.textContent)")
        points = shown.eval_on_selector_all("circle title", "parts => parts.map(part => part.textContent)")
        lines = shown.locator("polyline").count()
        chromium.close()
    assert complaints == []
    assert panels[:3] == ["1 layer, 80 updates", "1 layer, 1000 updates", "2 layers, 1000 updates"]
    assert [panel.partition(":")[0] for panel in panels[3:]] == ["1 layer", "2 layers"] * (len(panels[3:]) // 2)
    assert len(points) == 3, "a diverged run has no NLL and no point"
    assert lines == len(panels[3:])
