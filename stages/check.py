"""Refuse to go on when params.yaml is wrong or `cohorts/` was not written from it."""

from __future__ import annotations

from pipeline.config import load_params
from pipeline.grid import COHORTS, PARAMS, check_in_step
from stages import run_stage


def main() -> None:
    check_in_step(load_params(PARAMS), COHORTS)
    print(f"{PARAMS} and {COHORTS}/ agree")


if __name__ == "__main__":
    run_stage(main)
