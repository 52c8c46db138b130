"""How a run ended, as `run.json` and the results say it."""

from __future__ import annotations

from dataclasses import dataclass

FINISHED = "finished"
_DIVERGED = "diverged at step "


@dataclass(frozen=True)
class Status:
    """`finished`, or `diverged at step N`."""

    diverged_at: int | None = None
    """The update after which its numbers were first seen not to be finite."""

    def __str__(self) -> str:
        return FINISHED if self.diverged_at is None else f"{_DIVERGED}{self.diverged_at}"

    @property
    def is_finished(self) -> bool:
        return self.diverged_at is None

    @staticmethod
    def of(text: str) -> Status:
        """Raises: ValueError when `text` is no status."""
        if text == FINISHED:
            return Status()
        if not text.startswith(_DIVERGED):
            raise ValueError(f"{text!r} is no status of a run")
        return Status(int(text.removeprefix(_DIVERGED)))
