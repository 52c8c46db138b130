"""What all figures of the report share."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from pipeline.reporting.forms.drawing import Figure, finish, numbered, open_canvas


def drawn(name: str, shift: float) -> Figure:
    with open_canvas(name, 3, 2) as canvas:
        for ax in canvas.subplots(1, 2):
            ax.plot([0, 1], [shift, 1 + shift], "o-")
        return finish(canvas, name, "A line", "Rises.", pd.DataFrame())


@pytest.mark.parametrize("name", ["one", "another_figure"])
def test_ids_are_named_for_the_figure_and_every_reference_has_its_target(name: str) -> None:
    svg = drawn(name, 0).svg
    targets, used = re.findall(r' id="([^"]+)"', svg), re.findall(r'(?:url\(|href=")#([\w-]+)', svg)
    assert len(used) >= 4
    assert set(used) <= set(targets)
    assert all(re.fullmatch(rf"{name}-\d+", reference) for reference in used)


def test_the_last_bit_of_a_coordinate_does_not_show() -> None:
    """As two processes draw one figure: alike to six decimals, but for the ids, which are hashes of all digits."""
    clips = '<g clip-path="url(#{0})"/><use xlink:href="#{1}"/><path id="{1}"/><clipPath id="{0}"/>'
    here, there = clips.format("pbf2469b115", "m0123456789"), clips.format("pd7ece2be07", "m9876543210")
    assert here != there
    assert numbered(here, "x") == numbered(there, "x")
    assert numbered(here, "x") != numbered(here, "y")
    # Colours have no such form.
    assert numbered('<g style="fill: #d55e00" id="axes_1"/>', "x") == '<g style="fill: #d55e00" id="axes_1"/>'
