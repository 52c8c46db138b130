"""README and docs are in step with the results and the code, and lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.paths import Paths
from stages.docs import BEGIN, END, MAP, README, module_lines, status, with_part
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
GLOSSARY = {"run", "setting", "experiment", "scale", "depth", "waypoint", "protocol", "cohort", "stack", "shape"}
GLOSSARY |= {"standing", "place", "cell"}


def test_the_readmes_status_is_that_of_the_results() -> None:
    """When this fails: `python -m stages.docs`."""
    text = (ROOT / README).read_text()
    assert with_part(text, status(Paths(ROOT))) == text


def test_the_map_lists_every_module() -> None:
    """When this fails: `python -m stages.docs`."""
    text = (ROOT / MAP).read_text()
    assert with_part(text, module_lines(ROOT)) == text
    described = re.findall(r"^- \[`[\w.]+`\]\((\S+)\): \S", text, re.MULTILINE)
    modules = {path for name in ("pipeline", "stages") for path in (ROOT / name).rglob("*.py")}
    assert {(ROOT / "docs" / path).resolve() for path in described} >= {
        path for path in modules if path.name != "__init__.py"
    }


def test_the_glossary_has_the_projects_words() -> None:
    text = (ROOT / MAP).read_text()
    assert {word for word in GLOSSARY if f"- **{word}**: " not in text} == set()


def test_a_part_replaces_what_stands_between_the_marks() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_part(text, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert with_part(once, "new") == once
    with pytest.raises(ValueError, match="begin"):
        with_part("no marks", "new")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    broken = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_of_the_project_exist(page: Path) -> None:
    folders = "pipeline|stages|tests|docs|benchmarks|examples|gpu_trial"
    named = re.findall(rf"(?<![\w/])((?:{folders})/[\w/-]+\.\w+)", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_can_be_run(page: Path) -> None:
    named = set(re.findall(r"python -m ((?:pipeline|stages|tests|benchmarks|examples)[\w.]*)", page.read_text()))
    files = [ROOT / name.replace(".", "/") for name in named]
    assert [str(f) for f in files if not f.with_suffix(".py").exists() and not (f / "__main__.py").exists()] == []


def test_make_alone_tells_every_command() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    told = re.findall(r"^  make ([a-z-]+) +\S.*  +\S", shown, re.MULTILINE)
    assert set(told) == set(phony[1].split()) - {"help"}


def test_the_workflow_runs_what_ci_runs() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for job in jobs.values() for step in job["steps"]]


def test_the_citation_has_both_papers() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    citation = yaml.safe_load(text)
    urls = {reference["url"] for reference in citation["references"]}
    assert urls == {"https://arxiv.org/abs/1509.00519", "https://arxiv.org/abs/1802.04537"}
    assert all(text.count(url) == 2 for url in urls), "once as a reference, once as BibTeX"
