"""Write `cohorts/` from params.yaml: `python -m pipeline.experiments`."""

import sys

from pipeline.errors import UserError
from pipeline.experiments.grid import main

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
