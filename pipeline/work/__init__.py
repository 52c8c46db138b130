"""DOING the work on this machine: a cohort's training and evaluation, workers, interruption, console."""
