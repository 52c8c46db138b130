"""The page and the files beside it: complete, self-contained, small, and the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.reporting.page import build_report, data_sources, duration, elapsed
from pipeline.results import RunResult

Make = Callable[..., RunResult]
MEGABYTE = 2**20
CITATIONS = {"https://arxiv.org/abs/1509.00519v4", "https://arxiv.org/abs/1802.04537v3"}


class References(HTMLParser):
    """Everything that a page points to: (tag, address)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and value is not None:
                self.found.append((tag, value))
            if name == "id" and value is not None:
                self.ids.append(value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def report(quick: list[RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    build_report(quick, "quick", folder)
    return folder


def test_the_page_needs_nothing_from_elsewhere(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    references = References()
    references.feed(page)
    for tag, address in references.found:
        if address.startswith(("http:", "https:")):
            assert tag == "a"
            assert address in CITATIONS
        elif address.startswith("#"):
            assert address[1:] in references.ids
        elif not address.startswith("data:"):
            assert tag == "a"
            assert (report / address).is_file()
    assert "<script" not in page
    assert not re.search(r"@import|url\((?!#)", page)


def test_what_the_page_shows(report: Path, quick: list[RunResult]) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "Quick scale: shows that it works, not comparable with the paper." in page
    assert f"{len(quick)} runs in" in page
    for cohort in {run.cohort for run in quick}:
        assert f"dvc repro evaluate@{cohort}" in page
    headings = ("Claims", "Tables", "Heat maps", "Curves", "Diagnostics", "How it was made")
    positions = [page.index(f">{heading}</h2>") for heading in headings]
    assert positions == sorted(positions)
    assert "NLL by objective and sample count: OMNIGLOT</b> is left out: it needs" in page
    assert page.count("<svg") == len(list((report / "figures").glob("*.svg")))


def test_files_and_sizes(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    assert {"claims", "ours_minus_paper", "nll_mnist", "rainforth_heatmap", "rainforth_sweep"} <= names
    assert {"convergence_mnist", "ess_rainforth", "units_mnist", "samples_mnist"} <= names
    for folder, kinds in (("figures", ("svg", "png", "csv")), ("tables", ("csv", "md", "tex"))):
        for path in (report / folder).iterdir():
            assert all(path.with_suffix(f".{kind}").stat().st_size > 0 for kind in kinds)
    assert (report / "index.html").stat().st_size < 5 * MEGABYTE
    assert sum(len(text) for text in contents(report).values()) < 8 * MEGABYTE


def test_figures_carry_no_dates_and_keep_their_text(report: Path) -> None:
    svg = (report / "figures" / "nll_mnist.svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in svg
    assert "paper 86.76" in svg
    assert b"Software" not in (report / "figures" / "nll_mnist.png").read_bytes()


def test_the_same_results_give_the_same_bytes_and_old_files_go(
    report: Path, quick: list[RunResult], tmp_path: Path
) -> None:
    for name in ("tables/old.csv", "figures/old.png", "results/kept.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    build_report(quick, "quick", tmp_path)
    second = contents(tmp_path)
    assert second.pop("results/kept.json") == b"old"
    assert second == contents(report)


def test_without_results_there_is_still_a_page(tmp_path: Path) -> None:
    build_report([], "paper", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Nothing was run yet" in page
    assert "not run" in page
    assert "Quick scale" not in page
    assert not list((tmp_path / "figures").iterdir())
    assert (tmp_path / "tables" / "burda_table1.md").is_file()


def test_diverged_runs_are_named_and_markup_is_escaped(make: Make, tmp_path: Path) -> None:
    runs = [make(), make("<b>novel", 1, 5, experiment="later-estimators", status="diverged at step 12")]
    build_report(runs, "tiny", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "diverged at step 12" in page
    assert "Scale tiny: not comparable with the paper." in page
    assert "<b>novel" not in page
    assert "<B>NOVEL" not in page


def test_at_the_paper_scale_cells_are_judged(make: Make, tmp_path: Path) -> None:
    runs = [
        make("vae", 50, 1, scale="paper", nll=86.40),
        make("iwae", 1, 50, scale="paper", nll=84.10),
        make("vae", 5, 1, scale="paper", nll=87.90),
    ]
    build_report(runs, "paper", tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for verdict in ("reproduced", "better", "worse", "holds"):
        assert f"<span>{verdict}</span>" in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (754, "12 min 34 s"), (18180, "5 h 03 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_wall_time_and_data_of_a_cohort(make: Make) -> None:
    run = make()
    assert elapsed([run, run]) == 13
    assert data_sources([run, run]) == [
        ("mnist", "digest", "abc"),
        ("mnist", "sources / train-images", "sha256:0123"),
    ]
