"""Training and evaluation run on a bare machine; slow imports stay out of stages that do not need them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = {"pandas", "matplotlib", "seaborn", "mlflow", "dvc", "pydantic", "yaml", "ruamel", "scipy", "PIL", "requests"}
LIGHT_STAGES = ["stages.check", "stages.download", "stages.binarize", "stages.report", "stages.track"]


# Runs the module named first, with the arguments that follow, where only what comes with the three packages is there.
BARE = """
import importlib.abc, re, runpy, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def with_requirements(name, there):
    if plain(name) in there:
        return
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return
    there.add(plain(name))
    for line in lines:
        if "extra ==" not in line:
            with_requirements(re.match(r"[A-Za-z0-9._-]+", line).group(), there)

there = set()
for name in ("torch", "numpy", "safetensors"):
    with_requirements(name, there)
refused = {module for module, names in packages_distributions().items() if not {plain(name) for name in names} & there}

# None stands for a module that is not there, for imports and for importlib.util.find_spec.
sys.modules |= dict.fromkeys(refused - {"pipeline", "stages"})
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def imported(modules: list[str]) -> set[str]:
    code = f"import sys; import {', '.join(modules)}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_training_and_evaluation_need_torch_numpy_and_safetensors_alone() -> None:
    heavy = imported(["pipeline.training.cohort", "pipeline.evaluation.cohort"]) & HEAVY
    assert heavy == set()


def on_a_bare_machine(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the project, by name and arguments, where only torch, numpy and safetensors are installed."""
    words = [sys.executable, "-c", BARE, *command]
    variables = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["tqdm", "pydantic", "yaml", "ruamel"])
def test_the_bare_machine_of_these_tests_is_bare(package: str, tmp_path: Path) -> None:
    (tmp_path / "needs.py").write_text(f"import {package}")
    assert f"import of {package} halted" in on_a_bare_machine(tmp_path, "needs").stderr


def test_the_launcher_needs_torch_numpy_and_safetensors_alone() -> None:
    command = ("pipeline.launch", "status", "--scale", "quick", "--device", "cpu")
    done = on_a_bare_machine(ROOT, *command)
    assert done.returncode == 0, done.stderr
    assert "quick/burda-table1-mnist-1L-T50" in done.stdout


@pytest.mark.parametrize("module", LIGHT_STAGES)
def test_stages_that_compute_nothing_do_not_import_torch_or_mlflow(module: str) -> None:
    assert not imported([module]) & {"torch", "mlflow", "matplotlib"}


@pytest.mark.parametrize("package", ["draws", "experiments", "data", "models", "records", "evaluation"])
def test_what_is_known_without_training_imports_nothing_of_it(package: str) -> None:
    modules = sorted((ROOT / "pipeline" / package).glob("*.py"))
    assert modules
    assert [path.name for path in modules if "pipeline.training" in path.read_text()] == []
