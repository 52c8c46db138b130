"""Ours beside the paper's: the difference with its interval, and the verdict that the interval gives.

The two papers printed numbers of few runs, on test bits that nobody else has. So a difference has an error of ours over
seeds, one of theirs, and one of the bits on both sides; test images have no part in it, since they are the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.published import BURDA_TABLES, Published
from pipeline.records.metrics import METRIC_TABLE, improves
from pipeline.reporting.evidence.cells import (
    ASSUMED_SPREAD,
    DIVERGED,
    IN_NATS,
    NOT_RUN,
    PAPER_SCALE,
    Cell,
    Estimate,
    estimate,
    seed_spread,
)
from pipeline.reporting.evidence.statistics import satterthwaite

MARGIN = 0.25
"""Nats by which two numbers may differ and still count as the same result."""
LEVEL = 0.10
"""Of the interval that decides: with half of it on each side, either wrong verdict has a chance of 5 % at most."""
JUDGED_PROTOCOL = "published-code"
"""The protocol that Burda's numbers came from; Rainforth et al. used a code of their own."""
BITS_SD = {"mnist": 0.050, "omniglot": 0.053, "fixed-mnist": 0.0}
"""Dataset -> standard deviation of a mean NLL over its whole test set that one draw of the bits causes, nats; for cells
whose evaluation did not measure it. The fixed binarization is one set of bits, which everybody has."""
IN_CAPTIONS = (
    f"Reproduced: the {1 - LEVEL:.0%} interval of the difference lies within ±{MARGIN} nats; better or worse: it lies "
    "wholly outside; else it cannot say. The interval has the runs of both sides (0.10 nats a run where a side has one "
    "or states no spread) and the test bits of both sides, which are drawn at random and are not the paper's (0.05 "
    "nats each where it was not measured; none on the fixed binarization). SE, over test images, has no part in it: "
    "the images are the paper's."
)
"""How verdicts come about, for the captions of tables."""
BITS_SD_OF_KL = 0.007
"""The same of −KL(Q‖P): the bound and the likelihood move together (docs/statistics.md)."""
REPRODUCED, BETTER, WORSE, CANNOT_SAY = "reproduced", "better", "worse", "cannot say"
NOT_COMPARABLE, NO_PUBLISHED, NOT_JUDGED = "not comparable", "no published value", "not judged"
OTHER_PROTOCOL = "other protocol"
VERDICTS = (REPRODUCED, BETTER, WORSE, CANNOT_SAY)


@dataclass(frozen=True)
class Comparison:
    """Ours minus the paper's, in the metric's unit."""

    difference: float
    run_se: float
    """Standard error by the runs of both sides."""
    bits_se: float
    """Standard error by the test bits of both sides."""
    df: float
    """Degrees of freedom of the two together."""
    assumed: bool
    """True where a side's spread between runs is assumed."""

    @property
    def se(self) -> float:
        return float(np.hypot(self.run_se, self.bits_se))

    @property
    def half_width(self) -> float:
        return self.se * float(stats.t.ppf(1 - LEVEL / 2, self.df))

    @property
    def low(self) -> float:
        return self.difference - self.half_width

    @property
    def high(self) -> float:
        return self.difference + self.half_width

    def share_of_equals(self) -> dict[str, float]:
        """How often two truly equal cells, compared with these errors, would get each verdict."""

        def beyond(bound: float) -> float:
            return float(2 * stats.t.sf(bound / self.se, self.df)) if self.se and bound > 0 else float(bound <= 0)

        inside, outside = 1 - beyond(MARGIN - self.half_width), beyond(MARGIN + self.half_width)
        return {REPRODUCED: inside, BETTER: outside / 2, WORSE: outside / 2, CANNOT_SAY: 1 - inside - outside}


def bits_sd(cell: Cell, metric: str) -> float:
    """What one draw of the test bits moves a metric's mean by (sd, nats): as measured, else `BITS_SD`."""
    name = f"bits_sd_{'nll' if metric == 'log_p_hat' else metric}"
    measured = [run.metrics[name] for run in cell.finished if name in run.metrics]
    if measured:
        return float(np.sqrt(np.mean(np.square(measured))))
    assumed = BITS_SD.get(cell.place.dataset, max(BITS_SD.values()))
    return min(assumed, BITS_SD_OF_KL) if metric == "kl_q_p" else assumed


def compare(cell: Cell | None, metric: str, published: Published | None) -> Comparison | None:
    """Ours against the paper's, of which neither spread needs to be known; None where either number is missing."""
    ours = estimate(cell, metric)
    if cell is None or ours is None or published is None:
        return None
    run_se, run_df, assumed = _run_error(ours, metric, published)
    bits_se = float(np.sqrt(2)) * bits_sd(cell, metric)
    _, df = satterthwaite([(run_se, run_df), (bits_se, np.inf)])
    return Comparison(ours.value - published.value, run_se, bits_se, df, assumed)


def _run_error(ours: Estimate, metric: str, published: Published) -> tuple[float, float, bool]:
    """Standard error of the difference by the runs of both sides, its degrees of freedom, and whether one is assumed.

    Four runs against four have 3 + 3 = 6 degrees of freedom when they spread alike, fewer when they do not.
    """
    spread, assumed = seed_spread(ours, metric)
    spread = spread or IN_NATS
    if published.sd is None:
        stands_in = ASSUMED_SPREAD.get(metric) or IN_NATS
        theirs, their_df = stands_in.sd, stands_in.df
    else:
        theirs, their_df = published.sd, published.runs - 1
    shares = [(spread.sd / np.sqrt(ours.seeds), spread.df), (theirs / np.sqrt(published.runs), their_df)]
    if assumed and published.sd is None:
        # One assumption serves both sides: it is not known better for being used twice.
        return float(np.hypot(shares[0][0], shares[1][0])), spread.df, True
    se, df = satterthwaite(shares)
    return se, df, assumed or published.sd is None


def from_interval(comparison: Comparison, metric: str) -> str:
    """Equivalence within `MARGIN`: yes, no (better or worse), or the interval cannot say."""
    # Rounded so that an end of exactly 0.25 is inside.
    low, high = round(comparison.low, 9), round(comparison.high, 9)
    if low >= -MARGIN and high <= MARGIN:
        return REPRODUCED
    if low > MARGIN or high < -MARGIN:
        return BETTER if improves(metric, low) else WORSE
    return CANNOT_SAY


def verdict(cell: Cell | None, metric: str, published: Published | None, scale: str) -> str:
    """Ours against the paper's, from the interval of the difference.

    Judged at scale `paper` alone, and Burda's tables under their code's protocol alone.
    """
    if cell is None:
        return NOT_RUN
    if estimate(cell, metric) is None:
        return NOT_RUN if cell.finished else DIVERGED
    if scale != PAPER_SCALE:
        return NOT_COMPARABLE
    if published is None:
        return NO_PUBLISHED
    if not published.judged:
        return NOT_JUDGED
    if cell.place.experiment in BURDA_TABLES and cell.protocol != JUDGED_PROTOCOL:
        return OTHER_PROTOCOL
    comparison = compare(cell, metric, published)
    assert comparison is not None
    return from_interval(comparison, metric)


@dataclass(frozen=True)
class Judged:
    """A number whose verdict counts: its dataset, its comparison, the verdict, and which metric it is."""

    dataset: str
    comparison: Comparison
    verdict: str
    metric: str = "nll"


@dataclass(frozen=True)
class Pooled:
    """The mean difference of several cells, and the interval as of a single one."""

    cells: int
    difference: float
    low: float
    high: float


def pool(judged: Sequence[Judged]) -> Pooled:
    """Cells of one or more datasets: runs differ from cell to cell, the bits are the same for all of a dataset."""
    count = len(judged)
    runs = float(np.sqrt(sum(one.comparison.run_se**2 for one in judged))) / count
    df = min(one.comparison.df for one in judged)
    bits = 0.0
    for dataset in {one.dataset for one in judged}:
        errors = [one.comparison.bits_se for one in judged if one.dataset == dataset]
        bits += (float(np.sum(errors)) / count) ** 2
    half = float(np.hypot(runs, np.sqrt(bits)) * stats.t.ppf(1 - LEVEL / 2, df))
    mean = float(np.mean([one.comparison.difference for one in judged]))
    return Pooled(count, mean, mean - half, mean + half)


def beside_chance(judged: Sequence[Judged]) -> str:
    """Counts of verdicts beside what chance alone would make of cells that are all equal to the paper's; or nothing."""
    if not judged:
        return ""
    counts = {name: sum(one.verdict == name for one in judged) for name in (REPRODUCED, BETTER, WORSE, CANNOT_SAY)}
    chance = {name: sum(one.comparison.share_of_equals()[name] for one in judged) for name in counts}
    missed = chance[BETTER] + chance[WORSE]
    zeros = sum(one.comparison.low <= 0 <= one.comparison.high for one in judged)
    # Metrics of one run hang together (one is even the difference of two others), so each has a mean of its own.
    metrics = {one.metric: [other for other in judged if other.metric == one.metric] for one in judged}
    means = [(METRIC_TABLE[metric].title, pool(of_metric)) for metric, of_metric in metrics.items()]
    together = "; ".join(
        (f"{title} " if len(means) > 1 else "")
        + f"{mean.difference:+.2f} nats [{mean.low:+.2f}, {mean.high:+.2f}]".replace("-", "−")
        for title, mean in means
    )
    what = "cell" if len(means) == 1 else "number"
    return (
        f"Verdicts on {len(judged)} {what}{'s' if len(judged) > 1 else ''}: "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + f". Were every {what} truly equal to the paper's, chance alone would call {missed:.1f} of them better or "
        f"worse, {chance[REPRODUCED]:.1f} reproduced, and leave {chance[CANNOT_SAY]:.1f} without an answer. "
        f"The interval holds no difference at all in {zeros} (of equal {what}s {1 - LEVEL:.0%} would). Mean "
        f"difference of all: {together}."
    )
