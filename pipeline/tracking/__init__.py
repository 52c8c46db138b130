"""The mirror of the results in MLflow."""
