"""A section of the report: a question, its answer in words, and the figures and tables that show it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reporting.forms.drawing import Figure, MissingFigure
from pipeline.reporting.forms.tables import Table


@dataclass(frozen=True)
class Block:
    """A figure or table in its place on the page."""

    item: Figure | MissingFigure | Table
    folded: bool = False
    """Whether it is closed when the page opens."""


@dataclass(frozen=True)
class Section:
    """A question of the report, and the tables and figures that answer it, in their order on the page."""

    name: str
    """Its anchor on the page."""
    title: str
    """A question."""
    short: str
    """Its name in the navigation."""
    lead: str
    """What the section shows, in a sentence or two."""
    blocks: tuple[Block, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        return tuple(block.item for block in self.blocks if isinstance(block.item, Figure))

    @property
    def missing(self) -> tuple[MissingFigure, ...]:
        return tuple(block.item for block in self.blocks if isinstance(block.item, MissingFigure))

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(block.item for block in self.blocks if isinstance(block.item, Table))


def shown(*items: Figure | MissingFigure | Table | None) -> tuple[Block, ...]:
    """Items that stand open; what is None is left out."""
    return tuple(Block(item) for item in items if item is not None)


def folded(*items: Figure | MissingFigure | Table | None) -> tuple[Block, ...]:
    """Items that a reader opens."""
    return tuple(Block(item, folded=True) for item in items if item is not None)
