"""The package as pip installs it: every file that the code reads is in it, and its digest covers them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.launch import cluster_task
from tests.conftest import ROOT

CONSTRAINTS = ROOT / "constraints.txt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout's files, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-co",
            "--exclude-standard",
            "pipeline",
            "stages",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    if "BackendUnavailable" in done.stderr or "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed, which builds the wheel")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(("pipeline/", "stages/"))}
    there = {
        path.relative_to(ROOT).as_posix()
        for top in ("pipeline", "stages")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert there - packed == set()


def test_the_installed_launcher_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip does it, in a folder that is no checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import pipeline.models.compiled_step as step\n"
        "print(all((step.FOLDER / name).exists() for name in step.SOURCES))\n"
        "import pipeline.launch.__main__"
    )
    variables = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_the_version_of_the_sources_covers_every_file_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a cluster must agree in the C sources as in the Python ones."""

    def version() -> str:
        monkeypatch.setattr(cluster_task, "__file__", str(tmp_path / "pipeline/launch/cluster_task.py"))
        return cluster_task.project_version.__wrapped__()

    for name in ("launch/cluster_task.py", "models/compiled/step.c", "models/compiled/simd.h"):
        (tmp_path / "pipeline" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pipeline" / name).write_text("one")
    before = version()
    assert version() == before
    for name in ("models/compiled/step.c", "models/compiled/simd.h", "launch/cluster_task.py"):
        (tmp_path / "pipeline" / name).write_text("two")
        assert version() != before, name
        before = version()


def test_constraints_name_one_version_each_and_no_build() -> None:
    """`torch==2.13.0` is met by torch 2.13.0+cpu too."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert "torch" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_hash_in_the_constraints_would_refuse_the_project_itself(hashed: bool, tmp_path: Path) -> None:
    """The reason that constraints.txt gives for having none: where pip takes both, hashes are due."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "another"\nversion = "0"\ndependencies = ["numpy"]\n[tool.setuptools]\npackages = []\n'
    )
    line = f"numpy=={version('numpy')}" + (f" --hash=sha256:{'0' * 64}" if hashed else "")
    (tmp_path / "constraints.txt").write_text(f"# a comment\n{line}\n")
    options = ["--dry-run", "--no-index", "--no-build-isolation", "--constraint", str(tmp_path / "constraints.txt")]
    command = [sys.executable, "-m", "pip", "install", *options, "--editable", str(tmp_path / "project")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "BackendUnavailable" in done.stderr or "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed, which builds the project")
    if hashed:
        assert done.returncode != 0
        assert "cannot be installed when requiring hashes" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
