"""The method in plain PyTorch, for reading: begin with `one_run`."""
