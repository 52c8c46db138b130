"""Signal-to-noise ratios of gradient estimates; Rainforth et al. (2018), sections 3 and 4.

    SNR   of one parameter:      |E[g]| / sd[g]
    DSNR  of a parameter vector: E[ |g_parallel| / |g_orthogonal| ], parallel to u = E[g] / |E[g]|

over repeated draws g of one estimator at fixed parameters and fixed images. Draws are streamed: what is kept are
means and squared deviations of every parameter, in float64, for each of `BLOCKS` blocks of draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.draws.streams import Stream
from pipeline.evaluation.images import binarize_once
from pipeline.evaluation.spacing import evenly_spaced
from pipeline.experiments.schedule import stage_ends
from pipeline.experiments.spec import BATCH_SIZE, RunSpec
from pipeline.models.gradient import estimator_groups, gradient_estimate
from pipeline.models.networks import Parameters, initial_weights, network
from pipeline.records.run_folder import WEIGHTS, read_weights, waypoint_beside

BLOCKS = 8
"""Draws come in so many blocks: uncertainties are jackknifed over them, and the first half gives DSNR's direction."""
SMALLEST = 2 * BLOCKS
"""Fewest draws of which an SNR can be estimated."""
DRAWS_PER_PASS = {"cpu": 4, "cuda": 64}
"""Gradients of a network that are drawn at once: a pass of 64 samples of 20 images takes 5 MB a draw."""
Draw = Callable[[int, int], dict[str, Tensor]]
"""(number of the first, draws R) -> gradients by parameter group, [R, parameters] each."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of a stream of vectors, [parameters] each in float64."""

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(draws: Tensor) -> Moments:
        """`draws`: [R, parameters]."""
        values = draws.double()
        mean = values.mean(0)
        return Moments(len(values), mean, (values - mean).square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """The moments of both streams together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)

    def without(self, part: Moments) -> Moments:
        """The moments of the rest of a stream that `part` was merged into."""
        count = self.count - part.count
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        squares = self.squares - part.squares - (mean - part.mean).square() * (part.count * count / self.count)
        return Moments(count, mean, squares)

    @property
    def variance(self) -> Tensor:
        """Of one draw, unbiased (ddof 1)."""
        return self.squares / (self.count - 1)


def parameter_snr(moments: Moments) -> Tensor:
    """|mean| / sd of every parameter; NaN for those whose gradient never changes (a pixel that is off in all images).

    Where the true ratio is 0 its expectation is still sqrt(2 / (pi count)).
    """
    return torch.where(moments.variance > 0, moments.mean.abs() / moments.variance.sqrt(), torch.nan)


def mean_square_snr(moments: Moments) -> float:
    """Mean over parameters of SNR^2, unbiased for normal gradients (it may come out below zero).

    With n draws E[mean^2 / s^2] = (n - 1) / (n - 3) * (SNR^2 + 1 / n), by the moments of the noncentral F.
    """
    n = moments.count
    changing = moments.variance > 0
    ratio = moments.mean[changing].square() / moments.variance[changing]
    return float(ratio.mean() * (n - 3) / (n - 1)) - 1 / n


def directional_ratio(draws: Tensor, direction: Tensor) -> Tensor:
    """|g_parallel| / |g_orthogonal| of every draw, [R]. `draws`: [R, parameters]; `direction`: [parameters], unit."""
    values = draws.double()
    parallel = (values @ direction).abs()
    return parallel / (values.square().sum(1) - parallel.square()).sqrt()


@dataclass(frozen=True)
class SnrEstimate:
    """SNR and DSNR of one group of parameters, each with the standard error of its estimate."""

    per_parameter: Tensor
    """|mean| / sd, [parameters] float64; NaN where the gradient never changes."""
    snr: float
    """Mean of it over the parameters that have one."""
    snr_se: float
    square: float
    """Mean over parameters of SNR^2, unbiased: see `mean_square_snr`."""
    square_se: float
    ratios: Tensor
    """|g_parallel| / |g_orthogonal| of the second half of the draws; the first half gives the direction."""

    @property
    def rms(self) -> float:
        """Root mean square of the SNR over parameters; 0 where the noise hides it."""
        return float(np.sqrt(max(self.square, 0.0)))

    @property
    def dsnr(self) -> float:
        return float(self.ratios.mean())

    @property
    def dsnr_se(self) -> float:
        """Over draws, the direction taken as given."""
        return float(self.ratios.std() / np.sqrt(len(self.ratios)))


def jackknife(statistics: list[Callable[[Moments], float]], whole: Moments, blocks: list[Moments]) -> list[float]:
    """Standard errors of statistics of the whole stream, from leaving one of its blocks out at a time."""
    left_out = (whole.without(block) for block in blocks)
    values = np.array([[statistic(moments) for statistic in statistics] for moments in left_out])
    return [float(error) for error in np.sqrt((len(blocks) - 1) * values.var(axis=0))]


def mean_snr(moments: Moments) -> float:
    """Mean of |mean| / std over the parameters whose gradient varies."""
    return float(parameter_snr(moments).nanmean())


def _passes(draws: int, per_pass: int) -> Iterator[tuple[int, int]]:
    """(block, draws of the pass): whole blocks, each in passes of at most `per_pass`."""
    sizes = [draws // BLOCKS + (block < draws % BLOCKS) for block in range(BLOCKS)]
    for block, size in enumerate(sizes):
        for start in range(0, size, per_pass):
            yield block, min(per_pass, size - start)


def estimate_snr(
    draw: Draw, draws: int, per_pass: int, between_passes: Callable[[], None] = lambda: None
) -> dict[str, SnrEstimate]:
    """SNR and DSNR by parameter group, from `draws` (`SMALLEST` or more) gradients, at most `per_pass` at once."""
    assert draws >= SMALLEST, f"{draws} gradients asked for, at least {SMALLEST} are needed"
    blocks: dict[str, list[Moments]] = {}
    ratios: dict[str, list[Tensor]] = {}
    directions: dict[str, Tensor] = {}
    made = 0
    for block, count in _passes(draws, per_pass):
        between_passes()
        for group, values in draw(made, count).items():
            moments = blocks.setdefault(group, [])
            if block >= BLOCKS // 2:
                if group not in directions:
                    mean = reduce(Moments.merged, moments).mean
                    directions[group] = mean / mean.norm()
                ratios.setdefault(group, []).append(directional_ratio(values, directions[group]))
            if len(moments) == block:
                moments.append(Moments.of(values))
            else:
                moments[block] = moments[block].merged(Moments.of(values))
        made += count
    return {group: _estimate(moments, torch.cat(ratios[group])) for group, moments in blocks.items()}


def _estimate(blocks: list[Moments], ratios: Tensor) -> SnrEstimate:
    moments = reduce(Moments.merged, blocks)
    snr_se, square_se = jackknife([mean_snr, mean_square_snr], moments, blocks)
    return SnrEstimate(
        per_parameter=parameter_snr(moments).cpu(),
        snr=mean_snr(moments),
        snr_se=snr_se,
        square=mean_square_snr(moments),
        square_se=square_se,
        ratios=ratios.cpu(),
    )


FRESH = "_fresh"
"""What follows the names of metrics with a fresh minibatch for every gradient."""
BatchSource = Callable[[Tensor], Tensor]
"""Numbers of gradients [R] int64 -> the images that each is of, [R, B, 784] in {0, 1}."""


def one_batch(images: Tensor) -> BatchSource:
    """The same images [B, 784] for every gradient: what varies is the noise of the samples alone."""
    return lambda numbers: images.repeat(len(numbers), 1, 1)


def fresh_batches(grey: NDArray[np.uint8], seed: int, device: torch.device, dtype: torch.dtype) -> BatchSource:
    """A batch of its own for every gradient, drawn from grey images [N, 784] and binarized anew, as in training."""
    images = torch.from_numpy(np.array(grey)).to(device)
    which, bits = (Stream(seed, f"snr batch/{what}", device) for what in ("images", "bits"))

    def batches(numbers: Tensor) -> Tensor:
        chosen = (which.uniforms(numbers, (BATCH_SIZE,)) * len(images)).long().clamp(max=len(images) - 1)
        uniform = bits.uniforms(numbers, (BATCH_SIZE, images.shape[1]))
        return (255 * uniform < images[chosen]).to(dtype)

    return batches


def network_gradients(flat: Tensor, run: RunSpec, batches: BatchSource, seed: int) -> Draw:
    """Draws of the run's own estimator at the weights `flat` [count]: what samples and `batches` make vary.

    Gradients of the mean over a batch, of `encoder` and `decoder`. The draws lie along the run axis of one stack, on
    which the weights are expanded.
    """
    streams = [Stream(seed, f"snr{l}", flat.device) for l in range(1, len(run.latent) + 1)]

    def draw(first: int, count: int) -> dict[str, Tensor]:
        p = Parameters(run.latent, flat.expand(count, -1))
        numbers = torch.arange(first, first + count, device=flat.device)
        x = batches(numbers)
        eps = [
            stream.normals(numbers, (run.T, x.shape[1], units)).to(flat.dtype)
            for stream, units in zip(streams, run.latent, strict=True)
        ]
        per_image = flat.new_full((count, 1, 1), 1 / x.shape[1])
        gradient, _ = gradient_estimate(p, x, eps, estimator_groups([run] * count), per_image)
        layers = [layer.name for layer in network(run.latent)]

        def rows(side: str) -> Tensor:
            of_side = [name for name in layers if name.startswith(side)]
            parts = [part[name].flatten(1) for name in of_side for part in (gradient.weight, gradient.bias)]
            return torch.cat(parts, dim=1)

        return {"encoder": rows("q"), "decoder": rows("p")}

    return draw


def checkpoints(folder: Path, run: RunSpec, train_images: NDArray[np.uint8]) -> Iterator[tuple[int, Tensor]]:
    """(update, weights [count]) of a run: the start, the end of every stage, its depth, in whose folder this is.

    A run that continues another has no start of its own. `train_images`: [N, 784] uint8.
    """
    if run.continues is None:
        mean = train_images[: run.train_images].mean(0, dtype=np.float64) / 255
        yield 0, initial_weights(run.latent, run.protocol, run.seed, mean)
    for step in stage_ends(run):
        if step < run.total_steps:
            yield step, read_weights(waypoint_beside(folder, step) / WEIGHTS, run.latent)
    yield run.total_steps, read_weights(folder / WEIGHTS, run.latent)


def common_batch(train_images: NDArray[np.uint8], count: int, seed: int, device: torch.device) -> Tensor:
    """The batch of an evaluation, [B, 784] in {0, 1}: evenly spaced among the first `count` training images [N, 784],
    binarized once, the same for all runs."""
    return binarize_once(train_images, evenly_spaced(count, BATCH_SIZE), seed, "gradient snr", device).bits


def snr_at(
    flat: Tensor,
    run: RunSpec,
    batches: BatchSource,
    draws: int,
    seed: int,
    kind: str = "",
    between_passes: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """SNR and DSNR of a run's own estimator at the weights `flat` [count]: `snr_<group><kind>` and so on, each with its
    standard error under the same name and `_se`."""
    draw = network_gradients(flat, run, batches, seed)
    estimates = estimate_snr(draw, draws, DRAWS_PER_PASS[flat.device.type], between_passes)
    metrics: dict[str, float] = {}
    for group, estimate in estimates.items():
        metrics |= {f"snr_{group}{kind}": estimate.snr, f"snr_{group}{kind}_se": estimate.snr_se}
        metrics |= {f"dsnr_{group}{kind}": estimate.dsnr, f"dsnr_{group}{kind}_se": estimate.dsnr_se}
    return metrics


def run_snr(
    folder: Path,
    run: RunSpec,
    draws: int,
    images: Tensor,
    train_images: NDArray[np.uint8],
    seed: int,
    between_passes: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """SNR and DSNR of a run's own estimator at its checkpoints, from `draws` gradients each.

    `images`: [B, 784] in {0, 1}, on the device; the gradients are of the mean over them. Metrics are those of the last
    checkpoint: `snr_<group>`, `dsnr_<group>`, each with its `_se`, and `snr_gradients`; there the same once more with a
    fresh minibatch for every gradient, `snr_<group>_fresh` and so on. Arrays have one value a checkpoint: `snr/step`,
    and `snr/<metric>`.
    """
    rows: list[dict[str, float]] = []
    steps: list[int] = []
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    for step, weights in checkpoints(folder, run, train_images):
        flat = weights.to(images.device, dtype)
        fixed = one_batch(images.to(dtype))
        rows.append(snr_at(flat, run, fixed, draws, seed, between_passes=between_passes))
        steps.append(step)
    fresh = fresh_batches(train_images[: run.train_images], seed, images.device, dtype)
    varied = snr_at(flat, run, fresh, draws, seed, FRESH, between_passes)
    arrays = {f"snr/{name}": np.array([row[name] for row in rows]) for name in rows[0]}
    return rows[-1] | varied | {"snr_gradients": float(draws)}, arrays | {"snr/step": np.array(steps)}
