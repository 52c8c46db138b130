"""The project's standing and Table 1 in few lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.experiments.schedule import burda_schedule
from pipeline.experiments.spec import CohortSpec
from pipeline.records.results import RunResult
from pipeline.reporting.summary import deepest, depth, for_markdown, for_terminal, readme_part, runs_done, table1
from tests.conftest import make_run

COHORT = "quick/burda-table1-mnist-1L-T50"


def result(objective: str, k: int, nll: float, cohort: str = COHORT, **changes: Any) -> RunResult:
    M, K = (k, 1) if objective == "vae" else (1, k)
    spec = make_run(objective, M, K, train_images=59_600, max_steps=1_000, **changes)
    spec = replace(spec, name=f"{objective}-M{M}-K{K}-s{spec.seed}", schedule=burda_schedule(rounded=True))
    training = {"data": {"counts": {"test_images": 10_000}}}
    metrics = {"nll": nll, "test_images": 100.0}
    return RunResult(cohort, "burda-table1", spec, "d", "finished", training, {}, metrics, {})


def some() -> list[RunResult]:
    return [
        result("vae", 1, 150.0),
        result("vae", 1, 152.0, seed=1),
        result("vae", 50, 140.0),
        result("iwae", 50, 130.125),
        replace(result("iwae", 5, 0.0), metrics={}),
    ]


def test_rows_have_means_over_seeds_beside_the_papers_numbers() -> None:
    lines = table1(some())
    assert [line.label for line in lines] == ["1 layer, k = 1", "1 layer, k = 50"]
    first, second = lines
    assert (first.vae.ours, first.iwae.ours) == (151.0, 151.0), "at k = 1 the two are one model"
    assert (second.vae.paper, second.iwae.paper) == (86.35, 84.78)
    assert for_markdown(lines)[-1] == "| 1 layer, k = 50 | 140.00 (86.35) | 130.12 (84.78) |"
    assert for_terminal(lines)[-1].split() == [
        "1",
        "layer,",
        "k",
        "=",
        "50",
        "VAE",
        "140.00",
        "(86.35)",
        "IWAE",
        "130.12",
        "(84.78)",
    ]


def test_how_deep_and_on_how_many_images() -> None:
    assert depth(some()) == "after 1,000 of the 9,774,400 updates of the papers' schedule, on 100 of 10,000 test images"
    whole = [
        replace(r, spec=replace(r.spec, max_steps=None), metrics={"nll": 86.0, "test_images": 10_000.0}) for r in some()
    ]
    assert depth(whole) == "after all 9,774,400 updates of the papers' schedule, on all 10,000 test images"


def test_what_is_done_of_what_is_planned() -> None:
    planned = [CohortSpec("quick", "burda-table1", COHORT.partition("/")[2], tuple(r.spec for r in some()[2:]))]
    assert runs_done("quick", some()[1:3], planned) == "quick: 1 of 3 runs", "a run that left the grid does not count"


def test_the_readme_shows_the_deepest_scale_that_has_most_rows() -> None:
    full, part = some(), some()[:1]
    assert deepest({"quick": full, "paper": part}) == "quick"
    assert deepest({"quick": full, "paper": full}) == "paper"
    assert deepest({"quick": [], "paper": []}) is None
    text = readme_part({"quick": full, "paper": []}, {"quick": [], "paper": []}, ["quick"])
    assert "at scale `quick`" in text
    assert "| 1 layer, k = 50 | 140.00 (86.35) | 130.12 (84.78) |" in text
    assert "reports/quick/figures/objectives.png" in text
    assert "not near the paper's numbers" in text.replace("\n", " ")
    assert max(len(line) for line in text.splitlines() if not line.startswith("!")) <= 100
    assert "![" not in readme_part({"quick": full}, {"quick": []}, [])
    assert readme_part({"quick": []}, {"quick": []}, []) == "**Where it stands.** quick: 0 of 0 runs."
