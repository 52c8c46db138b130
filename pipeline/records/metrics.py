"""The metrics of a run: what each is called, its unit, which way is better, and what it means.

    python -m pipeline.records.metrics        # the table as docs/metrics.md has it

Evaluations measure them by these names, `metrics.json` keeps them, and tables, claims and MLflow take titles, units and
directions from here. What a metric is of others, `value_of` makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ACTIVE_VARIANCE = 0.01
"""A unit is active when the variance of its posterior mean over images is above this (Burda et al. 2016, section 5)."""


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    title: str
    unit: str
    meaning: str
    better: Literal["lower", "higher"] | None = None
    """None where neither is: counts, spreads, standard errors."""
    sum_of: tuple[str, ...] = ()
    """The metrics that it adds up, as far as a run has them."""
    difference_of: tuple[str, str] | None = None
    """The two of which it is the difference."""
    minus: str | None = None
    """The metric that it is the negative of, which does for it where it is missing."""


def _active_units() -> dict[str, Metric]:
    metrics = {
        "active_units": Metric(
            "active units",
            "units",
            "Active units of all stochastic layers.",
            "higher",
            ("active_units_1", "active_units_2"),
        )
    }
    for layer in (1, 2):
        metrics[f"active_units_{layer}"] = Metric(
            f"active units, layer {layer}",
            "units",
            f"Units of stochastic layer {layer} whose posterior mean varies over 500 training images with a variance"
            f" above {ACTIVE_VARIANCE}, by the recipe of Burda's code.",
            "higher",
        )
        metrics[f"active_units_test_{layer}"] = Metric(
            f"active units, layer {layer}, test set",
            "units",
            f"The same count for layer {layer} over the whole test set.",
            "higher",
        )
    return metrics


def _snr() -> dict[str, Metric]:
    metrics = {"snr_gradients": Metric("gradients drawn", "gradients", "Gradients from which each SNR is estimated.")}
    kinds = {
        "snr": (
            "SNR",
            "The absolute mean of a parameter's gradient divided by its standard deviation, averaged over the {}'s",
        ),
        "dsnr": ("DSNR", "The part of a gradient along its mean divided by the part across it, over all of the {}'s"),
    }
    batches = {
        "": ("", "one fixed minibatch"),
        "_fresh": (", fresh minibatches", "a fresh minibatch for every gradient"),
    }
    for kind, (title, meaning) in kinds.items():
        for group in ("encoder", "decoder"):
            for suffix, (more, batch) in batches.items():
                name = f"{kind}_{group}{suffix}"
                text = f"{meaning.format(group)} parameters, with {batch}."
                metrics[name] = Metric(f"{title} of the {group}'s gradient{more}", "ratio", text, "higher")
                metrics[f"{name}_se"] = Metric(
                    f"SE of the {metrics[name].title}", "ratio", f"The standard error of `{name}`."
                )
    return metrics


METRIC_TABLE: dict[str, Metric] = {
    "nll": Metric(
        "NLL",
        "nats",
        "Negative log-likelihood per test image, estimated by the mean importance weight of `num_samples` samples.",
        "lower",
        minus="log_p_hat",
    ),
    "nll_se": Metric("SE of the NLL", "nats", "The standard error of `nll` over test images."),
    "log_p_hat": Metric("log p̂", "nats", "The estimate of `nll` with the opposite sign.", "higher", minus="nll"),
    "iwae_64": Metric("IWAE-64", "nats", "The IWAE bound with 64 samples per test image.", "higher"),
    "elbo": Metric("ELBO", "nats", "The mean of log w per test image.", "higher"),
    "kl_q_p": Metric(
        "−KL(Q‖P)", "nats", "`iwae_64` minus `log_p_hat`, which Rainforth et al. call so.", "higher",
        difference_of=("iwae_64", "log_p_hat"),
    ),
    "ess_64": Metric("ESS", "share", "The effective sample size of 64 samples, divided by 64.", "higher"),
    "num_samples": Metric("samples", "samples", "Samples per image of the likelihood's estimate."),
    "test_images": Metric("test images", "images", "Test images that were evaluated."),
    **_active_units(),
    "nll_pruned": Metric(
        "NLL, pruned", "nats", "`nll` with inactive units removed from the model.", "lower"
    ),
    "pruned_minus_full": Metric(
        "NLL, pruned − full", "nats", "What removing inactive units adds to `nll`.", "lower",
        difference_of=("nll_pruned", "nll"),
    ),
    "pruned_minus_full_se": Metric(
        "SE of pruned − full", "nats", "The standard error of `pruned_minus_full`, paired over images."
    ),
    "pruned_images": Metric("images, pruned", "images", "Test images on which pruning was measured."),
    "bits_sd_nll": Metric(
        "SD of the NLL over test bits", "nats", "The standard deviation of `nll` that one draw of the test bits causes."
    ),
    "bits_sd_iwae_64": Metric(
        "SD of IWAE-64 over test bits", "nats", "The same of `iwae_64`."
    ),
    "bits_sd_kl_q_p": Metric(
        "SD of −KL(Q‖P) over test bits", "nats", "The same of `kl_q_p`."
    ),
    "bits_draws": Metric("binarizations", "draws", "Binarizations of the test images behind the `bits_sd` metrics."),
    "bits_images": Metric("images, binarizations", "images", "Test images behind the `bits_sd` metrics."),
    "train_nll": Metric("training NLL", "nats", "The estimate of `nll` on training images.", "lower"),
    "train_nll_se": Metric("SE of the training NLL", "nats", "The standard error of `train_nll` over images."),
    "test_minus_train": Metric(
        "NLL, test − training", "nats", "How much worse unseen images are explained.", "lower",
        difference_of=("nll", "train_nll"),
    ),
    "log_q_sd": Metric(
        "log spread of q(h|x)", "log sd", "The log standard deviation of q(h1 | x), mean over active units and images."
    ),
    "decoded_sd": Metric(
        "spread of decoded samples", "sd", "The standard deviation of decoded pixel means over samples of q."
    ),
    "digit_changes": Metric(
        "decoded samples that change the digit",
        "share",
        "The share of decoded samples in which a classifier reads another digit than in their image, over images that"
        " it reads rightly.",
    ),
    "digit_reader_accuracy": Metric(
        "accuracy of the digit reader", "share", "The share of test images that the classifier reads rightly.", "higher"
    ),
    **_snr(),
}  # fmt: skip


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric of a run that has `metrics`; None where it has none, or none that is finite.

    Raises: KeyError when there is no such metric.
    """
    metric = METRIC_TABLE[name]
    if metric.sum_of:
        parts = [metrics[part] for part in metric.sum_of if part in metrics]
        value = sum(parts) if parts else None
    elif metric.difference_of is not None:
        one, other = (value_of(metrics, part) for part in metric.difference_of)
        value = None if one is None or other is None else one - other
    else:
        value = metrics.get(name)
        if value is None and metric.minus is not None and metric.minus in metrics:
            value = -metrics[metric.minus]
    return None if value is None or not math.isfinite(value) else float(value)


def improves(name: str, difference: float) -> bool:
    """Whether a metric that is larger by `difference` is the better one.

    Raises: ValueError when neither direction is better.
    """
    better = METRIC_TABLE[name].better
    if better is None:
        raise ValueError(f"{name}: neither more nor less of it is better")
    return (difference > 0) == (better == "higher")


def as_markdown() -> str:
    """The table of docs/metrics.md."""
    rows = ["| metric | title | unit | better | meaning |", "|---|---|---|---|---|"]
    for name, metric in METRIC_TABLE.items():
        cells = (f"`{name}`", metric.title, metric.unit, metric.better or "", metric.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
