"""Reads a configuration from YAML text, with the line number of each key, and writes one.

The YAML version is 1.2: `1e-5` is a number, `no` is text, and a key that is given twice is an error. Only plain values
are built, so that a file cannot run code. Dates stay text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter

from dist_moe.errors import UserError, refused_by_library
from dist_moe.files import read_text

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 10_000
"""Limit for one file. An alias counts as all the values that it stands for: a few lines of nested aliases can be
billions."""


class _Constructor(SafeConstructor):
    """Builds plain values; dates stay text, because `run_dir: 2030-01-31` is a path."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Quotes text with U+0085, which ruamel would write unquoted and read back as a line break."""

    def represent_str(self, text: str) -> ScalarNode:
        style = '"' if "\x85" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def read_document(path: Path) -> tuple[Any, dict[str, int]]:
    """Read a YAML file; returns its content, and the line of each dotted key.

    Raises:
        UserError: the file cannot be read; one line with file and, where it is known, line.
    """
    text = read_text(path, "the config file", most=MOST_CHARACTERS)
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    node = _ask(path, lambda: yaml.compose(StringIO(text)))
    if _num_values(node, {}) > MOST_VALUES:
        raise UserError(f"{path}: more than {MOST_VALUES:,} values, aliases counted: this is not a configuration")
    return _ask(path, lambda: yaml.load(text)), dict(_key_lines(node))


def yaml_text(values: dict[str, Any]) -> str:
    """Plain values as YAML text that reads back to equal values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel declares it as None
    text = StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _ask(path: Path, question: Callable[[], Any]) -> Any:
    """Call ruamel; its errors become a `UserError` with the line, if ruamel gives one."""
    with refused_by_library(f"{path}: not valid YAML", "expected settings as `key: value`, see docs/configuration.md"):
        try:
            return question()
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise UserError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from error


def _num_values(node: Node | None, known: dict[int, int]) -> int:
    """Number of values that a node stands for, aliases expanded; very large for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # as long as it is being counted
        children: list[Node] = []
        if isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    return known[id(node)]


def _key_lines(node: Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _key_lines(value, f"{prefix}{key.value}.")
