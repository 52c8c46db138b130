"""One script per DVC stage: parse, call the library, write."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.cohorts import COHORTS
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.grid import PARAMS, check_in_step
from pipeline.workers import Stopped

FORCE_VARIABLE = "FORCE"


def run_stage(main: Callable[[], None], needs_params: bool = True) -> NoReturn:
    """Run a stage and exit: mistakes that the user can mend end in one line on stderr and code 1.

    No stage that needs parameters works on wrong ones, or on some that are out of step with `cohorts/`.
    """
    try:
        if needs_params:
            check_in_step(load_params(PARAMS), COHORTS)
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror}; mend it, then run again", file=sys.stderr)
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        print("stopped: what was done is on disk; the next `dvc repro` goes on from there", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def asked_for(variable: str) -> bool:
    """Whether the user set an environment variable, to anything but 0."""
    return os.environ.get(variable, "") not in ("", "0")


def forced() -> bool:
    """Whether the user asked (FORCE=1) to compute again what the store already holds."""
    return asked_for(FORCE_VARIABLE)
