"""The page and the files beside it: complete, self-contained, small, and the same bytes every time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from pipeline.experiments.spec import CohortSpec
from pipeline.records.results import RunResult
from pipeline.reporting.forms.drawing import Figure
from pipeline.reporting.page import behind, build_report
from tests.conftest import make_run
from tests.reporting.conftest import SCALES

Make = Callable[..., RunResult]
MEGABYTE = 2**20
CITATIONS = {"https://arxiv.org/abs/1509.00519v4", "https://arxiv.org/abs/1802.04537v3"}


class Outline(HTMLParser):
    """What a page points to, (tag, address); its ids, heading levels, and tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.levels: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and value is not None:
                self.found.append((tag, value))
            if name == "id" and value is not None:
                self.ids.append(value)


def outline(folder: Path) -> Outline:
    parsed = Outline()
    parsed.feed((folder / "index.html").read_text(encoding="utf-8"))
    return parsed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_page_needs_nothing_from_elsewhere(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    references = outline(report)
    for tag, address in references.found:
        if address.startswith(("http:", "https:")):
            assert tag == "a"
            assert address in CITATIONS
        elif address.startswith("#"):
            assert address[1:] in references.ids
        elif not address.startswith("data:"):
            assert tag == "a"
            assert (report / address).is_file()
    assert "<script src" not in page
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)


def test_the_page_can_be_read_without_eyes_or_mouse(report: Path) -> None:
    page = outline(report)
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in zip(page.levels, page.levels[1:], strict=False))
    assert len(page.ids) == len(set(page.ids))
    assert ("html", {"lang": "en"}) in page.tags
    first_link = next(attributes for tag, attributes in page.tags if tag == "a")
    picture: dict[str, str | None] = {}
    assert first_link["href"] in {f"#{name}" for name in page.ids}
    for tag, attributes in page.tags:
        if tag == "svg":
            # A mark of a strip stands in the strip's own picture.
            picture = picture if "overflow" in attributes else attributes
            if picture.get("aria-hidden") != "true":
                assert picture["role"] == "img"
                assert len(picture["aria-label"] or "") > 40
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
        if "wide" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption") > 8
    assert names.count("figure") == names.count("figcaption") > 8


def test_every_figure_names_its_data_and_its_runs(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure id=.figure-(.*?).>(.*?)</figure>", page, re.DOTALL)
    assert len(figures) == len(list((report / "figures").glob("*.svg"))) - 1
    for name, content in figures:
        assert f'href="figures/{name}.csv"' in content
        assert "runs.json" in content
        assert "<figcaption><p><b>" in content


def test_the_runs_behind_a_figure_are_those_that_its_data_name(quick: list[RunResult]) -> None:
    def figure(**columns: list[object]) -> Figure:
        return Figure("x", "X", "an x", "<svg/>", b"", pd.DataFrame(columns))

    def cells(shown: Figure) -> set[str]:
        return {f"quick/{part.cohort}/{run}" for part in behind(shown, quick) for run in part.runs}

    one = quick[3]
    assert cells(figure(cohort=[one.cohort], run=[one.spec.name], value=[1.0])) == {one.cell}
    two_layers = {run.cell for run in quick if run.spec.layers == 2 and run.spec.T == 50}
    assert cells(figure(dataset=["mnist"], layers=[2], T=[50], nll=[1.0])) == two_layers
    assert cells(figure(value=[1.0])) == {run.cell for run in quick}
    # Here K counts the samples of an estimate.
    assert cells(figure(cohort=[one.cohort], run=[one.spec.name], K=[4096])) == {one.cell}
    (toy,) = behind(figure(experiment=["gaussian-toy"], samples=[4]), quick)
    assert (toy.address, toy.runs) == ("results/gaussian-toy/metrics.json", ())
    assert not cells(figure(dataset=["omniglot"], layers=[2]))


def test_what_the_page_shows(report: Path, quick: list[RunResult]) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "No claim is decided at this scale." in page
    assert "no claim is judged" in page
    assert "Measured with 300 updates per run, 200 test images, 5,000 samples per image, 1 seed." in page
    assert f"Quick scale: {len(quick)} runs finished." in page
    for cohort in {run.cohort for run in quick}:
        assert f"dvc repro evaluate@{cohort}" in page
    headings = (
        "The answer",
        "Which objective makes the better density model?",
        "What do more samples do to the bound?",
        "Is q wider, and do its samples change the digit?",
        "Where is the best (M, K)?",
        "Why: what happens to the gradients?",
        "What lies beyond the papers?",
        "How was it made?",
    )
    positions = [page.index(f">{heading}</h2>") for heading in headings]
    assert positions == sorted(positions)
    assert "How did training go? OMNIGLOT</b> needs" in page
    pictures = set(re.findall(r'id="figure-(\w+)"', page))
    # The claims are a table on the page, and a figure beside it.
    assert pictures == {path.stem for path in (report / "figures").glob("*.svg")} - {"claims"}


def test_files_and_sizes(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    assert {"claims", "objectives", "log_mean", "posterior_contours", "rainforth_sweep"} <= names
    assert {"convergence_mnist", "ess_rainforth", "units_mnist", "samples_mnist"} <= names
    for folder, kinds in (("figures", ("svg", "png", "csv")), ("tables", ("csv", "md", "tex"))):
        for path in (report / folder).glob("*.*"):
            if path.stem not in (".gitkeep", "cells", "cohorts", "machines", "protocol", "data"):
                assert all(path.with_suffix(f".{kind}").stat().st_size > 0 for kind in kinds)
    assert (report / "index.html").stat().st_size < 5 * MEGABYTE
    assert sum(len(text) for text in contents(report).values()) < 10 * MEGABYTE


def test_figures_carry_no_dates_and_keep_their_text(report: Path) -> None:
    svg = (report / "figures" / "rainforth_sweep.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in svg
    assert "within noise of the best</text>" in svg
    assert b"Software" not in (report / "figures" / "rainforth_sweep.png").read_bytes()


def test_the_same_results_give_the_same_bytes_and_old_files_go(
    report: Path, quick: list[RunResult], tmp_path: Path
) -> None:
    for name in ("tables/old.csv", "figures/old.png", "results/kept.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    build_report(quick, "quick", tmp_path, scales=SCALES)
    second = contents(tmp_path)
    assert second.pop("results/kept.json") == b"old"
    assert second == {name: text for name, text in contents(report).items() if not name.startswith("results/")}


def test_without_results_there_is_still_a_page(tmp_path: Path) -> None:
    build_report([], "paper", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Paper scale: 0 runs finished." in page
    assert "not run" in page
    assert "evaluate@" not in page
    assert "Quick scale" not in page
    # Git keeps no empty folders, and DVC would miss these.
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == [".gitkeep"]
    assert (tmp_path / "tables" / "burda_table1.md").is_file()


def test_key_numbers_of_every_run_for_dvc(make: Make, tmp_path: Path) -> None:
    runs = [
        make("iwae", 1, 50, layers=2, nll=83.0, units=(25, 6)),
        make("piwae", 4, 16, experiment="rainforth-table1", nll=84.0),
        make("vae", status="diverged at step 3"),
    ]
    build_report(runs, "quick", tmp_path)
    two_layers, unverified, diverged = (
        json.loads((tmp_path / "metrics" / f"{run.cell.partition('/')[2]}.json").read_text()) for run in runs
    )
    assert two_layers["difference"] == pytest.approx(0.10)
    assert (two_layers["nll"], two_layers["paper"], two_layers["active_units"]) == (83.0, 82.9, 31)
    assert unverified["kl_q_p"] == pytest.approx(unverified["iwae_64"] + 84.0, abs=1e-3)
    assert "paper" not in unverified
    assert diverged == {"paper": 86.76}


def test_planned_cells_are_listed_before_they_are_run(tmp_path: Path) -> None:
    spec = make_run("vae", 1, 1)
    planned = [CohortSpec("paper", "burda-table1", "burda-table1-mnist-1L-T1", (spec,))]
    build_report([], "paper", tmp_path, planned, ("quick", "paper"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "dvc repro evaluate@paper/burda-table1-mnist-1L-T1" in page
    assert 'href="../quick/index.html"' in page
    assert "not run" in (tmp_path / "tables" / "cells.csv").read_text()


def test_diverged_runs_are_named_and_markup_is_escaped(make: Make, tmp_path: Path) -> None:
    runs = [make(), make("<b>novel", 1, 5, experiment="later-estimators", status="diverged at step 12")]
    build_report(runs, "tiny", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "diverged at step 12" in page
    assert "Tiny scale: 1 runs finished." in page
    assert "<b>novel" not in page
    assert "<B>NOVEL" not in page


def test_at_the_paper_scale_cells_are_judged(make: Make, tmp_path: Path) -> None:
    runs = [
        *(make("vae", 50, 1, scale="paper", seed=s, nll=86.35 + d) for s, d in enumerate((0.0, 0.01, -0.01, 0.0))),
        make("iwae", 1, 50, scale="paper", nll=84.10),
        make("vae", 50, 1, experiment="burda-table3", dataset="fixed-mnist", scale="paper", nll=89.05),
        make("vae", 5, 1, scale="paper", nll=87.90),
    ]
    build_report(runs, "paper", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for verdict in ("reproduced", "better", "worse", "holds (assumed spread)"):
        assert f">{verdict}</span>" in page
    for shade in ("near", "better-1", "worse-2"):
        assert f'class="number shade {shade}"' in page
    assert re.search(r"Of \d+ claims 1 holds \(assumed spread\), 4 are undecided. \d+ claims wait for runs.", page)
