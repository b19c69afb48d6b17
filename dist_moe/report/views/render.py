"""Renders a view as text, as JSON with everything, or as CSV with its main table.

Text, numbers and CSV look as pandas prints them, which is not imported here: that takes as long as showing a view of
10,000 batches.
"""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from dist_moe.report.views.view import Table, View

MOST_LINES = 200
ESCAPES = str.maketrans({"\t": "\\t", "\r": "\\r", "\n": "\\n"})


def as_text(view: View) -> str:
    """Facts, then tables; of a long table the first rows and the number of the others."""
    facts = flat_facts(view.facts)
    width = max(map(len, facts))
    parts = ["\n".join(f"{name:<{width}}  {_text(value)}" for name, value in facts.items())]
    for title, table in view.tables.items():
        length = _length(table)
        more = f"\n... and {length - MOST_LINES} more lines: see --json or --csv" if length > MOST_LINES else ""
        parts.append(f"{title}\n{_head(table) if length else '(none)'}{more}")
    return "\n\n".join(parts)


def as_json(view: View) -> str:
    """Facts and all tables, with every digit; missing values are null."""
    tables = {title: _records(table) for title, table in view.tables.items()}
    return json.dumps({"facts": view.facts, "tables": tables}, indent=2, allow_nan=False)


def as_csv(view: View) -> str:
    """The main table."""
    table = next(iter(view.tables.values()))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(line.values() for line in _records(table))
    return text.getvalue().removesuffix("\n")


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one level: `{"provenance": {"seed": 0}}` -> `{"provenance.seed": 0}`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= flat_facts(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _length(table: Table) -> int:
    return len(table[next(iter(table))])


def _columns(table: Table, most: int | None = None) -> dict[str, list[Any]]:
    """The columns, or their first values, as Python's own values."""
    parts = {name: table[name][:most] for name in table}
    return {name: part.tolist() if hasattr(part, "tolist") else list(part) for name, part in parts.items()}


def _head(table: Table) -> str:
    """The first lines, in columns that are justified to the right, with a line of their names."""
    columns = [[_title(name, values), *map(_cell, values)] for name, values in _columns(table, MOST_LINES).items()]
    widths = [max(map(len, column)) for column in columns]
    justified = ([cell.rjust(width) for cell in column] for column, width in zip(columns, widths, strict=True))
    return "\n".join(map(" ".join, zip(*justified, strict=True)))


def _records(table: Table) -> list[dict[str, Any]]:
    columns = _columns(table)
    lines = zip(*columns.values(), strict=True)
    return [
        {name: None if _is_missing(value) else value for name, value in zip(columns, line, strict=True)}
        for line in lines
    ]


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _title(name: str, values: list[Any]) -> str:
    """A column's name; that of numbers has room to its left."""
    return f" {name}" if all(isinstance(value, int | float) for value in values) else name


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "NaN" if _is_missing(value) else f"{value:.4f}"
    return str(value).translate(ESCAPES)


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
