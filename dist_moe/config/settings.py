"""All settings by dotted key, and the check of a single value, with a one-line error if it is wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dist_moe.config.schema import Config
from dist_moe.errors import UserError, shown
from dist_moe.files import is_too_long

OF_WORDS = {
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a number of fewer digits",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "bool_parsing": "expected true or false",
    "missing": "expected a value here too",
}
"""What to say instead of pydantic's message, by the type of its error."""

UNSET = ("None", "null")
"""On the command line: as the help writes it, and as YAML does."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting, with what is needed to parse it."""

    adapter: TypeAdapter[Any]
    required: bool
    default: Any
    flag: bool
    """It is a bool: on the command line `--name` means true and `--no-name` false."""
    optional: bool
    """None is a possible value."""
    several: bool
    """It takes a list of values."""
    words: tuple[str, ...]
    """The possible values of a setting that takes one of a few words; else empty."""


def _settings(section: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """(dotted key, setting) of a section and of the sections below it."""
    types = get_type_hints(section, include_extras=True)
    plain = get_type_hints(section)
    for field in dataclasses.fields(section):
        key, kind = prefix + field.name, plain[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _settings(types[field.name], key + ".")
        else:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield (
                key,
                Setting(
                    TypeAdapter(types[field.name]),
                    required,
                    default=None if required else field.default,
                    flag=kind is bool,
                    optional=NoneType in get_args(kind),
                    several=getattr(kind, "__origin__", None) is tuple,
                    words=get_args(kind) if getattr(kind, "__origin__", None) is Literal else (),
                ),
            )


SETTINGS = dict(_settings(Config))
REQUIRED = {key for key, setting in SETTINGS.items() if setting.required}
SECTIONS = {key[: dot.start()] for key in SETTINGS for dot in re.finditer(r"\.", key)}


def checked(key: str, value: Any, where: str) -> Any:
    """Convert a plain JSON value to the setting's Python type: text to a path, a list to a tuple. Types are strict: "3"
    is not a number.

    Raises:
        UserError: the value is wrong; one line with `where`, the key, what is expected and the value.
    """
    if value != SETTINGS[key].default:  # which may be empty: not set
        _require_text(value, f"{where}: {key}", blank=True)
    try:
        encoded = json.dumps(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {key}: expected text, a number or a list of them, got {shown(value)}") from None
    try:
        found = SETTINGS[key].adapter.validate_json(encoded, strict=True)
    except ValidationError as error:
        raise _refused(error, f"{where}: {key}", shown(value) + _nearest(SETTINGS[key], value)) from None
    return _require_short(found, f"{where}: {key}")


def from_words(key: str, words: Sequence[str], where: str) -> Any:
    """Convert the words that the command line gives for a setting to its value.

    Raises:
        UserError: the value is wrong; one line with `where`, what is expected and the words.
    """
    setting = SETTINGS[key]
    if setting.flag and not words:
        return True
    if not setting.several and len(words) != 1:
        raise UserError(f"{where}: expected one value, got {len(words)}{f': {shown(list(words))}' if words else ''}")
    if setting.optional and words[0] in UNSET:
        return None
    value = list(words) if setting.several else words[0]
    _require_text(value, where, blank=False)  # a blank argument usually comes from an unset shell variable
    try:
        found = setting.adapter.validate_python(value)
    except ValidationError as error:
        got = shown(value) if setting.several else clipped(words[0]) + _nearest(setting, words[0])
        raise _refused(error, where, got) from None
    return _require_short(found, where)


def suggestion(key: str) -> str:
    """What to add to the error message on an unknown key: "; did you mean ...?" or the known top-level keys."""
    name = key.rpartition(".")[2]
    same_name = [known for known in SETTINGS if known.rpartition(".")[2] == name]
    same_name = get_close_matches(key, same_name, n=1, cutoff=0.85) or same_name
    if nearest := same_name or get_close_matches(key, [*SETTINGS, *SECTIONS], n=1):
        return f"; did you mean {' or '.join(nearest)}?"
    return f"; the top-level keys are {', '.join(field.name for field in dataclasses.fields(Config))}"


def _nearest(setting: Setting, value: Any) -> str:
    """What to add to the error message on an unknown word: "; did you mean ...?" or ""."""
    nearest = get_close_matches(value, setting.words, n=1) if isinstance(value, str) else []
    return f"; did you mean {nearest[0]}?" if nearest else ""


def clipped(key: str) -> str:
    """A key as it is shown in a message, shortened if it is long."""
    return shown(key)[1:-1]


def _refused(error: ValidationError, where: str, value: str) -> UserError:
    first = error.errors()[0]
    item = "".join(f"[{i}]" for i in first["loc"] if isinstance(i, int))
    said = re.sub(r"^\w+ should (be|have)", "expected", first["msg"]).replace("valid array", "list")
    return UserError(f"{where}{item}: {OF_WORDS.get(first['type'], said)}, got {value}")


def _require_text(value: Any, where: str, *, blank: bool) -> None:
    """Refuse empty text (Path("") would be the current directory), NUL characters and invalid UTF-8; without `blank`
    also text of white space only."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str) and (each == "" or not (blank or each.strip())):
            raise UserError(f"{where}: expected text that is not blank, got {shown(each)}")
        if isinstance(each, str) and re.search(r"[\0\ud800-\udfff]", each):
            raise UserError(f"{where}: expected UTF-8 text without NUL, got {shown(each)}")


def _require_short(value: Any, where: str) -> Any:
    """Refuse paths that are too long for the file system; returns the value."""
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, Path) and is_too_long(str(each)):
            raise UserError(f"{where}: File name too long: {shown(str(each))}")
    return value
