"""WHAT a run leaves: its folder, the store, results, provenance and shipped weights."""
