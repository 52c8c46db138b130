"""From params.yaml to runs: what is refused, how things are named, and that the paper scale is the papers' grid."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohort, load_cohorts, load_evaluation, load_order
from pipeline.experiments.grid import (
    build_cohorts,
    check_estimators,
    check_in_step,
    cohort_name,
    index,
    run_name,
    write_cohorts,
)
from pipeline.experiments.params import Params, load_params
from pipeline.experiments.protocol import PROTOCOLS
from pipeline.experiments.spec import CohortSpec, RunSpec, Stage, digest
from pipeline.files import read_json, write_json
from pipeline.objectives import OBJECTIVES, Weights, fingerprint
from tests.conftest import ROOT
from tests.experiments.test_params import SMALL, changed, small

FIRST_SETTING = "experiments.first.settings.0"
BASE = asdict(PROTOCOLS["published-code"])
DETAILS = list(BASE)


@pytest.fixture(scope="module")
def committed() -> Params:
    return load_params(ROOT / "params.yaml")


def runs_of(cohorts: Mapping[str, CohortSpec]) -> list[RunSpec]:
    return [run for cohort in cohorts.values() for run in cohort.runs]


def refusal(params: Params) -> str:
    with pytest.raises(UserError) as caught:
        build_cohorts(params)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"objective": "elbow"},
            f"{FIRST_SETTING}.objective: unknown objective 'elbow'; allowed: vae, iwae, miwae, ciwae, piwae, ",
        ),
        (
            {"objective": "miwae", "M": 2, "K": [1, 2]},
            f"{FIRST_SETTING}: M * K = 2 * 1 = 2 is not a sample count of the experiment (T: 1, 5)",
        ),
        ({"objective": "vae", "K": 5}, f"{FIRST_SETTING}.K: vae has groups of one sample, so K must be 1, not 5"),
        ({"objective": "iwae", "M": 5}, f"{FIRST_SETTING}.M: iwae has one group of samples, so M must be 1, not 5"),
        (
            {"objective": "ciwae", "M": 5, "parameter": 0.5},
            f"{FIRST_SETTING}.M: ciwae has one group of samples, so M must be 1, not 5",
        ),
        ({"objective": "ciwae", "K": 5}, f"{FIRST_SETTING}.parameter: ciwae needs its beta"),
        ({"objective": "vae", "parameter": 0.5}, f"{FIRST_SETTING}.parameter: vae takes none"),
        (
            {"objective": "ciwae", "K": 5, "parameter": 1.5},
            f"{FIRST_SETTING}.parameter: beta of ciwae lies between 0 and 1, not at 1.5",
        ),
        (
            {"objective": "ciwae", "K": 5, "parameter": [0.5, -0.5]},
            f"{FIRST_SETTING}.parameter: beta of ciwae lies between 0 and 1, not at -0.5",
        ),
        (
            {"objective": "vr", "K": 5, "parameter": 1e30},
            f"{FIRST_SETTING}.parameter: alpha of vr lies between -100 and 100, not at 1e+30",
        ),
    ],
)
def test_impossible_setting(setting: dict[str, Any], message: str) -> None:
    text = refusal(small("experiments.first.settings", [setting]))
    assert text.startswith(f"params.yaml: {message}")


@pytest.mark.parametrize(
    ("after", "missing"),
    [
        ({"experiment": "third", "objective": "vae"}, "small/third-mnist-1L-T1/vae-M1-K1-s0"),
        ({"experiment": "first", "objective": "vae", "M": 5}, "small/first-mnist-1L-T5/vae-M5-K1-s0"),
        ({"experiment": "first", "objective": "iwae", "K": 7}, "small/first-mnist-1L-T7/iwae-M1-K7-s0"),
        pytest.param(
            {"experiment": "third", "objective": "iwae", "K": 5},
            "small/third-mnist-1L-T5/iwae-M1-K5-s0",
            id="of the same name",
        ),
    ],
)
def test_continued_run_must_exist(after: dict[str, Any], missing: str) -> None:
    text = refusal(small("experiments.second.settings.0.after", after))
    assert text == f"params.yaml: experiments.second.settings: after: {missing} is no run of this scale"


def test_continued_run_must_have_the_same_seed_and_depth() -> None:
    part = {"datasets": ["mnist"], "layers": [1], "seeds": [0, 1]}
    assert "vae-M1-K1-s1 is no run of this scale" in refusal(small("scales.small.experiments.second", part))
    part = {"datasets": ["mnist"], "layers": [2]}
    assert "small/first-mnist-2L-T1/vae-M1-K1-s0 is no run" in refusal(small("scales.small.experiments.second", part))


@pytest.mark.parametrize("objectives", [("iwae", "iwae"), ("iwae", "miwae")], ids=["itself", "each other"])
def test_a_run_cannot_continue_its_own_cohort(objectives: tuple[str, str]) -> None:
    settings = [
        {"objective": objective, "K": 5, "after": {"experiment": "second", "objective": other, "K": 5}}
        for objective, other in dict([objectives, objectives[::-1]]).items()
    ]
    assert "experiments.second" in refusal(small("experiments.second.settings", settings))


def test_runs_of_a_cohort_continue_one_cohort() -> None:
    settings = [
        {"objective": "iwae", "K": 5, "after": {"experiment": "first", "objective": "vae"}},
        {"objective": "vae", "M": 5, "after": {"experiment": "first", "objective": "iwae", "K": 5}},
    ]
    message = "the runs of small/second-mnist-1L-T5 continue runs of different cohorts"
    assert refusal(small("experiments.second.settings", settings)) == f"params.yaml: experiments.second: {message}"
    settings[1] = {"objective": "vae", "M": 5}
    assert message in refusal(small("experiments.second.settings", settings))


def test_same_run_twice() -> None:
    settings = [{"objective": "vae"}, {"objective": "iwae", "K": [5, 5]}]
    text = refusal(small("experiments.first.settings", settings))
    assert text == "params.yaml: experiments.first: small/first-mnist-1L-T5 has iwae-M1-K5-s0 more than once"


def test_names() -> None:
    assert run_name("miwae", 4, 16, None, 3) == "miwae-M4-K16-s3"
    assert run_name("ciwae", 1, 64, 0.05, 0) == "ciwae-M1-K64-0.05-s0"
    assert cohort_name("rainforth-table1", "mnist", 1, 64) == "rainforth-table1-mnist-1L-T64"


def test_cohorts_are_runs_of_equal_shape() -> None:
    settings = [{"objective": "vae", "M": [1, 5]}, {"objective": "iwae", "K": 5}]
    cohorts = build_cohorts(small("experiments.first.settings", settings))
    assert {key: [run.name for run in cohort.runs] for key, cohort in cohorts.items()} == {
        "small/first-mnist-1L-T1": ["vae-M1-K1-s0"],
        "small/first-mnist-1L-T5": ["vae-M5-K1-s0", "iwae-M1-K5-s0"],
        "small/second-mnist-1L-T5": ["iwae-M1-K5-s0"],
    }
    assert all(key == cohort.key for key, cohort in cohorts.items())
    assert cohorts["small/second-mnist-1L-T5"].runs[0].continues == "small/first-mnist-1L-T1/vae-M1-K1-s0"
    assert cohorts["small/second-mnist-1L-T5"].continues == "small/first-mnist-1L-T1"
    assert cohorts["small/first-mnist-1L-T5"].continues is None


def test_scale_settings_reach_every_run() -> None:
    params = small("scales.small.stages", 3)
    runs = runs_of(build_cohorts(params))
    # A run keeps its whole schedule, whatever its depth.
    rates = [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    assert runs[0].schedule == tuple(Stage(3**i, rate) for i, rate in enumerate(rates))
    assert runs[-1].schedule == (Stage(3, 1e-4),)
    for run in runs:
        assert (run.max_steps, run.precision, run.seed) == (30, "float32", 0)
        assert run.algorithm_version == params.algorithm_version
        assert (run.protocol_name, run.latent) == ("published-code", (50,))
        assert run.protocol.adam_beta1 == 0.99


def test_the_depth_is_the_least_that_is_asked_for() -> None:
    def depths(**asked: int | None) -> list[int]:
        params = small("scales.small", {**SMALL["scales"]["small"], "max_steps": None, "stages": 8, **asked})
        return [run.total_steps for run in runs_of(build_cohorts(params))]

    # 59,600 images are 2,980 updates an epoch; the last run's own schedule has 3 epochs.
    *papers, last = depths()
    assert (set(papers), last) == ({3280 * 2980}, 3 * 2980)
    *papers, last = depths(stages=2)
    assert (set(papers), last) == ({4 * 2980}, 3 * 2980)
    assert set(depths(stages=2, max_steps=500)) == {500}
    part = {"datasets": ["mnist"], "layers": [1]}
    experiments = {"first": part | {"epochs": 2}, "second": part | {"epochs": 1}}
    *papers, last = depths(experiments=experiments)
    assert (set(papers), last) == ({2 * 2980}, 2980)


def test_a_depth_beyond_the_scale_is_refused() -> None:
    part = {"datasets": ["mnist"], "layers": [1]}
    experiments = {"first": part | {"epochs": 5}}
    params = small("scales.small", {**SMALL["scales"]["small"], "stages": 2, "experiments": experiments})
    assert refusal(params) == (
        "params.yaml: scales.small.experiments.first.epochs: 5 are more than the 4 epochs of its schedule at this scale"
    )


def test_seeds_may_be_others_at_some_sample_counts() -> None:
    part = {"datasets": ["mnist"], "layers": [1], "seeds_at": {1: [0, [1, 2]]}}
    cohorts = build_cohorts(small("scales.small.experiments", {"first": part}))
    seeds = {key: [run.seed for run in cohort.runs] for key, cohort in cohorts.items()}
    assert seeds == {
        "small/first-mnist-1L-T1": [0],
        "small/first-mnist-1L-T5": [0],
        "small/first-mnist-1L-T1-s1-2": [1, 2],
    }
    assert "T: 1, 5" in refusal(small("scales.small.experiments", {"first": {**part, "seeds_at": {7: [1]}}}))


def test_an_experiment_may_have_its_own_latent_units() -> None:
    cohorts = build_cohorts(small("experiments.first.latent", [2]))
    assert {run.latent for run in cohorts["small/first-mnist-1L-T1"].runs} == {(2,)}
    assert {run.latent for run in cohorts["small/second-mnist-1L-T5"].runs} == {(50,)}
    assert refusal(small("experiments.first.latent", [4, 2])) == (
        "params.yaml: scales.small.experiments.first.layers: must be [2], as many as the experiment's latent [4, 2] has"
    )


def test_an_experiment_overrides_its_scale() -> None:
    seeds = [[3, 4]]
    part = {
        "datasets": ["omniglot"],
        "layers": [2],
        "protocol": "paper-text",
        "seeds": seeds,
        "stages": 2,
        "max_steps": 7,
    }
    params = small("scales.small.experiments", {"first": part})
    cohorts = build_cohorts(params)
    assert set(cohorts) == {"small/first-omniglot-2L-T1-s3-4", "small/first-omniglot-2L-T5-s3-4"}
    assert [run.name for run in cohorts["small/first-omniglot-2L-T5-s3-4"].runs] == ["iwae-M1-K5-s3", "iwae-M1-K5-s4"]
    for run in runs_of(cohorts):
        assert run.protocol_name == "paper-text"
        assert run.protocol.adam_beta1 == 0.9
        assert run.max_steps == 7
        assert run.latent == (100, 50)
        # The exact rates, not those that the authors' code rounds.
        exact = [10 ** (-3 - i / 7) for i in range(8)]
        assert [stage.learning_rate for stage in run.schedule] == pytest.approx(exact, rel=1e-12)


def test_an_experiment_is_evaluated_by_its_own_settings(tmp_path: Path) -> None:
    params = small("scales.small.experiments.first.evaluation", {"test_images": 5, "num_samples": 70})
    write_cohorts(params, tmp_path)
    usual = params.scales["small"].evaluation.spec()
    cohorts = load_cohorts(tmp_path)
    changed = replace(usual, test_images=5, num_samples=70)
    assert load_evaluation(tmp_path, cohorts["small/first-mnist-1L-T5"]) == changed
    assert load_evaluation(tmp_path, cohorts["small/second-mnist-1L-T5"]) == usual


def test_an_experiment_can_be_run_at_some_of_its_sample_counts() -> None:
    first = {"datasets": ["mnist"], "layers": [1], "T": 5}
    assert set(build_cohorts(small("scales.small.experiments", {"first": first}))) == {"small/first-mnist-1L-T5"}
    where = "params.yaml: scales.small.experiments.first.T"
    assert refusal(small("scales.small.experiments.first.T", [5, 7])) == (
        f"{where}: 7 is not a sample count of the experiment (T: 1, 5)"
    )


def test_one_cohort_of_several_sample_counts() -> None:
    cohorts = build_cohorts(small("experiments.first.one_cohort", True))
    assert {key: [run.name for run in cohort.runs] for key, cohort in cohorts.items()} == {
        "small/first-mnist-1L": ["vae-M1-K1-s0", "iwae-M1-K5-s0"],
        "small/second-mnist-1L-T5": ["iwae-M1-K5-s0"],
    }
    # What continues such a run finds it there.
    assert cohorts["small/second-mnist-1L-T5"].continues == "small/first-mnist-1L"
    # And it is the run that it would be in a cohort of its own.
    apart = build_cohorts(small())["small/first-mnist-1L-T5"].runs
    assert cohorts["small/first-mnist-1L"].runs[1:] == apart


def test_single_details_of_the_protocol_are_switched() -> None:
    choices = [{}, {"adam_beta1": 0.9}, {"hold_out": False}, {"rounded_learning_rates": False}, "paper-text"]
    settings = [{"objective": "vae"}, {"objective": "iwae", "K": 5, "protocol": choices}]
    cohorts = build_cohorts(small("experiments.first.settings", settings))
    runs = {run.name: run for run in cohorts["small/first-mnist-1L-T5"].runs}
    base = runs.pop("iwae-M1-K5-s0")
    assert (base.protocol_name, base.protocol) == ("published-code", PROTOCOLS["published-code"])
    whole = runs.pop("iwae-M1-K5-paper-text-s0")
    assert (whole.protocol_name, whole.protocol) == ("paper-text", PROTOCOLS["paper-text"])
    switched = {
        name: (run.protocol_name, {field for field in DETAILS if getattr(run.protocol, field) != BASE[field]})
        for name, run in runs.items()
    }
    assert switched == {
        "iwae-M1-K5-adam-beta1-0.9-s0": ("published-code, adam_beta1 = 0.9", {"adam_beta1"}),
        "iwae-M1-K5-hold-out-false-s0": ("published-code, hold_out = false", {"hold_out"}),
        "iwae-M1-K5-rounded-learning-rates-false-s0": (
            "published-code, rounded_learning_rates = false",
            {"rounded_learning_rates"},
        ),
    }
    # What a switch stands for beyond the optimizer.
    assert runs["iwae-M1-K5-hold-out-false-s0"].train_images == 60_000
    rate = runs["iwae-M1-K5-rounded-learning-rates-false-s0"].schedule[1].learning_rate
    assert rate == pytest.approx(10 ** (-3 - 1 / 7), rel=1e-12)
    assert base.schedule[1].learning_rate == 7.2e-4


def test_a_switch_that_switches_nothing_is_refused() -> None:
    settings = [{"objective": "vae", "protocol": {"shuffle": False}}]
    assert refusal(small("experiments.first.settings", settings)) == (
        f"params.yaml: {FIRST_SETTING}.protocol: under published-code, shuffle is False already: nothing is switched"
    )


def test_a_continued_run_has_the_seed_of_its_source() -> None:
    cohorts = build_cohorts(small("scales.small.seeds", [0, [7, 8]]))
    continued = {key: [run.continues for run in cohort.runs] for key, cohort in cohorts.items() if "second" in key}
    assert continued == {
        "small/second-mnist-1L-T5": ["small/first-mnist-1L-T1/vae-M1-K1-s0"],
        "small/second-mnist-1L-T5-s7-8": [f"small/first-mnist-1L-T1-s7-8/vae-M1-K1-s{seed}" for seed in (7, 8)],
    }


def test_further_seeds_leave_the_cohorts_there_are_as_they_are(tmp_path: Path) -> None:
    write_cohorts(small(), tmp_path)
    before = files(tmp_path)
    write_cohorts(small("scales.small.seeds", [0, 1, [2, 3]]), tmp_path)
    after = files(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {"index.json"}
    assert {name for name in after if name.startswith("small/first-mnist-1L-T1")} == {
        f"small/first-mnist-1L-T1{seeds}.json" for seeds in ("", "-s1", "-s2-3")
    }
    # A cohort's name depends on its own seeds alone, whatever stands beside them.
    write_cohorts(small("scales.small.seeds", [[2, 3], 0]), tmp_path)
    again = files(tmp_path)
    assert all(again[name] == after[name] for name in again if name != "index.json")


def test_order_is_that_of_the_file_with_further_seeds_after_the_first(tmp_path: Path) -> None:
    params = small("scales.small.seeds", [0, 1])
    write_cohorts(params, tmp_path)
    assert load_order(tmp_path) == [
        "small/first-mnist-1L-T1",
        "small/first-mnist-1L-T5",
        "small/first-mnist-1L-T1-s1",
        "small/first-mnist-1L-T5-s1",
        "small/second-mnist-1L-T5",
        "small/second-mnist-1L-T5-s1",
    ]
    stale = read_json(tmp_path / "index.json")
    del stale["order"]
    write_json(tmp_path / "index.json", stale)
    remedy = r"index\.json: not the index of the cohorts \(lacks 'order'\); run `python -m pipeline\.experiments`"
    with pytest.raises(UserError, match=remedy):
        load_order(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "protocol", "count"),
    [
        ("mnist", "published-code", 59_600),
        ("mnist", "paper-text", 60_000),
        ("omniglot", "published-code", 23_000),
        ("omniglot", "paper-text", 24_345),
        ("fixed-mnist", "published-code", 50_000),
        ("fixed-mnist", "paper-text", 50_000),
    ],
)
def test_train_images(dataset: str, protocol: str, count: int) -> None:
    part = {"datasets": [dataset], "layers": [1], "protocol": protocol}
    runs = runs_of(build_cohorts(small("scales.small.experiments", {"first": part})))
    assert [run.train_images for run in runs] == [count, count]


TABLE_1 = {"T1": "vae-M1-K1", "T5": "vae-M5-K1 iwae-M1-K5", "T50": "vae-M50-K1 iwae-M1-K50"}
PAPER_GRID = {
    "burda-table1": ("mnist-1L mnist-2L omniglot-1L omniglot-2L", TABLE_1),
    "burda-table2": ("mnist-1L", {"T50": "iwae-M1-K50", "T1": "vae-M1-K1"}),
    "burda-table3": ("fixed-mnist-1L fixed-mnist-2L", TABLE_1),
    "every-objective": (
        "mnist-1L mnist-2L omniglot-1L omniglot-2L",
        {"T5": "ciwae-M1-K5-0.5", "T50": "ciwae-M1-K50-0.5 miwae-M5-K10 piwae-M5-K10"},
    ),
    "rainforth-table1": (
        "mnist-1L",
        {
            "T64": "iwae-M1-K64 vae-M64-K1"
            " miwae-M2-K32 miwae-M4-K16 miwae-M8-K8 miwae-M16-K4 miwae-M32-K2"
            " piwae-M2-K32 piwae-M4-K16 piwae-M8-K8 piwae-M16-K4 piwae-M32-K2"
            " ciwae-M1-K64-0.05 ciwae-M1-K64-0.25 ciwae-M1-K64-0.5 ciwae-M1-K64-0.75"
        },
    ),
}
"""Per experiment: datasets and depths, and the runs at each sample count."""


def test_paper_scale_holds_exactly_the_papers_cells(committed: Params) -> None:
    expected = {
        f"paper/{experiment}-{place}-{T}/{run}"
        for experiment, (places, by_count) in PAPER_GRID.items()
        for place in places.split()
        for T, runs in by_count.items()
        for run in runs.split()
    }
    cohorts = {key: cohort for key, cohort in build_cohorts(committed).items() if cohort.experiment in PAPER_GRID}
    cells = {
        f"{key.partition('-s')[0]}/{run.name.removesuffix(f'-s{run.seed}')}"
        for key, cohort in cohorts.items()
        if cohort.scale == "paper"
        for run in cohort.runs
    }
    assert len(expected) == 4 * 5 + 2 + 2 * 5 + 4 * 4 + 16
    assert cells == expected


def test_paper_scale_is_the_authors_schedule(committed: Params) -> None:
    cohorts = {key: cohort for key, cohort in build_cohorts(committed).items() if cohort.scale == "paper"}
    rates = [1e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1e-4]
    whole = tuple(Stage(3**i, rate) for i, rate in enumerate(rates))
    for cohort in cohorts.values():
        if cohort.experiment not in PAPER_GRID:
            continue
        for run in cohort.runs:
            assert run.total_steps == run.scheduled_steps
            assert run.protocol_name == "published-code"
            assert run.schedule == ((Stage(2187, 1e-4),) if cohort.experiment == "burda-table2" else whole)
    evaluation = committed.scales["paper"].evaluation
    assert (evaluation.num_samples, evaluation.bound_samples, evaluation.test_images) == (5000, 64, None)
    sources = {
        cohort.runs[0].name.removesuffix("-s0"): cohort.runs[0].continues
        for cohort in cohorts.values()
        if cohort.experiment == "burda-table2"
    }
    assert sources == {
        "iwae-M1-K50": "paper/burda-table1-mnist-1L-T1/vae-M1-K1-s0",
        "vae-M1-K1": "paper/burda-table1-mnist-1L-T50/iwae-M1-K50-s0",
    }


def paper_runs(committed: Params, experiment: str) -> list[RunSpec]:
    cohorts = build_cohorts(committed).values()
    return [
        run for cohort in cohorts if (cohort.scale, cohort.experiment) == ("paper", experiment) for run in cohort.runs
    ]


def test_every_cell_of_the_plane_is_trained_once(committed: Params) -> None:
    """M, K in {1, 2, ..., 64} with M * K <= 64 for MIWAE and PIWAE, where IWAE and VAE stand for what they are too."""
    counts = [2**i for i in range(7)]
    wanted = set()
    for M, K in ((M, K) for M in counts for K in counts if M * K <= 64):
        miwae = "vae" if K == 1 else "iwae" if M == 1 else "miwae"
        piwae = "piwae" if M > 1 else miwae
        wanted |= {(miwae, M, K), (piwae, M, K)}
    runs = paper_runs(committed, "mk-plane")
    assert sorted((run.objective, run.M, run.K) for run in runs) == sorted(wanted)
    assert len(wanted) == 49


def test_runs_in_two_experiments_are_the_same_runs(committed: Params) -> None:
    """By digest, which is what the store knows them by: they are trained once."""

    def digests(experiment: str) -> set[str]:
        return {digest(run, "data") for run in paper_runs(committed, experiment) if run.dataset == "mnist"}

    assert len(digests("mk-plane") & digests("rainforth-table1")) == 12
    assert len(digests("mk-plane") & digests("burda-table1")) == 1
    assert len(digests("later-estimators") & digests("burda-table1")) == 2
    assert len(digests("protocol-ablation") & digests("burda-table1")) == 2


def test_ablation_switches_every_detail_in_which_the_protocols_differ(committed: Params) -> None:
    runs = [run for run in paper_runs(committed, "protocol-ablation") if (run.layers, run.seed) == (1, 0)]
    switched = [{field for field in DETAILS if getattr(run.protocol, field) != BASE[field]} for run in runs]
    paper = asdict(PROTOCOLS["paper-text"])
    differ = {field for field in DETAILS if paper[field] != BASE[field]}
    assert [fields for fields in switched if len(fields) == 0] == [set()]
    assert {field for fields in switched if len(fields) == 1 for field in fields} == differ | {"output_bias"}
    assert [fields for fields in switched if len(fields) > 1] == [differ]


def test_later_estimators_are_all_that_no_paper_table_has(committed: Params) -> None:
    runs = paper_runs(committed, "later-estimators")
    assert {run.K for run in runs} == {5, 50}
    assert {run.objective for run in runs} == set(OBJECTIVES) - {"vae", "miwae", "ciwae", "piwae"}


def test_index_splits_cohorts_by_whether_they_continue(committed: Params) -> None:
    cohorts = build_cohorts(committed)
    value = index(committed, cohorts)
    assert value["every"].keys() == cohorts.keys()
    assert value["cohorts"].keys() | value["continued"].keys() == cohorts.keys()
    assert not value["cohorts"].keys() & value["continued"].keys()
    assert all(entry["continues"] in value["every"] for entry in value["continued"].values())
    assert value["continued"]["paper/burda-table2-mnist-1L-T50"] == {
        "scale": "paper",
        "experiment": "burda-table2",
        "name": "burda-table2-mnist-1L-T50",
        "dataset": "mnist",
        "continues": "paper/burda-table1-mnist-1L-T1",
    }
    assert set(value["datasets"]) == {cohort.dataset for cohort in cohorts.values()}


def test_index_has_the_evaluation_of_every_experiment(committed: Params) -> None:
    evaluations = index(committed, build_cohorts(committed))["evaluations"]
    assert {name: set(experiments) for name, experiments in evaluations.items()} == {
        name: set(scale.experiments) for name, scale in committed.scales.items()
    }
    assert evaluations["quick"]["burda-table1"]["snr_gradients"] == 0
    assert evaluations["quick"]["rainforth-table1"]["snr_gradients"] > 0


def test_index_has_the_toys_of_the_scales_that_have_one(committed: Params) -> None:
    assert set(index(committed, build_cohorts(committed))["toys"]) == {"quick", "overnight", "paper"}
    assert index(small(), build_cohorts(small()))["toys"] == {}


def test_a_corrected_estimator_is_refused_until_its_cohorts_alone_are_other_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formulas are in no file that DVC compares, so that it takes a corrected one's runs for finished."""
    write_cohorts(small(), tmp_path)
    before = read_json(tmp_path / "index.json")["estimators"]["small"]
    cohorts = load_cohorts(tmp_path)
    affected = {c.name for c in cohorts.values() if any(run.objective == "iwae" for run in c.runs)}
    assert before.keys() > affected > set()
    check_estimators(tmp_path)
    iwae = OBJECTIVES["iwae"]

    def become(factor: float) -> None:
        weights = lambda log_w: Weights(*(factor * part for part in iwae.weights(log_w)))  # noqa: E731
        monkeypatch.setitem(OBJECTIVES, "iwae", replace(iwae, weights=weights))
        fingerprint.cache_clear()

    try:
        become(1.0)
        check_estimators(tmp_path)
        become(1.001)
        with pytest.raises(UserError, match=r"objectives\.py: .*: run `python -m pipeline\.experiments`") as caught:
            check_estimators(tmp_path)
        assert f"small/{min(affected)}" in str(caught.value)
        assert write_cohorts(small(), tmp_path) == 1
        after = read_json(tmp_path / "index.json")["estimators"]["small"]
        check_estimators(tmp_path)
    finally:
        fingerprint.cache_clear()
    assert {name for name in after if after[name] != before[name]} == affected


@pytest.mark.parametrize(("objective", "M", "K"), [("vae", 4, 1), ("iwae-dreg", 1, 4)])
def test_a_toy_is_refused_where_an_estimator_that_it_measures_was_corrected(
    objective: str, M: int, K: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed("scales.small.toy", {"seed": 0, "samples": [1, 4], "gradients": 16})))
    params, folder = load_params(path), tmp_path / "cohorts"
    write_cohorts(params, folder)
    before = read_json(folder / "index.json")["toys"]["small"]
    check_estimators(folder)
    entry = OBJECTIVES[objective]

    def corrected(log_w: Tensor) -> Weights:
        weights = entry.weights(log_w)
        return weights._replace(path=2 * weights.path) if log_w.shape[:2] == (M, K) else weights

    monkeypatch.setitem(OBJECTIVES, objective, replace(entry, weights=corrected))
    fingerprint.cache_clear()
    try:
        with pytest.raises(UserError, match=r"objectives\.py: .*toy@small.*are then computed anew"):
            check_estimators(folder)
        write_cohorts(params, folder)
        check_estimators(folder)
    finally:
        fingerprint.cache_clear()
    after = read_json(folder / "index.json")["toys"]["small"]
    assert {name for name in after if after[name] != before[name]} == {"estimators"}
    # The stage's parameters: DVC runs it where one of them is another.
    (told,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["toy"]["do"]["params"]
    assert told == {"cohorts/index.json": ["toys.${key}"]}


@pytest.mark.parametrize("value", [None, 3, {"small": [1]}])
def test_estimators_of_another_shape_are_named(value: Any, tmp_path: Path) -> None:
    write_cohorts(small(), tmp_path)
    index = read_json(tmp_path / "index.json")
    write_json(tmp_path / "index.json", {**index, "estimators": value})
    with pytest.raises(UserError, match=r"index\.json: .*; run `python -m pipeline\.experiments`"):
        check_estimators(tmp_path)


def test_index_has_only_the_datasets_in_use() -> None:
    params = small()
    assert index(params, build_cohorts(params))["datasets"] == ["mnist"]


def test_graph_is_small_and_its_keys_are_plain(committed: Params) -> None:
    value = index(committed, build_cohorts(committed))
    # DVC reads a dot in a key as a step into it.
    assert not [key for key in value["every"] if "." in key]
    # check; download and binarize; train (or continue) and evaluate; toy; report and track.
    stages = (
        1 + 2 * len(value["datasets"]) + 2 * len(value["every"]) + len(value["toys"]) + 2 * len(value["scale_names"])
    )
    # DVC looks at each of them before it does anything: 2 s of CPU time at 109 stages when nothing is to be done.
    assert stages <= 180


@pytest.mark.parametrize("name", ["v1.0", "a/b"])
def test_scale_name_that_breaks_keys_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "scales": {name: SMALL["scales"]["small"]}}))
    with pytest.raises(UserError, match=name):
        build_cohorts(load_params(path))


def test_committed_cohorts_are_in_step(committed: Params, tmp_path: Path) -> None:
    """When this fails: `python -m pipeline.experiments`."""
    check_in_step(committed, ROOT / "cohorts")
    write_cohorts(committed, tmp_path)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.json")}
    there = {path.relative_to(ROOT / "cohorts"): path.read_text() for path in (ROOT / "cohorts").rglob("*.json")}
    assert there == fresh


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and what changes when it is written again."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def test_writing_touches_only_what_differs(tmp_path: Path) -> None:
    assert write_cohorts(small(), tmp_path) == 4
    before = files(tmp_path)
    assert set(before) == {
        "index.json",
        "small/first-mnist-1L-T1.json",
        "small/first-mnist-1L-T5.json",
        "small/second-mnist-1L-T5.json",
    }
    assert write_cohorts(small(), tmp_path) == 0
    assert files(tmp_path) == before
    second = {"datasets": ["mnist"], "layers": [1], "max_steps": 5}
    assert write_cohorts(small("scales.small.experiments.second", second), tmp_path) == 2
    after = files(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"index.json", "small/second-mnist-1L-T5.json"}


def test_stale_files_go(tmp_path: Path) -> None:
    write_cohorts(small(), tmp_path)
    stale = tmp_path / "old" / "first-mnist-1L-T1.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    assert write_cohorts(small(), tmp_path) == 1
    assert not stale.parent.exists()
    only_first = {"first": {"datasets": ["mnist"], "layers": [1]}}
    write_cohorts(small("scales.small.experiments", only_first), tmp_path)
    assert not (tmp_path / "small/second-mnist-1L-T5.json").exists()
    assert "small/second-mnist-1L-T5" not in read_json(tmp_path / "index.json")["every"]


def test_out_of_step(tmp_path: Path) -> None:
    remedy = r"is out of step with params\.yaml: run `python -m pipeline\.experiments`"
    with pytest.raises(UserError, match=remedy):
        check_in_step(small(), tmp_path)
    write_cohorts(small(), tmp_path)
    check_in_step(small(), tmp_path)
    with pytest.raises(UserError, match=remedy):
        check_in_step(small("scales.small.evaluation.seed", 124), tmp_path)


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("small/first-mnist-1L-T1.json", '"seed": 0', '"seed": 1', r"first-mnist-1L-T1\.json is not what"),
        ("index.json", '"test_images": 10', '"test_images": 9', "is out of step with"),
    ],
)
def test_a_file_that_was_edited_by_hand_is_refused(
    name: str, before: str, after: str, message: str, tmp_path: Path
) -> None:
    write_cohorts(small(), tmp_path)
    text = (tmp_path / name).read_text()
    assert before in text
    (tmp_path / name).write_text(text.replace(before, after))
    with pytest.raises(UserError, match=message):
        check_in_step(small(), tmp_path)
    write_cohorts(small(), tmp_path)
    check_in_step(small(), tmp_path)


def test_loading_what_was_written(tmp_path: Path) -> None:
    params = small()
    write_cohorts(params, tmp_path)
    cohorts = build_cohorts(params)
    assert load_cohorts(tmp_path) == cohorts
    key = "small/second-mnist-1L-T5"
    assert load_cohort(tmp_path, key) == cohorts[key]
    assert load_evaluation(tmp_path, cohorts[key]) == params.scales["small"].evaluation.spec()
    with pytest.raises(UserError, match=r"unknown cohort 'small/third'; known: small/first-mnist-1L-T1, "):
        load_cohort(tmp_path, "small/third")


@pytest.mark.parametrize("name", ["index.json", "small/first-mnist-1L-T5.json"])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"runs": {}}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named_and_written_anew(name: str, content: bytes, tmp_path: Path) -> None:
    write_cohorts(small(), tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_evaluation(tmp_path, load_cohort(tmp_path, "small/first-mnist-1L-T5"))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "run `python -m pipeline.experiments`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert write_cohorts(small(), tmp_path) == 1
    assert (tmp_path / name).read_bytes() == before


def test_a_name_that_is_too_long_for_a_folder() -> None:
    switched = {"adam_beta1": 0.9, "second_moment_start": 0.0, "adam_lagged": False, "adam_eps_uncorrected": False}
    switched |= {"gradient": "mean", "shuffle": True, "identical_initial_layers": False, "output_bias": False}
    switched |= {"hold_out": False, "rounded_learning_rates": False}
    text = refusal(small("experiments.first.settings", [{"objective": "iwae", "K": 5, "protocol": switched}]))
    assert "names a folder and is longer than 200 letters" in text


def test_messages_name_the_file_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(changed("experiments.first.settings.0.objective", "elbow"), sort_keys=False))
    command = [sys.executable, "-m", "pipeline.experiments", "--params", str(path), "--cohorts", str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"error: {path}: experiments.first.settings.0.objective: unknown objective 'elbow'")


def test_the_gpu_trial_is_in_step_and_differs_from_the_paper_scale_in_what_it_tries(
    committed: Params, tmp_path: Path
) -> None:
    """When this fails: `python -m pipeline.experiments --params gpu_trial/params.yaml --cohorts gpu_trial/cohorts`."""
    trial = load_params(ROOT / "gpu_trial/params.yaml")
    write_cohorts(trial, tmp_path)
    folder = ROOT / "gpu_trial/cohorts"
    there = {path.relative_to(folder): path for path in folder.rglob("*.json")}
    fresh = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.json")}
    assert {name: path.read_text() for name, path in there.items()} == {n: p.read_text() for n, p in fresh.items()}
    paper = build_cohorts(committed)
    for cohort in build_cohorts(trial).values():
        (run,) = cohort.runs
        full = next(other for other in paper[f"paper/{cohort.name}"].runs if other.name == run.name)
        assert run.total_steps == 364 * run.steps_per_epoch
        allowed = {"max_steps", "schedule", "protocol_name", "protocol", "precision", "train_images"}
        same = {"schedule", "protocol_name", "protocol", "train_images"} if "code" in cohort.scale else set()
        ours, theirs = run.to_json(), full.to_json()
        assert {key for key in ours if ours[key] != theirs[key]} <= allowed - same
    assert trial.scales["trial-code-tf32"].evaluation == committed.scales["paper"].evaluation
