"""JAX: draws, log-weights, gradient and Adam as one program, many updates of it in one call (`lax.scan`); optional.

The same network, batches and lagged Adam as ours under `published-code`; noise from XLA's own generator.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from typing import Any

from benchmarks.cases import Case, glorot_layers, training_images
from benchmarks.measure import Tick, Work
from pipeline.data.catalogue import PIXELS
from pipeline.experiments.spec import BATCH_SIZE

FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
STEPS_PER_CALL = {1: 100, 5: 50}
"""By T; 10 where there are more samples."""


def missing() -> str | None:
    """Why it cannot be measured here."""
    return None if importlib.util.find_spec("jax") else "jax is not installed: pip install -e '.[bench]'"


def _log_w(jax: Any, layers: dict[str, Any], x: Any, eps: list[Any]) -> Any:
    """[T, B] from x [B, 784] and noise [T, B, units] of each layer."""
    jnp = jax.numpy

    def dense(name: str, rows: Any) -> Any:
        return rows @ layers[name][0] + layers[name][1]

    def hidden(block: str, rows: Any) -> Any:
        return jnp.tanh(dense(f"{block}.hidden2", jnp.tanh(dense(f"{block}.hidden1", rows))))

    below, samples, log_w = x, [], 0.0
    for l, noise in enumerate(eps, start=1):
        top = hidden(f"q{l}", below)
        log_std = dense(f"q{l}.log_std", top)
        below = dense(f"q{l}.mean", top) + jnp.exp(log_std) * noise
        log_w += 0.5 * (noise * noise).sum(-1) + log_std.sum(-1)
        samples.append(below)
    log_w -= 0.5 * (below * below).sum(-1)
    if len(samples) == 2:
        top = hidden("p2", samples[1])
        log_std = dense("p2.log_std", top)
        u = (samples[0] - dense("p2.mean", top)) * jnp.exp(-log_std)
        log_w -= 0.5 * (u * u).sum(-1) + log_std.sum(-1)
    logits = dense("p1.logits", hidden("p1", samples[0]))
    return log_w + (x * logits - jax.nn.softplus(logits)).sum(-1)


def _weights(jax: Any, case: Case, log_w: Any) -> tuple[Any, Any]:
    """What each sample counts for the decoder and for the encoder, [T, B]."""
    if case.objective == "vae":
        uniform = jax.numpy.full_like(log_w, 1 / case.T)
        return uniform, uniform
    within = jax.nn.softmax(log_w.reshape(case.M, case.K, -1), axis=1).reshape(log_w.shape) / case.M
    return (jax.nn.softmax(log_w, axis=0), within) if case.objective == "piwae" else (within, within)


def _many_steps(jax: Any, case: Case, images: Any, steps: int) -> Any:
    """(state, number of the first update) -> state, after `steps` updates."""
    jnp, lax = jax.numpy, jax.lax

    def step(state: Any, n: Any) -> Any:
        layers, m, v, key = state
        key_x, *keys = jax.random.split(jax.random.fold_in(key, n), 1 + len(case.latent))
        start = n % (len(images) // BATCH_SIZE) * BATCH_SIZE
        grey = lax.dynamic_slice(images, (start, 0), (BATCH_SIZE, PIXELS)).astype(jnp.float32) / 255
        x = (jax.random.uniform(key_x, grey.shape) < grey).astype(jnp.float32)
        shapes = [(case.T, BATCH_SIZE, units) for units in case.latent]
        eps = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
        log_w, pull_back = jax.vjp(lambda layers: _log_w(jax, layers, x, eps), layers)
        theta, phi = _weights(jax, case, log_w)
        (gradient,) = pull_back(phi)
        if theta is not phi:
            gradient |= {name: part for name, part in pull_back(theta)[0].items() if name.startswith("p")}
        t = n.astype(jnp.float32) + 1
        size = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.99**t)
        layers = jax.tree.map(lambda p, m, v: p + size * m / (jnp.sqrt(v) + 1e-4), layers, m, v)
        m = jax.tree.map(lambda m, g: m + 0.01 * (g - m), m, gradient)
        v = jax.tree.map(lambda v, g: v + 0.001 * (g * g - v), v, gradient)
        return (layers, m, v, key), log_w.mean()

    return jax.jit(lambda state, n: lax.scan(step, state, n + jnp.arange(steps)), donate_argnums=0)


def work(value: dict[str, Any]) -> Work:
    """Units: updates.

    Raises: NotImplementedError for the likelihood, which is not written for it.
    """
    case = Case.of(value)
    if case.is_nll:
        raise NotImplementedError("its likelihood is not written")
    os.environ.setdefault("XLA_FLAGS", FLAGS)
    jax: Any = importlib.import_module("jax")
    jax.config.update("jax_default_prng_impl", "rbg")
    jnp = jax.numpy
    images = jnp.asarray(training_images().numpy())
    layers = {name: (jnp.asarray(w), jnp.asarray(b)) for name, (w, b) in glorot_layers(case.latent).items()}
    zeros, ones = (jax.tree.map(like, layers) for like in (jnp.zeros_like, jnp.ones_like))
    state, done, steps = (layers, zeros, ones, jax.random.key(0)), 0, STEPS_PER_CALL.get(case.T, 10)
    advance = _many_steps(jax, case, images, steps)

    def run(tick: Tick) -> None:
        nonlocal state, done
        while True:
            state, elbo = advance(state, done)
            done += steps
            if not math.isfinite(float(elbo[-1])):
                raise RuntimeError(f"the ELBO is {float(elbo[-1])} after {done} updates")
            tick(steps)

    return run
