"""WHAT is run: params.yaml, its grid of runs, their resolved specs, protocols and schedules."""
