"""One dialect of YAML: what a value means, and files that are refused before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.experiments.yaml_file import MOST_NODES, MOST_YAML_BYTES, read_yaml
from tests.conftest import ROOT


def written(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("1E3", 1000.0),
        ("1:30", "1:30"),
        ("0300", 300),
        ("0o17", 15),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("~", None),
        ("true", True),
        ("'5'", "5"),
    ],
)
def test_values_are_those_of_version_1_2(text: str, value: Any, tmp_path: Path) -> None:
    loaded = read_yaml(written(tmp_path, f"key: {text}\n"))["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_anchors_and_merges_work_as_in_the_committed_file() -> None:
    content = read_yaml(ROOT / "params.yaml")
    assert content["experiments"]["burda-table3"] == content["experiments"]["burda-table1"]


def bomb(template: str) -> str:
    """Twelve levels, each nine times the one before it: 9^12 values in half a kilobyte."""
    lines = [f"a0: &a0 {template.format('1')}"]
    lines += [f"a{i}: &a{i} {template.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
    return "\n".join(lines)


MERGES = "a0: &a0 {q: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice, first in line 1"),
        ("x:\n  b: {c: 1, c: 2}", "line 2: the key 'c' is there twice, first in line 2"),
        ("a: &x {b: 1}\n<<: *x\n<<: *x", "line 3: the key '<<' is there twice"),
        (bomb("[{}]"), f"at most {MOST_NODES:,} are read"),
        (MERGES, f"at most {MOST_NODES:,} are read"),
        ("a: &x [*x]", "nested deeper than 30 levels"),
        ("[" * 40 + "]" * 40, "nested deeper than 30 levels"),
        ("[" * 1200, "nested deeper than 30 levels"),
        ("a: 1\nb: [1", "line 2: not valid YAML: expected ',' or ']'"),
        ("a: *nowhere", "line 1: not valid YAML: found undefined alias"),
        ("a: !!python/object:os.system x", "line 1: 'python/object:os.system' is no type of value here"),
        ("a: !!binary aGk=", "line 1: 'binary' is no type of value here"),
        ("? [1]\n: 2", "line 1: a key is a list or a mapping"),
        ("%YAML 1.1\n---\na: yes", "directives are not read"),
        ("a: 1\n---\na: 2", "not valid YAML: but found another document"),
        ("a: " + "9" * 5000, "not valid YAML: "),
        ("", "is empty"),
        ("# a comment\n", "is empty"),
        ("#" * (MOST_YAML_BYTES + 1), f"at most {MOST_YAML_BYTES:,} are read"),
    ],
)
def test_refused_in_one_line_with_file_and_place(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").mkdir()
    with pytest.raises(UserError, match=r"file\.yaml: cannot be read \(Is a directory\)"):
        read_yaml(tmp_path / "file.yaml")
