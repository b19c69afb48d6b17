"""Describes every setting (type, default, help) for the help of commands, shell completion and `dist-moe config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dist_moe.config.schema import Config
from dist_moe.described import Described
from dist_moe.registry import field_docs

WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "true|false", NoneType: "None"}


@cache
def described() -> tuple[Described, ...]:
    """All settings: first the top-level ones, then section by section in the order of the schema."""
    found = list(_described(Config))
    return (*(each for each in found if not each.section), *(each for each in found if each.section))


def plain(value: Any) -> Any:
    """A setting's value as plain YAML data: paths as text, tuples as lists."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _described(section: type, prefix: str = "") -> Iterator[Described]:
    kinds, docs = get_type_hints(section), field_docs(section)
    for field in dataclasses.fields(section):
        key, kind = prefix + field.name, kinds[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _described(kind, key + ".")
            continue
        required = field.default is dataclasses.MISSING
        yield Described(
            key=key,
            kind=_kind(kind),
            choices=_choices(kind),
            required=required,
            default=None if required else plain(field.default),
            help=field.metadata.get("help") or docs[field.name],
        )


def _kind(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        return f"{_kind(parts[0])} ..." if parts[-1] is Ellipsis else " ".join(map(_kind, parts))
    if origin in (Union, UnionType):
        return "|".join(map(_kind, parts))
    return "|".join(parts) if origin is Literal else WORDS[kind]


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) in (Union, UnionType):
        parts = [_choices(part) for part in get_args(kind) if part is not NoneType]
        return (*parts[0], "None") if parts[0] else ()
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()
