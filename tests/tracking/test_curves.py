"""The points of a curve."""

from __future__ import annotations

from pipeline.tracking.curves import LOGGED_POINTS, thin_rows


def test_a_curve_logged_in_pieces_equals_one_logged_whole() -> None:
    rows = [{"step": float(step)} for step in range(0, 5001)]
    whole = thin_rows(rows, 5000)
    assert whole[0]["step"] == 0
    assert whole[-1]["step"] == 5000
    assert len(whole) == LOGGED_POINTS + 1
    pieces = thin_rows(rows[:1234], 5000)
    pieces += thin_rows(rows[1234:], 5000, pieces[-1]["step"])
    assert pieces == whole
