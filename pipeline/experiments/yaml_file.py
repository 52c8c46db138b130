"""Reading YAML by one set of rules: version 1.2, as DVC reads the same file, with unique keys and within limits.

By these rules `1e-5` and `1.0e-5` are numbers, `1:30`, `yes` and `2024-01-01` are texts, and `0300` is 300.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.tag import Tag

from pipeline.errors import UserError

MOST_YAML_BYTES = 1_000_000
MOST_NODES = 100_000
"""Number of values a file may stand for, each alias counted as what it stands for."""
MOST_DEPTH = 30
TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = frozenset(TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))
TEXT_TAGS = frozenset(TAG + kind for kind in ("timestamp", "value"))
"""What version 1.2 reads as a text and the library by older rules."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, in dicts, lists, texts, numbers, booleans and None.

    Raises: UserError naming the file, and the line where there is one: not YAML, a key twice, too large or too deep.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; run from the project's folder") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) > MOST_YAML_BYTES:
        raise UserError(f"{path}: holds {len(raw):,} bytes; at most {MOST_YAML_BYTES:,} are read")
    try:
        text = raw.decode("utf-8")
        if any(line.startswith("%") for line in text.splitlines()):
            raise UserError(f"{path}: a line begins with %: directives are not read; remove it")
        reader = YAML(typ="safe", pure=True)
        root = reader.compose(text)
        if root is None:
            raise UserError(f"{path}: is empty; `git checkout {path}` brings the committed one back")
        _Check(path).visit(root, 0)
        return reader.constructor.construct_document(root)
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        problem = " ".join(str(error.problem or error.context or "unreadable").split())
        raise UserError(f"{path}: {where}not valid YAML: {problem}") from error
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested deeper than {MOST_DEPTH} levels") from error


class _Check:
    """Walks the parsed file before anything is made of it: an alias may stand for as much as its writer likes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[int, int] = {}

    def _refuse(self, node: Node, what: str) -> UserError:
        return UserError(f"{self._path}: line {node.start_mark.line + 1}: {what}")

    def visit(self, node: Node, depth: int) -> int:
        """How many values a node stands for.

        Raises: UserError naming the line.
        """
        if depth > MOST_DEPTH:
            raise self._refuse(node, f"nested deeper than {MOST_DEPTH} levels (an alias inside what it stands for?)")
        tag = str(node.tag)
        if tag in TEXT_TAGS and isinstance(node, ScalarNode):
            tag = TAG + "str"
            node.ctag = Tag(suffix=tag)
        if tag not in PLAIN_TAGS:
            raise self._refuse(node, f"{tag.removeprefix(TAG)!r} is no type of value here; remove the tag")
        # Found again through an alias, a node is not walked again but counted again.
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        size = 1
        if isinstance(node, MappingNode):
            self._unique_keys(node)
            size += sum(self.visit(child, depth + 1) for pair in node.value for child in pair)
        elif not isinstance(node, ScalarNode):
            size += sum(self.visit(child, depth + 1) for child in node.value)
        if size > MOST_NODES:
            raise self._refuse(node, f"stands for {size:,} values (aliases counted); at most {MOST_NODES:,} are read")
        self._sizes[id(node)] = size
        return size

    def _unique_keys(self, node: MappingNode) -> None:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise self._refuse(key, "a key is a list or a mapping; keys are names")
            line = key.start_mark.line + 1
            if key.value in first:
                raise self._refuse(key, f"the key {key.value!r} is there twice, first in line {first[key.value]}")
            first[key.value] = line
