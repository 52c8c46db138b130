"""The page as a reader meets it, in a headless Chromium: it fits, it sorts, its links lead somewhere, nothing fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")

REPORTS = Path(__file__).parents[2] / "reports"
WIDE, NARROW = 1280, 360
MINUS = "−"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium to look at the page with; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox refuses to work for root.
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        chromium = driver.chromium.launch(executable_path=program, args=sandbox)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, folder: Path, **options: Any) -> Iterator[Any]:
    """The page of a report; what the browser complains of fails the test."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": WIDE, "height": 800}, **options)
    page = context.new_page()
    # Generous: a machine that is busy with other things is no fault of the page.
    page.set_default_timeout(120_000)
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    # A download, too, ends as a request that was aborted.
    page.on("requestfailed", lambda r: complaints.append(r.url) if r.failure != "net::ERR_ABORTED" else None)
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto((folder / "index.html").as_uri())
    yield page
    context.close()
    assert not complaints


def brightness(page: Any) -> int:
    """Of the page's background, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


# Anything but hidden parts that reaches over the right edge and does not scroll in a box of its own.
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((part) =>
  part.getBoundingClientRect().right > document.documentElement.clientWidth + 1 &&
  !part.closest('.wide, .picture, .hidden, .skip')).map((part) => part.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("name", ["fixture", "quick", "paper"])
def test_the_page_fits_wide_and_narrow_light_and_dark(name: str, browser: Any, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("report") if name == "fixture" else REPORTS / name
    for scheme in ("light", "dark"):
        with opened(browser, folder, color_scheme=scheme) as page:
            assert (brightness(page) < 150) == (scheme == "dark")
            for width in (WIDE, NARROW):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate(OVERFLOWING) == []
            page.emulate_media(media="print")
            assert brightness(page) == 765
            assert not page.is_visible("nav")


def numbers(page: Any, selector: str, column: int) -> list[float]:
    """What a column shows, a NaN for what is no number."""
    texts = page.locator(f"{selector} tbody tr:not(.group) > :nth-child({column}) .value").all_text_contents()
    return pd.to_numeric(pd.Series(texts).str.replace(MINUS, "-"), errors="coerce").tolist()


def test_a_table_sorts_by_numbers_and_back(browser: Any, report: Path) -> None:
    selector = "#table-burda_table1 table"
    known = pd.read_csv(report / "tables" / "burda_table1.csv")["ours"].round(2)
    with opened(browser, report) as page:
        page.locator("summary", has_text="Burda et al., Table 1: density").click()
        heading = page.locator(f"{selector} thead th", has_text="ours")
        before = numbers(page, selector, 2)
        pd.testing.assert_series_equal(pd.Series(before), known, check_names=False)
        waiting = [float("nan")] * int(known.isna().sum())
        assert waiting
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        ascending = sorted(known.dropna()) + waiting
        assert numbers(page, selector, 2) == pytest.approx(ascending, nan_ok=True)
        assert page.text_content("#status") == "Table sorted by ours, ascending"
        # The rows say to which group they belong, now that the groups' headings are gone.
        assert not page.is_visible(f"{selector} tr.group")
        first = page.locator(f"{selector} tbody tr:not(.group) .of").first
        assert first.is_visible()
        assert first.text_content().startswith("MNIST")
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        descending = sorted(known.dropna(), reverse=True) + waiting
        assert numbers(page, selector, 2) == pytest.approx(descending, nan_ok=True)
        page.keyboard.press("Space")
        assert heading.get_attribute("aria-sort") == "none"
        assert numbers(page, selector, 2) == pytest.approx(before, nan_ok=True)
        assert page.is_visible(f"{selector} tr.group >> nth=0")


def test_text_sorts_with_its_numbers_in_order(browser: Any, report: Path) -> None:
    selector = "[aria-label^='Rainforth et al., Table 1'] table"
    with opened(browser, report) as page:
        page.locator("summary", has_text="Rainforth et al., Table 1").click()
        page.locator(f"{selector} thead th", has_text="objective").locator("button").click()
        names = page.locator(f"{selector} tbody tr:not(.group) > :first-child .value").all_text_contents()
    assert names.index("MIWAE(4, 16)") < names.index("MIWAE(16, 4)")
    assert names[0] == "CIWAE(β=0.05)"


def test_every_table_sorts(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        tables, headings = page.locator("table"), page.locator("thead th")
        assert tables.count() == page.locator("table.sortable").count() > 8
        assert headings.count() == page.locator("thead th[aria-sort='none'] button").count()


def test_without_scripts_the_tables_stand_as_they_are(browser: Any, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as page:
        assert page.locator("#table-table1 table").is_visible()
        assert page.locator("thead button").count() == 0
        assert not page.locator(".of").first.is_visible()


def test_a_link_to_a_csv_leads_to_the_numbers(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        with page.expect_download() as download:
            page.locator("#figure-objectives .files a", has_text="CSV").click()
        fetched = Path(download.value.path())
        assert fetched.read_bytes() == (report / "figures" / "objectives.csv").read_bytes()


@pytest.mark.parametrize("name", ["fixture", "quick", "paper"])
def test_no_link_is_dead(name: str, browser: Any, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("report") if name == "fixture" else REPORTS / name
    with opened(browser, folder) as page:
        targets: list[str] = page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
        ids: set[str] = set(page.evaluate("[...document.querySelectorAll('[id]')].map((part) => part.id)"))
    assert targets
    dead = [
        target
        for target in targets
        if not target.startswith("https:")
        and not (target[1:] in ids if target.startswith("#") else (folder / target).is_file())
    ]
    assert not dead


def test_the_keyboard_reaches_the_answer_first(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement")
        assert focused.text_content() == "To the answer"
        assert focused.bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#answer")


def test_a_link_into_a_fold_opens_it(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.evaluate("document.querySelector('details').id = 'fold'")
        assert not page.evaluate("document.querySelector('details').open")
        page.evaluate("location.hash = '#fold'")
        page.wait_for_function("document.querySelector('details').open")


def test_the_first_screen_holds_six_answers(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        cards = page.locator(".card")
        assert cards.count() == 6
        for card in cards.all():
            assert card.locator("h3 a").inner_text().endswith("?")
            assert card.locator("p b").first.is_visible()
            assert card.locator(".strip").bounding_box()["height"] > 30
            assert card.locator(".chip").is_visible()
            assert page.locator(f"section h2{card.locator('h3 a').get_attribute('href')}").count() == 1
        # A reader who closes the page now has seen the answers: they end within the first screen of a laptop.
        last = page.locator(".card").last.bounding_box()
        assert last["y"] + last["height"] < 900
        page.set_viewport_size({"width": NARROW, "height": 800})
        boxes = [card.bounding_box() for card in cards.all()]
        assert len({box["x"] for box in boxes}) == 1, "on a phone the cards stand below each other"


def test_on_a_phone_a_claim_stands_above_its_effect(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.set_viewport_size({"width": NARROW, "height": 800})
        page.locator("#claims > summary").click()
        row = page.locator("#claims [aria-label='Claims'] tbody tr:not(.group)").first
        for cell in row.locator("th, td").all():
            box = cell.bounding_box()
            assert box["x"] + box["width"] <= NARROW
        effect = row.locator("[data-label=effect]")
        assert effect.bounding_box()["y"] > row.locator("th").bounding_box()["y"]
        # Chromium tells the content as one string or as the two that make it up.
        content = effect.evaluate("(cell) => getComputedStyle(cell, '::before').content")
        assert content.replace('" "', "") == '"effect: "'


def test_folds_keep_the_page_short_and_open(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        assert page.evaluate("document.documentElement.scrollHeight") < 12 * 800
        folds = page.locator("details.fold")
        assert folds.count() > 10
        assert page.locator("details.fold[open]").count() == 0
        inside = page.locator("#claims table").first
        assert not inside.is_visible()
        page.locator("#claims > summary").click()
        assert inside.is_visible()


# How much larger than on the screen a picture is drawn.
ENLARGED = """() => [...document.querySelectorAll('.picture svg[style]')].filter((svg) => svg.checkVisibility()).map(
  (svg) => svg.getBoundingClientRect().width / parseFloat(svg.style.width))"""


def test_on_paper_no_picture_is_blown_up(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.emulate_media(media="print")
        enlarged = page.evaluate(ENLARGED)
        assert len(enlarged) > 10
        assert max(enlarged) < 1.01
        # A narrow sheet has them smaller, and whole.
        page.set_viewport_size({"width": NARROW, "height": 800})
        assert max(page.evaluate(ENLARGED)) < 1.01
        right = "(pictures) => Math.max(...pictures.map((svg) => svg.getBoundingClientRect().right))"
        assert page.locator(".picture svg[style]").evaluate_all(right) <= NARROW


# Points of the smallest letters of each picture, by how its viewBox, whose unit is a point, is scaled.
PRINTED = """() => [...document.querySelectorAll('.picture svg[style]')].map((svg) => Math.min(
  ...[...svg.querySelectorAll('text')].map((text) => parseFloat(getComputedStyle(text).fontSize))) *
  Math.min(...['width', 'height'].map((side) => svg.getBoundingClientRect()[side] / svg.viewBox.baseVal[side])) *
  0.75)"""
A4_ON_ITS_SIDE = {"width": 1047, "height": 718}
"""CSS pixels within margins of a centimetre."""


def test_on_paper_the_letters_of_every_picture_are_readable(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        page.emulate_media(media="print")
        page.set_viewport_size(A4_ON_ITS_SIDE)
        letters = page.evaluate(PRINTED)
        assert len(letters) > 10
        assert min(letters) >= 6.9


def test_on_a_phone_both_objectives_of_table_1_are_seen(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.set_viewport_size({"width": 390, "height": 800})
        box = page.locator("#table-table1 .wide")
        assert box.evaluate("(box) => box.scrollWidth <= box.clientWidth")
        assert "IWAE: active units" in box.inner_text()


def test_a_command_in_the_banner_stays_in_one_line(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.evaluate("document.querySelector('.banner').innerHTML = 'The rest: <code>make paper</code>.'")
        page.set_viewport_size({"width": 200, "height": 800})
        assert page.locator(".banner code").evaluate("(code) => code.getClientRects().length") == 1


def test_the_scale_switch_leads_to_the_other_scales(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        switch = page.locator("nav .scales")
        assert switch.locator("[aria-current=page]").inner_text() == "quick"
        switch.locator("a", has_text="paper").click()
        assert page.url == (report.parent / "paper" / "index.html").as_uri()


def test_on_paper_heads_are_text_and_folds_stand_open(browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert (
            page.locator("details.fold:not([open])").count()
            == page.locator("section:last-of-type details.fold").count()
        )
        # A button is painted once; a head that every page repeats must be nothing but text.
        shown = page.evaluate("[...document.querySelectorAll('thead button')].map((b) => getComputedStyle(b).display)")
        assert set(shown) == {"contents"}
        heads = page.evaluate("[...document.querySelectorAll('thead')].map((head) => getComputedStyle(head).display)")
        assert set(heads) == {"table-header-group"}
        # What stays folded cannot be opened there: it is left out, and the reader is told.
        closed = page.locator("details:not([open])")
        assert closed.count() > 10
        assert not any(closed.nth(i).is_visible() for i in range(closed.count()))
        assert page.locator(".paper-only").is_visible()
        # A question stands with what follows it, and the words above a table with the table.
        for lone in ("h2", "section > h2 + p", ".tabled > .soft"):
            kept = page.locator(lone).evaluate_all("(parts) => parts.map((part) => getComputedStyle(part).breakAfter)")
            assert kept
            assert set(kept) == {"avoid"}
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details.fold[open]").count() == 0


# Letters by the pixels that they come to on the screen, those of pictures by how the picture is scaled.
LETTERS = """() => [...document.querySelectorAll('body *')].filter((part) =>
  [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
  !part.closest('script, style, math, .hidden, .skip')).map((part) => {
    const picture = part instanceof SVGElement && part.ownerSVGElement;
    const matrix = picture ? part.getScreenCTM() : null;
    const scale = matrix ? Math.hypot(matrix.a, matrix.b) : 1;
    return [parseFloat(getComputedStyle(part).fontSize) * scale, part.textContent.trim().slice(0, 40)];
  }).filter(([size]) => size > 0 && size < 10.5)"""


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_letter_can_be_read(width: int, browser: Any, report: Path) -> None:
    with opened(browser, report) as page:
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        assert page.evaluate(LETTERS) == []


def test_figures_take_the_pages_colours_in_the_dark(browser: Any, report: Path) -> None:
    axis = "#figure-rainforth_sweep text"
    colours = {}
    for scheme in ("light", "dark"):
        with opened(browser, report, color_scheme=scheme) as page:
            colours[scheme] = page.locator(axis).first.evaluate("(text) => getComputedStyle(text).fill")
            body = page.evaluate("getComputedStyle(document.body).color")
            assert colours[scheme] == body
    assert colours["light"] != colours["dark"]
