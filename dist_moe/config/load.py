"""Reads and writes configurations. The command line takes precedence over the YAML file, and the file over defaults.

Every path, in the file or on the command line, is relative to the current working directory, not to the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from dist_moe.config.adjust import check_adjust
from dist_moe.config.objective import active_terms
from dist_moe.config.schema import Config, num_safe_rows
from dist_moe.config.settings import REQUIRED, SECTIONS, SETTINGS, checked, clipped, from_words, suggestion
from dist_moe.config.yaml_text import read_document, yaml_text
from dist_moe.errors import UserError, shown
from dist_moe.files import write_text_atomic
from dist_moe.objective import TERMS

COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for each setting that was given, where it was given."""

    config: Config
    sources: dict[str, str]
    """Dotted key -> `FILE:LINE` or `command line`. Settings with their default are absent."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: YAML file. Relative paths in it are relative to the current working directory. None: only `overrides`.
        overrides: command-line arguments (`--train.lr 1e-5`, `--overwrite`, `--data.paths a b`), which take precedence.

    Returns:
        All settings; those that are not given have their default.

    Raises:
        UserError: the file or a value is wrong; one line that says where.

    Example:
        >>> dist_moe.load_config("run.yaml", ["--train.lr", "1e-5"]).train.lr
        1e-05
    """
    return resolve(None if path is None else Path(path), overrides).config


def resolve(path: Path | None, overrides: Sequence[str] = ()) -> Resolved:
    """Like `load_config`; also returns where each value was given."""
    values, sources = _read_values(path) if path else ({}, {})
    for key, value in _read_words(overrides):
        values[key], sources[key] = value, COMMAND_LINE
    for key in sorted(REQUIRED - values.keys()):
        where = f"{path} has" if path else "there is"
        raise UserError(f"{where} no `{key}`, which is required: add it to the file or pass --{key}")
    return Resolved(_whole(values), sources)


def changed(config: Config, words: Sequence[str]) -> Config:
    """Another configuration, with the settings of these command-line arguments.

    Raises UserError, one line, for a word that is wrong.
    """
    values = {key: checked(key, value, "configuration") for key, value in settings_of(config).items()}
    return _whole(values | dict(_read_words(words)))


def save_config(config: Config, path: Path) -> None:
    """Write every setting to `path`, as YAML that `load_config` reads back to an equal Config."""
    write_text_atomic(path, yaml_text(_plain(config)))


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, as plain text, numbers and lists."""
    return dict(_items(_plain(config)))


def _read_values(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in the YAML file: dotted key -> checked value, and dotted key -> place."""
    document, lines = read_document(path)
    if document is None:
        raise UserError(f"{path}: the config file is empty; expected at least {', '.join(sorted(REQUIRED))}")
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected settings as `key: value`, got a {type(document).__name__} at the top")
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in _items(document):
        where = f"{path}:{lines[key]}" if key in lines else str(path)
        if key in SECTIONS:
            if value is not None:  # a section whose settings are all commented out reads as None
                raise UserError(f"{where}: {key}: expected a section with settings below it, got {shown(value)}")
        elif key not in SETTINGS:
            raise UserError(f"{where}: unknown key `{clipped(key)}`{suggestion(key)}")
        elif key in values:
            raise UserError(f"{where}: {key} is given twice")
        else:
            values[key], places[key] = checked(key, value, where), where
    return values, places


def _items(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all settings in nested mappings."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if key in SECTIONS and isinstance(value, dict):
            yield from _items(value, key + ".")
        else:
            yield key, value


def _read_words(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(dotted key, checked value) of the settings on the command line. If one is given twice, the last value counts.

    A setting is `--key value`, `--key=value`, `--key value value` (a list), and `--key` or `--no-key` (true or false).
    """
    given: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            given.append((name, [value] if has_value else []))
        elif given:
            given[-1][1].append(word)
        else:
            raise UserError(f"command line: unexpected argument {shown(word)}: settings are given as --train.lr 1e-5")
    for name, value_words in given:
        key = name[2:].replace("-", "_")
        section, dot, last = key.rpartition(".")
        positive = f"{section}{dot}{last.removeprefix('no_')}"
        if key not in SETTINGS and positive in SETTINGS and SETTINGS[positive].flag and not value_words:
            yield positive, False
        elif key not in SETTINGS:
            raise UserError(f"command line: unknown key `{clipped(key)}`{suggestion(key)}")
        else:
            yield key, from_words(key, value_words, f"command line: {key}")


def _build(section: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A section from values by dotted key; missing ones get their default."""
    types = get_type_hints(section)
    arguments = {}
    for field in dataclasses.fields(section):
        key = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            arguments[field.name] = _build(types[field.name], values, key + ".")
        elif key in values:
            arguments[field.name] = values[key]
    return section(**arguments)


def _whole(values: Mapping[str, Any]) -> Config:
    config: Config = _build(Config, values)
    _check_batch(config)
    _check_objective(config)
    check_adjust(config.train.adjust, config.train.revisions, config.train.trains)
    return config


def _plain(config: Config) -> dict[str, Any]:
    """A value as nested dicts, lists, text and numbers."""
    plain: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return plain


def _check_batch(config: Config) -> None:
    size, ratio = config.batches.batch_size, config.batches.safe_ratio
    num_safe = num_safe_rows(size, ratio)
    if not 0 < num_safe < size:
        raise UserError(
            f"batches.safe_ratio {ratio} of batches.batch_size {size} gives {num_safe} safe and {size - num_safe} "
            "unsafe rows; a batch needs at least one of each"
        )


def _check_objective(config: Config) -> None:
    if not active_terms(config.train.objective):
        raise UserError(
            "train.objective: every term has weight 0, so nothing would be trained: set train.objective.TERM.weight "
            f"above 0 for one of {', '.join(TERMS)}"
        )
