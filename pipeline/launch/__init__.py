"""Work WITHOUT DVC: one cohort after another within a time limit, archives, clusters."""
