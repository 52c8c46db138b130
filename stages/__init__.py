"""One script per DVC stage: parse, call the library, write."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import UserError
from pipeline.experiments.grid import check_in_step
from pipeline.experiments.params import load_params
from pipeline.files import disk_error
from pipeline.paths import Paths
from pipeline.work.workers import Stopped

FORCE_VARIABLE = "FORCE"


def run_stage(main: Callable[[Paths], None], needs_params: bool = True) -> NoReturn:
    """Run a stage on the project in the current folder, and exit.

    Mistakes that the user can mend end in one line on stderr and code 1.

    No stage that needs parameters works on wrong ones, or on some that are out of step with `cohorts/`.
    """
    paths = Paths()
    try:
        if needs_params:
            check_in_step(load_params(paths.params), paths.cohorts, paths.params)
        main(paths)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {disk_error(error.filename or 'the disk', 'used', error)}", file=sys.stderr)
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        print("stopped: what was done is on disk; the next `dvc repro` goes on from there", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def known_scale(name: str, paths: Paths) -> str:
    """Raises: UserError when params.yaml has no such scale."""
    known = load_params(paths.params).scales
    if name not in known:
        raise UserError(f"{name}: no such scale in {paths.params}; choose one of {', '.join(known)}")
    return name


def asked_for(variable: str) -> bool:
    """Whether the user set an environment variable, to anything but 0."""
    return os.environ.get(variable, "") not in ("", "0")


def forced() -> bool:
    """Whether the user asked (FORCE=1) to compute again what the store already holds."""
    return asked_for(FORCE_VARIABLE)
