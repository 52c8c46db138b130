"""What the results show: cells, effects, statistics, claims."""
