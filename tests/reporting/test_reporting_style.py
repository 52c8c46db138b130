"""Contrast of every pair of colours that the page sets text in, by WCAG 2's formula, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "pipeline" / "reporting" / "page.css").read_text(encoding="utf-8")
TEXT = 4.5
"""WCAG 2.1, level AA, for text of normal size."""
PAIRS = [
    *((ink, ground) for ink in ("ink", "soft", "faint", "link") for ground in ("page", "band")),
    *((name, f"{name}-back") for name in ("good", "bad", "warn", "fine")),
    *(("ink", ground) for ground in ("near", "better-1", "better-2", "worse-1", "worse-2")),
    ("link", "warn-back"),
]


def palettes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    light, dark = (dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return {"light": light, "dark": {**light, **dark}}


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(scheme: str) -> None:
    colours = palettes()[scheme]
    ratios = {pair: contrast(*(colours[name] for name in pair)) for pair in PAIRS}
    assert not {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < TEXT}


def test_no_colour_is_set_beside_the_variables() -> None:
    rules = re.sub(r":root \{.*?\}", "", CSS, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)


def test_dark_redefines_every_colour() -> None:
    light, dark = (re.findall(r"--([a-z0-9-]+):", block) for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL))
    assert sorted(light) == sorted(dark)
