"""The first screen: six cards whose sentences, pictures and chips say what the results say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.experiments.spec import CohortSpec
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.claims import BEATS, FAILS, HOLDS, HOLDS_ASSUMED, UNDECIDED
from pipeline.reporting.forms.strips import Mark, Strip, in_words, position, strip_html
from pipeline.reporting.page import caveat, command, gathered, progress
from pipeline.reporting.report import Report
from pipeline.reporting.sections.answer import beside_the_paper, best_m, cards, chip, short_answer
from tests.reporting.conftest import deepened

Make = Callable[..., RunResult]


def burda(make: Make, scale: str, iwae: float = 84.5) -> list[RunResult]:
    runs = [
        ("vae", 1, 1, 86.5),
        ("vae", 50, 1, 86.0),
        ("iwae", 1, 50, iwae),
        ("vae", 5, 1, 86.25),
        ("iwae", 1, 5, 85.5),
    ]
    return [make(objective, M, K, nll=nll, noise=0.1, scale=scale) for objective, M, K, nll in runs]


def report(runs: list[RunResult], scale: str, judged: bool | None = None) -> Report:
    return gathered(runs, scale, Path("none"), judged=judged)


def test_six_questions_are_answered_with_the_numbers_of_the_results(make: Make) -> None:
    beats, samples, units, posterior, interior, gradients = cards(report(burda(make, "quick"), "quick"))
    assert beats.sentence == "Here IWAE is better by 0.8 to 1.5 nats, in 2 of 2 cells; in the paper by 0.9 to 1.6."
    assert beats.answer == "It looks so"
    assert beats.chip == "2 of 2 have the claim's sign, none is judged"
    assert "IWAE 2.0 and VAE 0.5 nats here; in the paper IWAE 2.0 and VAE 0.4 nats" in samples.sentence
    assert "0 more active latent units" in units.sentence
    assert "q of IWAE (k = 50) is 1.0 times as wide" in posterior.sentence
    assert (interior.answer, gradients.answer) == ("The paper: in part", "The paper: yes")
    assert "M = 4 by IWAE-64, 1 by log p̂, 64 by −KL(Q‖P)" in interior.sentence
    assert "by the paper's plot 4.6 times" in gradients.sentence


def test_the_pictures_hold_ours_solid_and_the_papers_hollow(make: Make) -> None:
    (_, ours), (_, papers) = cards(report(burda(make, "quick"), "quick"))[0].strip.rows
    assert [mark.value for mark in ours] == [pytest.approx(0.75), pytest.approx(1.5)]
    assert not any(mark.hollow for mark in ours)
    assert all(mark.low is not None and mark.low < mark.value for mark in ours)
    # The paper's cells stand there whether or not ours were run; those that the sentence tells are told apart.
    assert len(papers) == 12
    assert all(mark.hollow for mark in papers)
    beside = [mark.value for mark in papers if not mark.faint]
    assert [round(value, 2) for value in beside] == [0.93, 1.57]
    assert str(strip_html(cards(report(burda(make, "quick"), "quick"))[0].strip)).count("faint") == 10
    nothing = cards(report([], "paper"))[0].strip.rows[1][1]
    assert not any(mark.faint for mark in nothing)


def test_without_runs_the_papers_answer(make: Make) -> None:
    answers = [card.answer for card in cards(report([], "paper"))]
    yes, in_part = "The paper: yes", "The paper: in part"
    assert answers == [yes, yes, yes, "Open here", in_part, yes]
    for card in cards(report([], "paper")):
        assert card.chip == "not run yet"
        marks = [mark for _, row in card.strip.rows for mark in row]
        assert all(mark.hollow for mark in marks)
    assert "in 12 of 12 cells: by 0.9 to 3.1" in cards(report([], "paper"))[0].sentence


def test_where_claims_are_judged_the_decisions_answer(make: Make) -> None:
    first = cards(report(burda(make, "paper"), "paper"))[0]
    assert (first.answer, first.kind) == ("Yes, so far", HOLDS)
    assert first.chip == "2 hold of 12 claims"
    against = cards(report(burda(make, "paper", iwae=88.0), "paper"))[0]
    assert against.answer == "In part, so far"
    assert against.kind == UNDECIDED
    shallow = report([deepened(run, 40) for run in burda(make, "overnight")], "overnight", judged=True)
    assert cards(shallow)[0].chip == "2 hold of 12 claims, at 40 epochs"
    assert "as they stand after 40 of the papers' 3,280 epochs" in caveat(shallow)


def test_words_for_decisions(make: Make) -> None:
    judged = report(burda(make, "paper"), "paper")
    claim = next(claim for claim in judged.claims if claim.family == BEATS and claim.effect)

    def decided(*decisions: str) -> list[str]:
        claims = [replace(claim, decision=decision) for decision in decisions]
        return [short_answer(claims, []), *chip(judged, claims)]

    assert decided(HOLDS, HOLDS_ASSUMED) == ["Yes", "2 hold of 2 claims", HOLDS]
    assert decided(FAILS, FAILS) == ["No", "2 do not hold of 2 claims", FAILS]
    assert decided(HOLDS, FAILS, UNDECIDED)[:2] == ["In part", "1 holds, 1 does not hold, 1 undecided of 3 claims"]
    assert decided(HOLDS, UNDECIDED, UNDECIDED)[0] == "Yes in 1 of 3"
    assert decided(FAILS, FAILS, UNDECIDED)[0] == "No in 2 of 3"
    assert decided(UNDECIDED) == ["Undecided", "1 undecided of 1 claims", UNDECIDED]


def test_the_posterior_of_k_5_answers_until_that_of_k_50_is_there(make: Make) -> None:
    first = [run for run in burda(make, "paper") if (run.spec.objective, run.spec.K) != ("iwae", 50)]
    assert cards(report(first, "paper"))[3].sentence.startswith("q of IWAE (k = 5) is 1.0 times as wide as VAE's here")


def test_q_is_as_much_wider_as_the_claim_says(make: Make) -> None:
    """Over the units that both models use, not over each model's own."""

    def widths(run: RunResult, log_sd: float, narrow: float, used: bool) -> RunResult:
        variance = np.array([0.5, 0.5 if used else 0.0])
        arrays = {"spread/unit_log_q_sd": np.tile([log_sd, narrow], (40, 1)), "unit_variance_1": variance}
        return replace(run, arrays={**run.arrays, **arrays})

    vae, _, iwae, *_ = burda(make, "paper")
    runs = [widths(vae, 0.0, 0.0, used=False), widths(iwae, float(np.log(2)), -3.0, used=True)]
    assert cards(report(runs, "paper"))[3].sentence.startswith("q of IWAE (k = 50) is 2.0 times as wide as VAE's here")


def test_the_best_of_a_part_of_the_sweep_is_called_so(make: Make) -> None:
    where = {"experiment": "rainforth-table1", "scale": "paper"}
    ends = [make("iwae", 1, 64, nll=84.5, iwae_64=-86.0, **where), make("vae", 64, 1, nll=86.0, iwae_64=-87.0, **where)]
    assert "Here the best M of 2 of 7 run is 1 by IWAE-64" in cards(report(ends, "paper"))[4].sentence
    rest = [make("miwae", M, 64 // M, nll=85.0, iwae_64=-86.5, **where) for M in (2, 4, 8, 16, 32)]
    assert "Here the best M is 1 by IWAE-64" in cards(report([*ends, *rest], "paper"))[4].sentence


def test_what_5_samples_gain_answers_until_50_were_run(make: Make) -> None:
    first = [run for run in burda(make, "paper") if run.spec.T != 50]
    card = cards(report(first, "paper"))[1]
    assert "from 1 to 5 samples IWAE 1.0 and VAE 0.2 nats here; in the paper IWAE 1.2 and VAE 0.3 nats" in card.sentence
    assert card.strip.axis == "gain in log p̂ from k = 1 to 5, nats"


def test_one_cell_is_not_1_of_1(make: Make) -> None:
    first = [run for run in burda(make, "paper") if run.spec.T != 50]
    assert "better by 0.8 nats, in one cell; in the paper" in cards(report(first, "paper"))[0].sentence


def test_one_model_alone_compares_no_digits(make: Make) -> None:
    *_, (_, marks) = cards(report(burda(make, "paper")[:1], "paper"))[3].strip.rows
    assert marks == ()
    *_, (_, marks) = cards(report(burda(make, "paper"), "paper"))[3].strip.rows
    assert len(marks) == 2


def test_cells_at_the_full_schedule_stand_beside_the_papers_at_once(make: Make) -> None:
    """What was reproduced is said before a claim has the two runs that it needs. Quick runs compare with nothing."""
    runs = [deepened(run, 3280) for run in burda(make, "paper")]
    assert beside_the_paper(report(runs[:1], "paper")) == "NLL minus the paper's in 1 cell: −0.26 nats (1 cannot say)."
    said = "NLL minus the paper's in 5 cells: −0.35 to −0.04 nats (5 cannot say)."
    assert beside_the_paper(report(runs, "paper")) == said
    assert caveat(report(runs, "paper")).endswith(said)
    assert beside_the_paper(report(burda(make, "quick"), "quick")) == ""
    assert "1 worse" in beside_the_paper(report([make("vae", 1, 1, nll=88.5, noise=0.1, scale="paper")], "paper"))


def test_more_samples_are_answered_for_each_objective_alone(make: Make) -> None:
    """IWAE's gain says nothing about VAE's, so runs of IWAE alone leave VAE open.

    Nor is VAE called not run: what 5 samples gain it may be told in the sentence below.
    """
    runs = burda(make, "paper")
    iwae_alone = [run for run in runs if (run.spec.objective, run.spec.T) != ("vae", 50)]
    assert cards(report(runs, "paper"))[1].answer == "Yes, so far"
    assert cards(report(iwae_alone, "paper"))[1].answer == "For IWAE: yes, so far"


def test_the_best_m() -> None:
    assert best_m({1: -86.1, 4: -85.6, 64: -86.7}) == 4
    assert best_m({1: -86.1}) is None


def test_marks_stand_where_their_values_are() -> None:
    strip = Strip((("here", (Mark(1.0, 0.0, 2.0), Mark(4.0, objective="iwae"))),), "nats")
    assert [position(strip, value) for value in (0.0, 1.0, 4.0)] == [4.0, 27.0, 96.0]
    logarithmic = Strip((("here", (Mark(1.0), Mark(64.0), Mark(8.0))),), "M", zero=False, log=True)
    assert position(logarithmic, 8.0) == 50.0
    html = str(strip_html(strip))
    assert re.search(r'<svg x="96.0%" y="[\d.]+" class="iwae"', html)
    assert 'x1="4.0%" x2="50.0%"' in html
    assert in_words(strip) == "nats. here: 1, 4"
    assert 'aria-label="nats. here: 1, 4"' in html


def test_progress_counts_what_is_finished_and_what_is_on_its_way(make: Make) -> None:
    runs = [deepened(run, 3280) for run in burda(make, "paper")]
    whole = gathered(runs[:3], "paper", Path("none"), under_way=[deepened(runs[3], 364, 3280)])
    assert progress(whole) == "Paper scale: 3 runs finished, 1 on its way (after 364 of 3,280 epochs)."
    both = [deepened(run, epochs, 3280) for run, epochs in zip(runs[3:], (40, 364), strict=True)]
    more = gathered(runs[:3], "paper", Path("none"), under_way=both)
    assert progress(more) == "Paper scale: 3 runs finished, 2 on their way (after 40 to 364 of 3,280 epochs)."


def test_the_banner_says_what_is_there_and_how_the_rest_is_made(make: Make) -> None:
    runs = [deepened(run, 3280) for run in burda(make, "paper")]
    planned = [
        CohortSpec("paper", "burda-table1", run.name.within_scale.partition("/")[0], (run.spec,)) for run in runs
    ]

    def said(done: int, under_way: int = 0) -> tuple[str, str]:
        filling = gathered(runs[:done], "paper", Path("none"), planned, runs[done : done + under_way])
        return caveat(filling), command(filling)

    assert said(0) == ("The pictures hold the papers' numbers: none of ours is there yet.", "make paper")
    assert said(0, 1)[0].startswith("No run is at its end yet: ours are in the pictures against epochs")
    # With a first cell nothing says any more that the pictures are the papers'.
    assert said(1)[0].startswith("Measured with ")
    assert said(1)[1] == "make paper"
    assert said(len(runs))[1] == ""
    empty = gathered([], "mine", Path("none"), planned)
    assert command(empty) == "dvc repro report@mine"


def test_a_picture_without_marks_is_none() -> None:
    assert strip_html(Strip((("2 units", ()), ("50 units", ())), "decoded samples that change the digit, %")) == ""
