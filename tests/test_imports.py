"""Training and evaluation run on a bare machine; slow imports stay out of stages that do not need them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = {"pandas", "matplotlib", "seaborn", "mlflow", "dvc", "pydantic", "yaml", "scipy", "PIL", "pooch", "requests"}
LIGHT_STAGES = ["stages.check", "stages.download", "stages.binarize", "stages.report", "stages.track"]


def imported(modules: list[str]) -> set[str]:
    code = f"import sys; import {', '.join(modules)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_training_and_evaluation_need_torch_numpy_and_safetensors_alone() -> None:
    found = imported(["pipeline.training.cohort", "pipeline.evaluation.cohort"]) & HEAVY
    assert found == set()


@pytest.mark.parametrize("module", LIGHT_STAGES)
def test_stages_that_compute_nothing_do_not_import_torch_or_mlflow(module: str) -> None:
    assert not imported([module]) & {"torch", "mlflow", "matplotlib"}
