"""The pieces of HTML that sections are put together from. Every text passes through Jinja's escaping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

ENVIRONMENT = Environment(
    loader=PackageLoader("dist_moe.report.page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MACROS: Any = ENVIRONMENT.get_template("blocks.html.jinja").module

Cell = str | int | Markup
"""Text is escaped, Markup is not."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading of its own."""

    name: str
    """Part of its address in the page."""
    title: str
    body: Markup


def joined(parts: Iterable[Markup]) -> Markup:
    """One after the other."""
    return Markup("\n").join(parts)


def paragraph(text: Cell) -> Markup:
    """A paragraph."""
    return Markup(_MACROS.paragraph(text))


def note(text: Cell) -> Markup:
    """A paragraph that must not be overlooked."""
    return Markup(_MACROS.note(text))


def bullets(items: Sequence[Cell]) -> Markup:
    """A list; of nothing, nothing."""
    return Markup(_MACROS.bullets(items)) if items else Markup()


def facts(named: Mapping[str, Cell]) -> Markup:
    """Names and values."""
    return Markup(_MACROS.facts(named))


def table(
    caption: Cell, head: Sequence[Cell], lines: Iterable[Sequence[Cell]], *, key: str | None = None, css: str = ""
) -> Markup:
    """A table whose first column names its lines; wide ones scroll by themselves.

    Args:
        caption: what it is a table of.
        head: a name for each column.
        lines: a cell for each column.
        key: its address in the page.
        css: classes.
    """
    return Markup(_MACROS.table(caption, head, list(lines), key, css))


def details(summary: Cell, body: Markup, *, css: str = "") -> Markup:
    """What is shown when it is asked for."""
    return Markup(_MACROS.details(summary, body, css))


def heading(level: int, text: Cell) -> Markup:
    """Of a part of a section."""
    return Markup(_MACROS.heading(level, text))


def answer_pair(**fields: Any) -> Markup:
    """An evaluated row: its prompt, the answers before and after, and what judges say of them."""
    return Markup(_MACROS.answer_pair(fields))


def code(text: str) -> Markup:
    """A command, or a name as it is written in a file."""
    return Markup("<code>{}</code>").format(text)
