"""Read and write the run configuration: defaults < YAML file < command line.

Notable facts: YAML is version 1.2 (`1e-5` is a number, `no` is text, a key given twice is an error) and builds plain
values only, so a file runs no code; dates stay text. Types are checked strictly, as JSON: "3" is not a number.
Every path, in the file or on the command line, is relative to the current working directory, not to the file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML, MappingNode, Node, ScalarNode
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter

from dist_moe.config.schema import Config, num_safe_rows
from dist_moe.errors import UserError
from dist_moe.files import write_text_atomic


class _Constructor(SafeConstructor):
    """Plain values, but a date stays the text that stands in the file (`run_dir: 2030-01-31` is a path)."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """ruamel writes U+0085 bare and reads it as a line break; in double quotes it is escaped."""

    def represent_str(self, text: str) -> ScalarNode:
        style = '"' if "\x85" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def load_config(path: Path | None, overrides: Sequence[str] = (), prog: str | None = None) -> Config:
    """The run's configuration, checked.

    `overrides` are command-line arguments (`--train.lr 1e-5`, `--overwrite`, `--data.paths a b`); `prog` is the
    command's name in their help. Relative paths are relative to the current working directory.

    Raises UserError, one line, for a file or a value that is wrong, and SystemExit with tyro's message for arguments
    that cannot be parsed (status 2) or for `--help` (status 0).
    """
    values = _read_values(path) if path else {}
    for key in sorted(_REQUIRED - values.keys()):
        if not _given(overrides) & {key, "help"}:
            where = f"{path} has" if path else "there is"
            raise UserError(f"{where} no `{key}`, which is required: add it to the file or pass --{key}")
    if not overrides:
        config = _build(Config, values, missing=None)
    else:
        import tyro  # only needed here, and slow to import

        default = _build(Config, values, missing=tyro.MISSING_NONPROP)
        config = tyro.cli(Config, args=overrides, default=default, prog=prog)
        for key, value in _items(_plain(config)):  # what came from the file passes a second time
            _checked(key, value, where="command line")
    _check_batch(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write every setting to `path`, as YAML that `load_config` reads back to an equal Config."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel declares it as None
    text = StringIO()
    yaml.dump(_plain(config), text)
    write_text_atomic(path, text.getvalue())


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, as plain text, numbers and lists."""
    return dict(_items(_plain(config)))


def _leaves(section: type, prefix: str = "") -> Iterator[tuple[str, TypeAdapter[Any], bool]]:
    """Dotted key, type and "is required" of every setting in a section and in the sections below it."""
    types = get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        key = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            yield from _leaves(types[field.name], key + ".")
        else:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield key, TypeAdapter(types[field.name]), required


_LEAVES = tuple(_leaves(Config))
_TYPES = {key: adapter for key, adapter, _ in _LEAVES}
_REQUIRED = {key for key, _, required in _LEAVES if required}
_SECTIONS = {key.rpartition(".")[0] for key in _TYPES} - {""}


def _read_values(path: Path) -> dict[str, Any]:
    """Dotted key -> checked value, for the settings that stand in the YAML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the config file is not UTF-8 text: {error.reason}") from error
    document, lines = _parse(text, path)
    if document is None:
        raise UserError(f"{path}: the config file is empty; expected at least {', '.join(sorted(_REQUIRED))}")
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected settings as `key: value`, got a {type(document).__name__} at the top")
    values: dict[str, Any] = {}
    for key, value in _items(document):
        where = f"{path}:{lines[key]}" if key in lines else str(path)
        if key in _SECTIONS:
            if value is not None:  # a section whose settings are all commented out reads as None
                raise UserError(f"{where}: {key}: expected a section with settings below it, got {value!r}")
        elif key not in _TYPES:
            raise UserError(f"{where}: unknown key `{key}`{_suggestion(key)}")
        elif key in values:
            raise UserError(f"{where}: {key} is given twice")
        else:
            values[key] = _checked(key, value, where)
    return values


def _parse(text: str, path: Path) -> tuple[Any, dict[str, int]]:
    """The document, and the line of each dotted key."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text), dict(_key_lines(yaml.compose(StringIO(text))))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{f':{mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from error


def _key_lines(node: Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _key_lines(value, f"{prefix}{key.value}.")


def _items(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of the settings, going down into the sections that the schema knows."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in _SECTIONS and isinstance(value, dict):
            yield from _items(value, key + ".")
        else:
            yield key, value


def _checked(key: str, value: Any, where: str) -> Any:
    """The value in its Python type: a path for text, a tuple for a list. `default=str`: what JSON lacks is refused."""
    try:
        return _TYPES[key].validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        item = "".join(f"[{i}]" for i in first["loc"])
        expected = re.sub(r"^\w+ should (be|have)", "expected", first["msg"]).replace("valid array", "list")
        raise UserError(f"{where}: {key}{item}: {expected}, got {value!r}") from error


def _suggestion(key: str) -> str:
    name = key.rpartition(".")[2]
    same_name = [known for known in _TYPES if known.rpartition(".")[2] == name]
    if nearest := same_name or get_close_matches(key, [*_TYPES, *_SECTIONS], n=1):
        return f"; did you mean {' or '.join(nearest)}?"
    return f"; the top-level keys are {', '.join(field.name for field in dataclasses.fields(Config))}"


def _given(overrides: Sequence[str]) -> set[str]:
    """Dotted keys that the command line names, in tyro's spellings (`--run-dir x`, `--run_dir=x`)."""
    flags = {arg.partition("=")[0] for arg in overrides if arg.startswith("-")}
    return {"help" if flag == "-h" else flag.removeprefix("--").replace("-", "_") for flag in flags}


def _build(section: type, values: Mapping[str, Any], missing: Any, prefix: str = "") -> Any:
    """The section from dotted values; `missing` stands for a required setting that `values` lacks."""
    types = get_type_hints(section)
    arguments = {}
    for field in dataclasses.fields(section):
        key = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            arguments[field.name] = _build(types[field.name], values, missing, key + ".")
        elif key in values or key in _REQUIRED:
            arguments[field.name] = values.get(key, missing)
    return section(**arguments)


def _plain(config: Config) -> dict[str, Any]:
    """Nested dicts, lists, text and numbers."""
    return TypeAdapter(Config).dump_python(config, mode="json")


def _check_batch(config: Config) -> None:
    size, ratio = config.batches.batch_size, config.batches.safe_ratio
    num_safe = num_safe_rows(size, ratio)
    if not 0 < num_safe < size:
        raise UserError(
            f"batches.safe_ratio {ratio} of batches.batch_size {size} gives {num_safe} safe and {size - num_safe} "
            "unsafe rows; a batch needs at least one of each"
        )
