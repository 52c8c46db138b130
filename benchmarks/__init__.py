"""How fast training and evaluation are, beside their peers, an older revision and what the machine can do.

    python -m benchmarks [--rounds 5] [--seconds 1.0] [--cases k1-1L k5-1L ...] [--against REVISION] [--json FILE]

`cases`: what is measured. `ours`, `plain`, `peers` (pythae), `jax_peer`, `compile_peer`, `revision`: the contestants,
each with a `work(case)` that makes the work to be timed. `ceiling`: the machine's own rates as such work. `measure`
times work in processes of its own, `cpu` and `gpu` hold the contests, `table` prints them as Markdown.
"""
