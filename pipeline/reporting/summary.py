"""Where the project stands and its first table, short enough for a terminal and for the top of README.md."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.experiments.known import BURDA_TABLE1
from pipeline.experiments.spec import CohortSpec
from pipeline.published import Place, Setting, published_at
from pipeline.records.results import RunResult

DATASET = "mnist"
PICTURE = "objectives"
"""The figure that shows the answer at a glance."""
PROSE_WIDTH = 100


@dataclass(frozen=True)
class Pair:
    """An NLL of ours, the mean over seeds, and the paper's, both in nats."""

    ours: float
    paper: float | None


@dataclass(frozen=True)
class Line:
    """A row of Burda's Table 1."""

    layers: int
    k: int
    vae: Pair
    iwae: Pair

    @property
    def label(self) -> str:
        return f"{self.layers} layer{'s' if self.layers > 1 else ''}, k = {self.k}"


def table1(results: Sequence[RunResult]) -> list[Line]:
    """The rows of Burda's Table 1 on MNIST that have both models; at k = 1 they are one and the same run."""
    by_place: dict[Place, list[float]] = {}
    for result in results:
        if "nll" in result.metrics:
            by_place.setdefault(Place.of(result), []).append(result.metrics["nll"])

    def pair(layers: int, objective: str, k: int) -> Pair | None:
        place = Place(BURDA_TABLE1, DATASET, layers, Setting.burda(objective, k))
        same = Place(BURDA_TABLE1, DATASET, layers, Setting.burda("vae", 1)) if k == 1 else place
        published = published_at(place, "nll")
        known = published is not None and published.judged
        if same not in by_place:
            return None
        return Pair(statistics.fmean(by_place[same]), published.value if published is not None and known else None)

    lines = []
    for layers in (1, 2):
        for k in (1, 5, 50):
            vae, iwae = pair(layers, "vae", k), pair(layers, "iwae", k)
            if vae is not None and iwae is not None:
                lines.append(Line(layers, k, vae, iwae))
    return lines


def _cell(pair: Pair) -> str:
    return f"{pair.ours:.2f} ({pair.paper:.2f})" if pair.paper is not None else f"{pair.ours:.2f}"


def for_terminal(lines: Sequence[Line]) -> list[str]:
    """The table as text, a line a row."""
    return [f"  {line.label:<17} VAE {_cell(line.vae):<16} IWAE {_cell(line.iwae)}" for line in lines]


def for_markdown(lines: Sequence[Line]) -> list[str]:
    """The lines as a Markdown table: NLL in nats of VAE and IWAE, the paper's in brackets."""
    head = ["| MNIST | VAE | IWAE |", "|---|--:|--:|"]
    return [*head, *(f"| {line.label} | {_cell(line.vae)} | {_cell(line.iwae)} |" for line in lines)]


def _longest(results: Sequence[RunResult]) -> RunResult:
    runs = [r for r in results if r.experiment == BURDA_TABLE1 and r.spec.dataset == DATASET and "nll" in r.metrics]
    return max(runs, key=lambda result: result.spec.total_steps)


def depth(results: Sequence[RunResult]) -> str:
    """How far the runs of Table 1 were trained and on how many images they were evaluated, in words."""
    longest = _longest(results)
    spec = longest.spec
    whole = spec.scheduled_steps
    if spec.total_steps >= whole:
        trained = f"after all {whole:,} updates of the papers' schedule"
    else:
        trained = f"after {spec.total_steps:,} of the {whole:,} updates of the papers' schedule"
    images = int(longest.metrics["test_images"])
    everything = longest.training.get("data", {}).get("counts", {}).get("test_images")
    of_all = "" if everything is None else f" of {everything:,}"
    tested = f"all {images:,} test images" if images == everything else f"{images:,}{of_all} test images"
    return f"{trained}, on {tested}"


def runs_done(scale: str, results: Sequence[RunResult], planned: Sequence[CohortSpec]) -> str:
    """`quick: 90 of 90 runs`"""
    cells = {f"{cohort.key}/{run.name}" for cohort in planned for run in cohort.runs}
    done = {result.cell for result in results} & cells
    return f"{scale}: {len(done)} of {len(cells)} runs"


def deepest(results: Mapping[str, Sequence[RunResult]]) -> str | None:
    """The last scale (they go from shallow to deep) that has all rows of the table, else one that has some."""
    lines = {scale: len(table1(runs)) for scale, runs in results.items()}
    most = max(lines.values(), default=0)
    return next((scale for scale in reversed(lines) if lines[scale] == most), None) if most else None


def readme_part(
    results: Mapping[str, Sequence[RunResult]], planned: Mapping[str, Sequence[CohortSpec]], pictured: Collection[str]
) -> str:
    """What stands between the marks of README.md. `results` and `planned`: by scale, from shallow to deep.

    `pictured`: the scales whose report holds `PICTURE`.
    """
    scales = [runs_done(scale, results[scale], planned[scale]) for scale in planned]
    parts = [textwrap.fill(f"**Where it stands.** {'; '.join(scales)}.", PROSE_WIDTH)]
    scale = deepest(results)
    if scale is not None:
        what = f"Burda's Table 1 at scale `{scale}`: NLL in nats {depth(results[scale])}; the paper's in brackets."
        longest = _longest(results[scale]).spec
        if longest.total_steps < longest.scheduled_steps:
            what += " Models trained so briefly are not near the paper's numbers; what compares is VAE with IWAE."
        parts.append(textwrap.fill(what, PROSE_WIDTH))
        parts.append("\n".join(for_markdown(table1(results[scale]))))
        if scale in pictured:
            picture = f"reports/{scale}/figures/{PICTURE}.png"
            parts.append(f"![What each objective gains from more samples, scale {scale}]({picture})")
        parts.append(f"All tables and figures of this scale: `reports/{scale}/index.html`, in a browser.")
    return "\n\n".join(parts)
