"""Settings with a value for some batches: `privacy=2 3f1c0d2b9a7e5f60=0.5`, by category or by batch id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dist_moe.data.index import BatchIndex
from dist_moe.errors import UserError, shown

T = TypeVar("T")


def by_batch(items: Sequence[str], setting: str, index: BatchIndex, kind: Any, default: T) -> tuple[T, ...]:
    """[B]: each batch's value; that of its id before that of its category, `default` if neither is named.

    Args:
        items: NAME=VALUE each.
        setting: its name, for messages.
        index: the batches.
        kind: type of a value with its range.
        default: value of batches that are not named.

    Raises:
        UserError: an item is something else, or names no batch; or one is named twice.
    """
    adapter, named = TypeAdapter(kind), dict[str, T]()
    for item in items:
        name, equals, text = item.rpartition("=")
        if not equals:
            raise UserError(f"{setting}: expected NAME=VALUE, such as privacy=2, got {shown(item)}")
        if name not in index.ids and name not in index.categories:
            known = ", ".join(dict.fromkeys(index.categories))
            raise UserError(f"{setting}: {shown(name)} is no category and no batch's id; the categories are {known}")
        if name in named:
            raise UserError(f"{setting}: {shown(name)} is given twice")
        try:
            named[name] = adapter.validate_python(text)
        except ValidationError as error:
            said = error.errors()[0]["msg"].replace("Input should be", "expected")
            raise UserError(f"{setting}: {said}, got {shown(item)}") from None
    batches = zip(index.ids, index.categories, strict=True)
    return tuple(named.get(id_, named.get(category, default)) for id_, category in batches)
