"""What a trained run is worth: likelihood, bounds, active units. Needs torch, numpy and safetensors alone."""
