"""How was it made? Training, machines, data, protocol, and the command that makes each cell."""

from __future__ import annotations

from pipeline.reporting.evidence.cells import DATASET_NAMES
from pipeline.reporting.forms.section import Section, folded
from pipeline.reporting.report import Report
from pipeline.reporting.sections import provenance, training


def section(report: Report) -> Section:
    """How the numbers were made: training curves, machines, data, and deviations from what the papers did."""
    results, datasets = report.results, tuple(DATASET_NAMES)
    return Section(
        "made",
        "How was it made?",
        "How it was made",
        "Training curves, machines, data, and what differs from what the papers did.",
        (
            *folded(*(training.convergence(results, dataset) for dataset in datasets)),
            *folded(training.sweep_convergence(results)),
            *folded(*(training.convergence_in_time(results, dataset) for dataset in datasets)),
            *folded(training.convergence_in_time(results, "mnist", T=64)),
            *folded(training.generalization_gap(results, report.cells), training.diagnostics(results)),
            *folded(provenance.cells(results, report.planned)),
            *folded(provenance.cohorts(results), provenance.machines(results)),
            *folded(provenance.protocol(results), provenance.data(results)),
        ),
    )
