"""Refuse to go on when params.yaml is wrong or `cohorts/` was not written from it, as every stage does.

So too when an estimator computes something else than when it was written.

A stage of its own, on which the others depend: DVC runs it before them when params.yaml alone has changed, also where
`dvc exp run -S` changed it, or a formula in `pipeline/objectives.py`. The file that it writes is the same at all times.
"""

from __future__ import annotations

from pipeline.experiments.grid import check_estimators
from pipeline.files import write_text
from pipeline.paths import Paths
from stages import run_stage


def main(paths: Paths) -> None:
    """Write `cohorts/agreed.txt`, on which the stages after it depend.

    Raises: UserError when params.yaml and cohorts/ do not agree.
    """
    check_estimators(paths.cohorts, paths.params)
    text = f"{paths.params} and {paths.cohorts}/ agree"
    write_text(paths.cohorts / "agreed.txt", f"{text}\n")
    print(text)


if __name__ == "__main__":
    run_stage(main)
