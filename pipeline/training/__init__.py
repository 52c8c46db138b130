"""Stacked training: the step, the schedule, checkpoints. Needs torch, numpy and safetensors alone."""
