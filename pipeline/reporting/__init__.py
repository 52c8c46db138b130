"""From results on disk to tables, figures, claims and one HTML page."""
