"""Every number of the papers' tables, written out here a second time by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from pipeline.published import (
    TAGS,
    Place,
    Setting,
    burda_table,
    published_at,
    published_values,
    rainforth_plots,
    rainforth_table,
    reruns_of,
)

COLUMNS = [("vae", 1), ("iwae", 1), ("vae", 5), ("iwae", 5), ("vae", 50), ("iwae", 50)]
BURDA = {
    ("burda-table1", "mnist", 1): "86.76/19 86.76/19 86.47/20 85.54/22 86.35/20 84.78/25",
    ("burda-table1", "mnist", 2): "85.33/16+5 85.33/16+5 85.01/17+5 83.89/21+5 84.78/17+5 82.90/26+7",
    ("burda-table1", "omniglot", 1): "108.11/28 108.11/28 107.62/28 106.12/34 107.80/28 104.67/41",
    ("burda-table1", "omniglot", 2): "107.58/28+4 107.56/30+5 106.31/30+5 104.79/38+6 106.30/30+5 103.38/44+7",
    ("burda-table3", "fixed-mnist", 1): "88.71/19 88.71/19 88.83/19 87.63/22 89.05/20 87.10/24",
    ("burda-table3", "fixed-mnist", 2): "88.08/16+5 88.08/16+5 87.63/17+5 86.17/21+5 87.86/17+6 85.32/24+7",
}
CELLS = [
    (place, objective, k, *cell.split("/"))
    for place, line in BURDA.items()
    for (objective, k), cell in zip(COLUMNS, line.split(), strict=True)
]
RAINFORTH_SETTINGS = [
    Setting("iwae", 1, 64),
    Setting("piwae", 4, 16),
    Setting("piwae", 8, 8),
    Setting("miwae", 4, 16),
    Setting("miwae", 8, 8),
    Setting("ciwae", 1, 64, 0.05),
    Setting("ciwae", 1, 64, 0.5),
    Setting("vae", 64, 1),
]
# (value, sd or None, unverified)
RAINFORTH = {
    "iwae_64": [
        (-86.11, 0.10, False),
        (-85.68, 0.06, True),
        (-85.74, 0.07, False),
        (-85.60, None, False),
        (-85.69, 0.04, False),
        (-85.91, 0.11, True),
        (-86.08, 0.08, False),
        (-86.69, 0.08, False),
    ],
    "log_p_hat": [
        (-84.52, 0.02, False),
        (-84.40, 0.17, True),
        (-84.46, 0.06, False),
        (-84.56, None, False),
        (-84.97, 0.10, False),
        (-84.57, 0.09, False),
        (-85.24, 0.08, False),
        (-86.21, 0.19, False),
    ],
    "kl_q_p": [
        (-1.59, 0.10, False),
        (-1.27, 0.18, True),
        (-1.28, 0.09, False),
        (-1.04, None, False),
        (-0.72, 0.11, False),
        (-1.34, None, True),
        (-0.84, 0.11, False),
        (-0.47, 0.20, False),
    ],
}


@pytest.mark.parametrize(("place", "objective", "k", "nll", "units"), CELLS)
def test_burda_tables_1_and_3(place: tuple[str, str, int], objective: str, k: int, nll: str, units: str) -> None:
    where = Place(*place, Setting.burda(objective, k))
    published = published_at(where, "nll")
    assert published is not None
    assert (published.value, published.sd, published.tag) == (float(nll), None, "read")
    for layer, count in enumerate(units.split("+"), 1):
        active = published_at(where, f"active_units_{layer}")
        assert active is not None
        assert active.value == int(count)


def test_burda_table_2_has_both_stages() -> None:
    rows = [
        tuple(None if pd.isna(value) else value for value in row)
        for row in burda_table("burda-table2")[
            ["first_objective", "first_k", "objective", "k", "nll", "active_units_1"]
        ].itertuples(index=False)
    ]
    assert rows == [
        (None, None, "vae", 1, 86.76, 19),
        ("vae", 1, "iwae", 50, 84.88, 22),
        (None, None, "iwae", 50, 84.78, 25),
        ("iwae", 50, "vae", 1, 86.02, 23),
    ]
    second = published_at(Place("burda-table2", "mnist", 1, Setting("vae", 1, 1)), "nll")
    assert second is not None
    assert second.value == 86.02


def source_tag(setting: Setting, metric: str) -> str:
    """How many sources quote a number: two or more unless said here."""
    if (setting, metric) == (Setting("miwae", 4, 16), "kl_q_p"):
        return "derived"
    once = {
        *((Setting("piwae", 8, 8), name) for name in RAINFORTH),
        *((Setting("ciwae", 1, 64, 0.5), name) for name in RAINFORTH),
        (Setting("ciwae", 1, 64, 0.05), "log_p_hat"),
        (Setting("miwae", 4, 16), "iwae_64"),
    }
    return "quoted once" if metric == "kl_q_p" or (setting, metric) in once else "quoted"


def test_a_derived_number_is_the_difference_of_two_quoted_ones() -> None:
    place = Place("rainforth-table1", "mnist", 1, Setting("miwae", 4, 16))
    bound, likelihood, kl = (published_at(place, metric) for metric in ("iwae_64", "log_p_hat", "kl_q_p"))
    assert bound is not None
    assert likelihood is not None
    assert kl is not None
    assert kl.value == pytest.approx(bound.value - likelihood.value)
    assert "-85.60 + 84.56" in kl.source


def test_who_quotes_is_named_where_it_is_recorded() -> None:
    def quoted_by(objective: str, M: int, K: int, parameter: float | None = None) -> str:
        published = published_at(Place("rainforth-table1", "mnist", 1, Setting(objective, M, K, parameter)), "nll")
        assert published is not None
        return published.quoted_by

    assert quoted_by("piwae", 8, 8) == "pythae's model card reproduced_piwae"
    assert quoted_by("ciwae", 1, 64, 0.05) == "pythae's model card reproduced_ciwae"
    assert quoted_by("vae", 64, 1) == ""


@pytest.mark.parametrize(
    ("dataset", "layers", "k", "nll"),
    [
        ("mnist", 1, 5, 85.42),
        ("mnist", 1, 50, 84.81),
        ("mnist", 2, 5, 84.04),
        ("mnist", 2, 50, 83.44),
        ("omniglot", 1, 5, 106.33),
        ("omniglot", 1, 50, 105.05),
        ("omniglot", 2, 5, 104.71),
        ("omniglot", 2, 50, 103.72),
    ],
)
def test_vr_max_of_li_and_turner(dataset: str, layers: int, k: int, nll: float) -> None:
    published = published_at(Place("later-estimators", dataset, layers, Setting("vr-max", 1, k)), "nll")
    assert published is not None
    assert (published.value, published.tag, published.sd) == (nll, "read", None)
    assert "1602.02311" in published.source


def test_reruns_by_others() -> None:
    """Three model cards with values, and the reproduction record with distances; * is Burda's own code."""
    for setting, value, published in (
        (Setting("miwae", 8, 8), -85.09, -84.97),
        (Setting("piwae", 8, 8), -84.58, -84.46),
        (Setting("ciwae", 1, 64, 0.05), -84.74, -84.57),
    ):
        (one,) = reruns_of(Place("rainforth-table1", "mnist", 1, setting), "log_p_hat")
        assert (one.value, one.distance) == (value, pytest.approx(published - value))
        assert "pythae" in one.by
    record = {
        ("burda-table1", "mnist", 1): ".25 .02 .29 .01 .05",
        ("burda-table1", "mnist", 2): ".26 .46 .79 .41/.03* .08",
        ("burda-table1", "omniglot", 1): "2.97 - 5.7 6.1/.18* 1.16/.01*",
        ("burda-table1", "omniglot", 2): "3.8 - 5.2 .15* 5.1/.13*",
        ("burda-table3", "fixed-mnist", 1): "1.16 1.02 1.73 .02 .03",
        ("burda-table3", "fixed-mnist", 2): "1.27 1.24 1.43 .59 .55",
    }
    settings = [("vae", 1), ("vae", 5), ("vae", 50), ("iwae", 5), ("iwae", 50)]
    for where, line in record.items():
        for (objective, k), text in zip(settings, line.split(), strict=True):
            reruns = reruns_of(Place(*where, Setting.burda(objective, k)), "nll")
            shown = "/".join(f"{one.distance:.2f}{'*' if 'code' in one.by else ''}" for one in reruns)
            parts = [part for part in text.split("/") if part != "-"]
            assert shown == "/".join(f"{float(part.rstrip('*')):.2f}{'*' * part.count('*')}" for part in parts)


@pytest.mark.parametrize("metric", RAINFORTH)
def test_rainforth_table_1(metric: str) -> None:
    for setting, (value, sd, unverified) in zip(RAINFORTH_SETTINGS, RAINFORTH[metric], strict=True):
        published = published_at(Place("rainforth-table1", "mnist", 1, setting), metric)
        assert published is not None
        assert (published.value, published.sd) == (value, sd)
        assert published.judged is not unverified
        assert published.runs == 4
        assert published.tag == ("unverified" if unverified else source_tag(setting, metric))


def test_what_is_read_off_a_plot_is_shown_and_never_judged() -> None:
    assert set(rainforth_plots()["tag"]) == {"read off a plot"}
    vae, iwae = (
        published_at(Place("rainforth-table1", "mnist", 1, setting), "snr_encoder")
        for setting in (Setting("vae", 64, 1), Setting("iwae", 1, 64))
    )
    assert vae is not None
    assert iwae is not None
    assert (vae.value, iwae.value) == (0.825, 0.18)
    assert not vae.judged


def test_nothing_but_the_papers_numbers_is_there() -> None:
    assert [len(burda_table(f"burda-table{n}")) for n in (1, 2, 3)] == [24, 4, 12]
    assert len(rainforth_table()) == 24
    assert {published.tag for published in published_values().values()} == set(TAGS)
    for frame in (*(burda_table(f"burda-table{n}") for n in (1, 2, 3)), rainforth_table()):
        assert frame["source"].str.contains("arXiv").all()


def test_nll_and_log_p_hat_mirror_each_other() -> None:
    likelihood = published_at(Place("burda-table1", "mnist", 1, Setting("iwae", 1, 50)), "log_p_hat")
    nll = published_at(Place("rainforth-table1", "mnist", 1, Setting("vae", 64, 1)), "nll")
    assert likelihood is not None
    assert likelihood.value == -84.78
    assert nll is not None
    assert nll.value == 86.21


def test_where_the_papers_are_silent_there_is_nothing() -> None:
    assert published_at(Place("every-objective", "mnist", 1, Setting("iwae", 1, 50)), "nll") is None
    assert published_at(Place("burda-table1", "mnist", 1, Setting("stl", 1, 50)), "nll") is None
    assert published_at(Place("burda-table1", "mnist", 3, Setting("vae", 1, 1)), "nll") is None
    assert published_at(Place("burda-table1", "mnist", 1, Setting("vae", 1, 1)), "active_units_2") is None


@pytest.mark.parametrize(("objective", "M", "K"), [("vae", 50, 1), ("iwae", 1, 50)])
def test_k_of_burda_in_M_and_K(objective: str, M: int, K: int) -> None:
    setting = Setting.burda(objective, 50)
    assert (setting.M, setting.K, setting.T) == (M, K, 50)
