"""Which images an evaluation takes where it does not take all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(total: int, count: int | None) -> NDArray[np.int64]:
    """`count` indices spread over range(total), or all of it: LeCun's first 5000 test digits are the easier half."""
    return np.linspace(0, total, min(count or total, total), endpoint=False).astype(np.int64)
