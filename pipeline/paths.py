"""The project's files and folders, from its root: one `Paths`, made at the front door and passed in.

    params.yaml                               what is run
    cohorts/                                  the same, resolved
    data/raw/<dataset>/, data/binarized/      what was downloaded, and what training reads
    runs/<scale>/<cohort>/training/<run>/     finished runs
    reports/<scale>/                          results/<cohort>/, weights/, figures/, the page
    .store/                                   everything by digest, unless ELBO_STORE names another folder

Needs no package beyond the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.experiments.names import CohortKey


@dataclass(frozen=True)
class Paths:
    """Where everything of a project lies."""

    root: Path = Path()
    """The project's folder. The current one by default, so that messages name files as one would type them there."""

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def cohorts(self) -> Path:
        return self.root / "cohorts"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def store(self) -> Path:
        """The store where no other folder is named (`pipeline.records.store.store_folder`)."""
        return self.root / ".store"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def raw(self, dataset: str) -> Path:
        """Where the stage `download` puts a dataset's files."""
        return self.data / "raw" / dataset

    def binarized(self, dataset: str) -> Path:
        """Where the stage `binarize` puts a dataset."""
        return self.data / "binarized" / dataset

    def report(self, scale: str) -> Path:
        """The report of a scale, and all that it is made from."""
        return self.reports / scale

    def results(self, scale: str) -> Path:
        """The summaries of a scale's cohorts, one folder each."""
        return self.report(scale) / "results"

    def cohort_results(self, key: str) -> Path:
        """The summaries of a cohort's runs.

        Raises: ValueError when `key` is not of the form `<scale>/<cohort>`.
        """
        cohort = CohortKey.of(key)
        return self.results(cohort.scale) / cohort.name

    def weights(self, scale: str) -> Path:
        """The weights of a scale's runs that are in git."""
        return self.report(scale) / "weights"


HERE = Paths()
"""The project in the current folder."""
