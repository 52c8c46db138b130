"""How a run ended, as text and back."""

from __future__ import annotations

import pytest

from pipeline.records.status import Status


def test_a_status_travels_as_text() -> None:
    for status, text in ((Status(), "finished"), (Status(17), "diverged at step 17")):
        assert str(status) == text
        assert Status.of(text) == status
    assert Status().is_finished
    assert not Status(0).is_finished
    for text in ("", "diverged", "diverged at step", "under way"):
        with pytest.raises(ValueError, match=r"status|invalid literal"):
            Status.of(text)
