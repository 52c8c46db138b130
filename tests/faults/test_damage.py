"""Every file of a finished project, damaged: it heals or is named in one line with a remedy; never another number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.experiments import grid
from pipeline.files import disk_error
from pipeline.work import interruption
from stages import ais, binarize, download, evaluate, toy, train
from tests.faults.finished import AIS, COHORT, Numbers, call, numbers, provenance, run_all, stage

TOPS = (".store", "cohorts", "data", "params.yaml", "reports", "runs")

Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES: dict[str, Damage] = {"cut": cut, "flipped": flip, "empty": empty, "a folder": folder}


def files_of(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]


def attempt(action: Callable[[], object], path: Path) -> str | None:
    """None where it went through; else the one line that it ended in, which names the file."""
    interruption.clear()
    try:
        action()
    except (UserError, OSError) as error:
        # The system's own errors are told as `stages.run_stage` tells them.
        text = str(error if isinstance(error, UserError) else disk_error(error.filename, "used", error))
        assert "Traceback" not in text, text
        # params.yaml may have several mistakes: a line for each.
        assert "\n" not in text or all(line.startswith("params.yaml: ") for line in text.splitlines()), text
        # Of a file in the place of a whole folder, or the other way round, the folder is named as well.
        assert any(name in text for name in (path.name, path.stem, path.parent.name)), text
        return text
    return None


REMEDIES: dict[str, Callable[[], object]] = {
    "dvc repro --force download@mnist": lambda: stage(download.main, "mnist"),
    # Before it, DVC downloads again what is not as it was downloaded.
    "dvc repro binarize@mnist": lambda: (stage(download.main, "mnist"), stage(binarize.main, "mnist")),
    "python -m pipeline.experiments": lambda: call(grid.main),
    f"python -m stages.train {COHORT}": lambda: stage(train.main, COHORT),
    f"python -m stages.evaluate {COHORT}": lambda: stage(evaluate.main, COHORT),
    "python -m stages.toy small": lambda: stage(toy.main, "small"),
    "python -m stages.ais": lambda: stage(ais.main, *AIS),
    # The raw file that was deleted is an output of the stage `download`, which DVC therefore runs again.
    "delete it and run `dvc repro`": lambda: stage(download.main, "mnist"),
}
"""What a line may tell to run, and what that does here."""


def mend(root: Path, path: Path, told: str) -> None:
    """Do what the line says, and nothing else."""
    if "delete it" in told or "move it away" in told:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    asked = [action for words, action in REMEDIES.items() if words in told]
    committed = "git checkout" in told or told.startswith("params.yaml: ") or told.startswith("cohorts/ is out of step")
    assert asked or committed or "move it away" in told, f"no remedy in: {told}"
    for action in asked:
        action()
    if not asked and committed:
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes((root / path).read_bytes())


def survives(name: str, damage: Damage, root: Path, expected: Numbers) -> str:
    """Damage one file of a copy and work on; returns what became of it.

    Whatever is read on the way is the expected number or a line that says why not.
    """
    path = Path(name)
    damage(path)
    outcome = "healed"
    actions: list[Callable[[], object]] = [run_all, lambda: _same(expected)]
    if name.startswith("reports/"):
        # First as a reader finds it, then after the stages have run.
        actions.insert(0, lambda: _same(expected, strictly=True))
    if name.startswith("runs/"):
        # As a user who evaluates what DVC did not look at.
        actions.insert(0, lambda: stage(evaluate.main, COHORT))
    if name.startswith("data/raw/"):
        actions.insert(0, lambda: stage(binarize.main, "mnist"))
    for action in actions:
        told = attempt(action, path)
        if told is not None:
            outcome = "named"
            mend(root, path, told)
            again = attempt(action, path)
            assert again is None, f"{told} | and after that: {again}"
    return outcome


def _same(expected: Numbers, strictly: bool = False) -> None:
    actual = numbers()
    assert actual == {name: value for name, value in expected.items() if name != "provenance"}
    if strictly:
        assert provenance() == expected["provenance"]


def walk(names: list[tuple[str, str]], finished: tuple[Path, Numbers], work: Path) -> dict[str, int]:
    root, expected = finished
    outcomes: dict[str, int] = {}
    failures: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for number, (name, kind) in enumerate(names):
            copy = work / str(number)
            shutil.copytree(root, copy)
            patch.chdir(copy)
            try:
                outcome = survives(name, DAMAGES[kind], root, expected)
            except Exception as error:
                failures.append(f"{name}, {kind}: {type(error).__name__}: {error}")
                outcome = "failed"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            patch.chdir(work)
            shutil.rmtree(copy)
    assert not failures, "\n".join([f"{len(failures)} of {len(names)}", *failures])
    return outcomes


def cases(root: Path) -> list[tuple[str, str]]:
    return [(name, kind) for name in files_of(root) for kind in DAMAGES]


def test_a_sample_of_damaged_files(finished: tuple[Path, Numbers], tmp_path: Path) -> None:
    every = cases(finished[0])
    outcomes = walk(every[:: len(every) // 9], finished, tmp_path)
    assert sum(outcomes.values()) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("top", TOPS)
def test_every_file_damaged_in_every_way(top: str, finished: tuple[Path, Numbers], tmp_path: Path) -> None:
    damages = [(name, kind) for name, kind in cases(finished[0]) if name.partition("/")[0] == top]
    outcomes = walk(damages, finished, tmp_path)
    print(f"{top}: {len(damages) // len(DAMAGES)} files, {len(damages)} damages: {outcomes}")
    assert sum(outcomes.values()) == len(damages) > 0


def test_the_walk_covers_every_folder(finished: tuple[Path, Numbers]) -> None:
    tops = {name.partition("/")[0] for name in files_of(finished[0])}
    assert tops == set(TOPS)
    assert {path.split("/")[2] for path in files_of(finished[0]) if path.startswith("reports/")} == {
        "results",
        "weights",
    }
