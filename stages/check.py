"""Refuse to go on when params.yaml is wrong or `cohorts/` was not written from it, as every stage does.

A stage of its own, because DVC runs no other one when params.yaml alone has changed.
"""

from __future__ import annotations

from pipeline.cohorts import COHORTS
from pipeline.grid import PARAMS
from stages import run_stage


def main() -> None:
    print(f"{PARAMS} and {COHORTS}/ agree")


if __name__ == "__main__":
    run_stage(main)
