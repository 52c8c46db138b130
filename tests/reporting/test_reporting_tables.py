"""Tables hold every cell of the papers, run or not, and come out well-formed in every format."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pipeline.published import burda_table
from pipeline.records.results import RunResult
from pipeline.reporting.evidence.cells import gather
from pipeline.reporting.forms.render import (
    aligned,
    is_text,
    latex_escape,
    shade,
    sort_value,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)
from pipeline.reporting.forms.tables import Table
from pipeline.reporting.sections import density
from tests.reporting.conftest import all_tables

Make = Callable[..., RunResult]


def build(results: list[RunResult], scale: str = "quick") -> dict[str, Table]:
    return {table.name: table for table in all_tables(results, scale)}


def row(table: Table, group: str, label: str) -> pd.Series:
    (i,) = [i for i, name in enumerate(table.groups) if name == group and table.display.iloc[i]["objective"] == label]
    return table.display.iloc[i]


def test_runs_under_another_protocol_are_explained_where_they_stand(make: Callable[..., RunResult]) -> None:
    run = make("iwae", 1, 5, scale="paper")
    other = replace(run, spec=replace(run.spec, protocol_name="paper-text"))
    said = build([other], "paper")["burda_table1"]
    assert "other protocol" in set(said.display["verdict"])
    assert any(note.startswith("other protocol: trained in another way") for note in said.notes)
    notes = build([run], "paper")["burda_table1"].notes
    assert [note.partition(":")[0] for note in notes[1:]] == ["Reruns by others", "Verdicts on 1 cell"]


def test_the_caption_says_when_omniglot_is_not_the_papers_file(make: Callable[..., RunResult]) -> None:
    def caption(variant: str) -> str:
        run = make("iwae", 1, 5, dataset="omniglot")
        return build([replace(run, training={**run.training, "data": {"variant": variant}})])["burda_table1"].caption

    assert "OMNIGLOT here is rebuilt from the public release: not the file chardata.mat" in caption(
        "rebuilt from the public release"
    )
    assert "OMNIGLOT" not in caption("chardata.mat")


def test_without_results_every_cell_of_the_papers_says_not_run() -> None:
    made = build([])
    for name, cells in (("burda_table1", 20), ("burda_table2", 4), ("burda_table3", 10), ("rainforth_table1", 48)):
        table = made[name]
        assert len(table.data) == len(table.display) == len(table.groups) == cells
        assert set(table.data["verdict"]) == {"not run"}
        assert set(table.display["ours"]) == {"not run"}
    published = burda_table("burda-table1")
    merged = published[(published["objective"] == "vae") | (published["k"] > 1)]
    assert sorted(made["burda_table1"].data["paper"]) == sorted(merged["nll"])
    assert set(made["claims"].display["decision"]) == {"not run"}


def test_a_cell_beside_the_papers(make: Make) -> None:
    runs = [make("iwae", 1, 50, layers=2, scale="paper", nll=82.95, units=(25, 6))]
    table = build(runs, "paper")["burda_table1"]
    shown = row(table, "MNIST, 2 layers", "IWAE, k = 50")
    assert shown["ours"] == "82.95"
    assert shown["paper"] == "82.90"
    assert shown["difference"] == "+0.05"
    # One run against one: 1.70 times the root of .10² + .10² + .05² + .05².
    assert (shown["90 % interval"], shown["verdict"]) == ("[−0.22, +0.32]", "cannot say")
    assert shown["reruns by others"] == "0.08 off"
    data = table.data.set_index(["dataset", "layers", "objective", "K"]).loc[("mnist", 2, "iwae", 50)]
    assert data["bits_per_dimension"] == pytest.approx(82.95 / (784 * np.log(2)))
    assert (data["bits_sd"], data["reruns_by_others"]) == (0.05, "0.08 off (best of the public attempts)")
    assert (shown["active units"], shown["paper's units"]) == ("25+6", "26+7")
    assert row(table, "MNIST, 1 layer", "IWAE, k = 50")["verdict"] == "not run"


def test_k_1_serves_both_columns_and_the_papers_disagreement_is_noted(make: Make) -> None:
    table = build([make(dataset="omniglot", layers=2, scale="paper", nll=107.57)], "paper")["burda_table1"]
    shown = row(table, "OMNIGLOT, 2 layers", "VAE = IWAE, k = 1")
    assert (shown["paper"], shown["verdict"]) == ("107.58", "cannot say")
    note, reruns, counts = table.notes
    assert reruns.startswith("Reruns by others")
    assert "1 cannot say" in counts
    assert "107.56 / 30+5" in note
    assert "107.58 / 28+4" in note


def test_diverged_cells_say_so(make: Make) -> None:
    table = build([make("iwae", 1, 5, status="diverged at step 12")])["burda_table1"]
    shown = row(table, "MNIST, 1 layer", "IWAE, k = 5")
    assert (shown["ours"], shown["verdict"], shown["active units"]) == ("diverged", "diverged", "–")


def test_seeds_show_their_spread(make: Make) -> None:
    runs = [make(seed=seed, nll=nll) for seed, nll in enumerate((86.0, 87.0))]
    runs.append(make(seed=2, status="diverged at step 5"))
    shown = row(build(runs)["burda_table1"], "MNIST, 1 layer", "VAE = IWAE, k = 1")
    assert (shown["ours"], shown["sd over seeds"], shown["seeds"]) == ("86.50", "0.71", "2 of 3")


def test_what_was_run_beyond_the_paper_is_shown(make: Make) -> None:
    run = make("vae", nll=86.7)
    other = replace(run, spec=replace(run.spec, protocol_name="paper-text"))
    made = build([run, other, make("iwae", 1, 500), make("stl", 1, 50, experiment="my-own")])
    table = made["burda_table1"]
    beyond = table.display[[group == "Beyond the paper" for group in table.groups]]
    assert list(beyond["objective"]) == ["MNIST, 1 layer, IWAE(1, 500)", "MNIST, 1 layer, VAE(1, 1)"]
    assert list(beyond["protocol"]) == ["published-code", "paper-text"]
    assert list(made["other_runs"].display["objective"]) == ["STL(1, 50)"]


def test_rainforth_greys_what_nobody_saw_and_never_judges_it(make: Make) -> None:
    run = make("piwae", 4, 16, experiment="rainforth-table1", scale="paper", nll=84.4)
    table = build([run], "paper")["rainforth_table1"]
    shown = row(table, "log p̂", "PIWAE(4, 16)")
    assert (shown["paper"], shown["verdict"]) == ("−84.40 ± 0.17 (u)", "not judged")
    assert len(table.greyed) == 5
    assert row(table, "IWAE-64", "MIWAE(4, 16)")["paper"] == "−85.60"
    assert row(table, "log p̂", "PIWAE(2, 32)")["paper"] == "–"


def test_every_objective_is_set_against_iwae(quick: list[RunResult]) -> None:
    table = build(quick)["every_objective"]
    assert len(table.data) == 16
    nlls = {(run.spec.objective, run.spec.T): run.metrics["nll"] for run in quick if run.spec.layers == 1}
    shown = row(table, "MNIST, 1 layer", "MIWAE(5, 10), T = 50")
    assert shown["minus IWAE"].startswith(f"{nlls['miwae', 50] - nlls['iwae', 50]:+.2f} ±")


def test_diagnostics_have_a_row_a_run(quick: list[RunResult], make: Make) -> None:
    table = build([*quick, make("iwae", 1, 7, status="diverged at step 1")])["diagnostics"]
    assert len(table.display) == len(quick) + 1
    assert table.display.iloc[0]["test − train"] == "+0.70"
    assert table.display.iloc[-1]["NLL"] == "–"
    first = table.display.iloc[0]
    assert float(first["bits per dimension"]) == pytest.approx(quick[0].metrics["nll"] / (784 * np.log(2)), abs=1e-4)
    assert (first["sd by test bits"], table.display.iloc[-1]["bits per dimension"]) == ("–", "–")


def test_the_spread_by_the_test_bits_is_reported_where_it_was_measured(make: Make) -> None:
    runs = [
        replace(run, metrics={**run.metrics, "bits_sd_nll": sd})
        for run, sd in ((make("vae", 5, 1), 0.0512), (make("vae", 50, 1), 0.0533))
    ]
    notes = build(runs)["burda_table1"].notes
    assert (
        "Test bits: one draw of them moves an NLL by 0.051 to 0.053 nats (standard deviation; measured on 2 runs)."
        in notes
    )
    assert not any(note.startswith("Test bits") for note in build([make()])["burda_table1"].notes)


@pytest.fixture(scope="module")
def made(quick: list[RunResult]) -> dict[str, Table]:
    return build(quick)


def test_csv_reads_back(made: dict[str, Table]) -> None:
    for table in made.values():
        frame = pd.read_csv(io.StringIO(to_csv(table)))
        assert list(frame.columns) == list(table.data.columns)
        assert len(frame) == len(table.data)


def test_markdown_is_rectangular(made: dict[str, Table]) -> None:
    for table in made.values():
        lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {len(table.display.columns) + 1}
        assert len(lines) == 2 + len(table.display) + len(set(table.groups))


def test_latex_is_escaped_and_balanced(made: dict[str, Table]) -> None:
    for table in made.values():
        text = to_latex(table)
        assert text.isascii()
        for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
            assert rule in text
        assert text.count("{") == text.count("}")
    assert latex_escape("a_b & 5% p̂ −1 ± 2") == r"a\_b \& 5\% $\hat p$ $-$1 $\pm$ 2"
    assert r"\textcolor{gray}{$-$85.68 $\pm$ 0.06 (u)}" in to_latex(made["rainforth_table1"])


def test_a_table_longer_than_a_page_breaks_and_a_wide_one_shrinks(made: dict[str, Table]) -> None:
    for name, environment in (("claims", "longtable"), ("burda_table1", "tabular")):
        text = to_latex(made[name])
        assert rf"\end{{{environment}}}" in text
        assert (r"\resizebox" in text) == (environment == "tabular")
        assert rf"\label{{tab:{name}}}" in text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("148.13", 148.13),
        ("−1.27 ± 0.18 (u)", -1.27),
        ("+0.93 to +1.88 nats", 0.93),
        ("[−0.85, +0.41]", -0.85),
        ("16+5", 21),
        ("16.5+5.0", 21.5),
        ("9,774,400", 9_774_400),
        ("2 of 3", 2),
        ("1 h 02 min", 3720),
        ("12 min 34 s", 754),
        ("42 s", 42),
        ("not run", None),
        ("–", None),
        ("", None),
    ],
)
def test_the_number_by_which_a_cell_sorts(text: str, value: float | None) -> None:
    assert sort_value(text) == (value if value is None else pytest.approx(value))


def test_cells_sort_by_the_numbers_behind_them(made: dict[str, Table]) -> None:
    for table, column, heading in (("burda_table1", "ours", "ours"), ("claims", "effect", "effect")):
        shown = [sort_value(text) for text in made[table].display[heading]]
        behind = made[table].data[column].tolist()
        for number, value in zip(shown, behind, strict=True):
            assert (number is None) == pd.isna(value)
            assert number is None or number == pytest.approx(value, abs=0.0501)


def test_a_difference_is_shaded_by_its_size_and_its_sign(make: Make) -> None:
    def shades(metric: str, *differences: float) -> list[str]:
        table = build([make()])["burda_table1"]
        data = pd.DataFrame({"metric": metric, "difference": differences, "verdict": "worse"})
        return [shade(replace(table, data=data), i) for i in range(len(differences))]

    nan = float("nan")
    assert shades("nll", 0.25, -0.25, 0.2501, -1.0, 1.01, nan) == ["near", "near", "worse-1", "better-1", "worse-2", ""]
    assert shades("log_p_hat", 0.5, -0.5, 3.0) == ["better-1", "worse-1", "better-2"]


def test_a_column_without_numbers_is_one_of_text(made: dict[str, Table]) -> None:
    table = made["burda_table1"]
    assert [h for h in table.display.columns if is_text(table, h)] == ["objective", "verdict"]


class Count(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.cells += tag == "td" or (tag == "th" and ("scope", "row") in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_escaped(made: dict[str, Table]) -> None:
    for table in made.values():
        parser = Count()
        parser.feed(str(to_html(table)))
        assert not parser.open
        assert parser.cells == table.display.size
    unsafe = replace(made["burda_table2"], groups=("<script>",) * 4)
    assert "<script>" not in to_html(unsafe)


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (["93.09 (86.76)", "118.93 (108.11)"], [r"93.09 (\phantom{0}86.76)", "118.93 (108.11)"]),
        (["+2.50", "−1.27 (u)"], [r"+2.50\phantom{ (u)}", "$-$1.27 (u)"]),
        (["5", "2.25", "1.5"], [r"5\phantom{.00}", "2.25", r"1.5\phantom{0}"]),
        (["16+5", "100+50", "–"], ["16+5", "100+50", "--"]),
    ],
)
def test_decimals_of_a_latex_column_stand_below_each_other(cells: list[str], shown: list[str]) -> None:
    assert aligned(cells) == shown


def test_latex_sets_our_best_number_in_bold_and_not_the_papers(make: Make) -> None:
    cells = gather([make("vae", 5, 1, nll=150.0), make("iwae", 1, 5, nll=140.0)])
    text = to_latex(density.side_by_side(cells, "burda-table1", {}))
    assert r"{\fontseries{b}\selectfont 140.00} (85.54)" in text
    # What is missing is no word: the column stays one of numbers.
    assert r"\begin{tabular}{rrrrr}" in text
