"""Refuse to go on when params.yaml is wrong or `cohorts/` was not written from it, as every stage does.

A stage of its own, on which the others depend: DVC runs it before them when params.yaml alone has changed, also where
`dvc exp run -S` changed it. The file that it writes is the same at all times.
"""

from __future__ import annotations

from pipeline.experiments.cohorts import COHORTS
from pipeline.experiments.grid import PARAMS
from pipeline.files import write_text
from stages import run_stage

AGREED = COHORTS / "agreed.txt"


def main() -> None:
    text = f"{PARAMS} and {COHORTS}/ agree"
    write_text(AGREED, f"{text}\n")
    print(text)


if __name__ == "__main__":
    run_stage(main)
