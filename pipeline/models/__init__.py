"""The papers' networks, stacked along a leading run axis, with the forward and backward passes written out."""
