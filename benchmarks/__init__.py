"""How fast training and evaluation are, beside pythae, beside plain PyTorch, and beside what the machine can do.

    python -m benchmarks [--rounds 5] [--seconds 1.0] [--cases k1 k5 ...] [--device auto] [--json FILE]

`cases`: what is measured. `ours`, `plain`, `peers`: the contestants, each a `work(rank, tick)` that calls
`tick(units)` as it gets through its work until that raises `TimeUp`. `ceiling`: the machine's own rates as such work.
`measure` times work in fresh processes, `cpu` and `gpu` hold the contests, `table` prints.
"""
