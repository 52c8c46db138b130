"""Random numbers as functions of (seed, purpose, step)."""
