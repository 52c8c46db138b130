"""Working where others work too: this process and what it starts get what nobody else wants."""

from __future__ import annotations

import os
from pathlib import Path

LOWEST = 19
AUTOGROUP = Path("/proc/self/autogroup")


def yield_to_others() -> str:
    """Take the lowest priority there is, for this process and those that it starts; returns a sentence that says so.

    Linux may schedule sessions as groups of equal weight, within which niceness counts: then the group is made as nice.
    """
    nice = os.nice(LOWEST)
    try:
        AUTOGROUP.write_text(str(LOWEST))
    except OSError:
        return f"at niceness {nice}: others come first"
    return f"at niceness {nice}, and so the scheduling group of this session: others come first"
