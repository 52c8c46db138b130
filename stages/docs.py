"""Write what README.md says of the results and docs/map.md of the modules: `python -m stages.docs`.

No DVC stage: these files are people's too, and only what stands between two marks in them is written. `make repro`,
`make paper` and `make report` call it.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from pipeline.errors import UserError
from pipeline.experiments.cohorts import load_cohorts
from pipeline.experiments.params import load_params
from pipeline.files import write_text
from pipeline.paths import Paths
from pipeline.records.results import load_results
from pipeline.reporting.summary import PICTURE, readme_part
from stages import run_stage

README, MAP = Path("README.md"), Path("docs/map.md")
"""Below the project's folder."""
PACKAGES = ("pipeline", "stages", "examples", "benchmarks")
BEGIN, END = "<!-- written by `python -m stages.docs`: begin -->", "<!-- end -->"


def status(paths: Paths) -> str:
    """What README.md should say of the results."""
    scales = list(load_params(paths.params).scales)
    cohorts = load_cohorts(paths.cohorts).values()
    planned = {scale: [cohort for cohort in cohorts if cohort.scale == scale] for scale in scales}
    pictured = [scale for scale in scales if (paths.report(scale) / "figures" / f"{PICTURE}.png").exists()]
    return readme_part({scale: load_results(paths.results(scale)) for scale in scales}, planned, pictured)


def module_lines(root: Path) -> str:
    """A list for each package: what its docstring says, and the first line of that of each of its modules."""
    parts = []
    for package in sorted(path.parent for name in PACKAGES for path in root.glob(f"{name}/**/__init__.py")):
        modules = [path for path in sorted(package.glob("*.py")) if path.name != "__init__.py"]
        where = package.relative_to(root).as_posix()
        lines = [f"**`{where}/`** {_first_line(package / '__init__.py')}".rstrip(), ""]
        lines += [f"- [`{path.name}`](../{where}/{path.name}): {_first_line(path)}" for path in modules]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts)


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def with_part(text: str, part: str) -> str:
    """A text with what stands between its marks replaced.

    Raises: ValueError where it has no marks.
    """
    before, opened, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not opened or not closed:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{part}\n{closed}{after}"


def written(path: Path, part: str) -> bool:
    """Bring a file in step; whether it was not.

    Raises: UserError where it has no marks.
    """
    before = path.read_text(encoding="utf-8")
    try:
        after = with_part(before, part)
    except ValueError as error:
        raise UserError(f"{path}: has {error}; put these marks where the written part is to stand") from error
    if after != before:
        write_text(path, after)
    return after != before


def main(paths: Paths) -> None:
    """Bring the generated parts of the README and of the map in step with the results and the modules."""
    argparse.ArgumentParser(prog="python -m stages.docs", description=__doc__).parse_args()
    for name, part in ((README, status(paths)), (MAP, module_lines(paths.root))):
        print(f"{name}: {'brought in step' if written(paths.root / name, part) else 'in step'}")


if __name__ == "__main__":
    run_stage(main)
