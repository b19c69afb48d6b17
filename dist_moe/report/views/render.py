"""Renders a view as text, as JSON with everything, or as CSV with its main table."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dist_moe.report.views.view import View

MOST_LINES = 200


def as_text(view: View) -> str:
    """Facts, then tables; of a long table the first rows and the number of the others."""
    facts = flat_facts(view.facts)
    width = max(map(len, facts))
    parts = ["\n".join(f"{name:<{width}}  {_text(value)}" for name, value in facts.items())]
    for title, table in view.tables.items():
        shown = table.head(MOST_LINES)
        text = shown.to_string(index=False, float_format="{:.4f}".format) if len(table) else "(none)"
        more = f"\n... and {len(table) - len(shown)} more lines: see --json or --csv" if len(table) > len(shown) else ""
        parts.append(f"{title}\n{text}{more}")
    return "\n\n".join(parts)


def as_json(view: View) -> str:
    """Facts and all tables, with every digit; missing values are null."""
    tables = {title: _records(table) for title, table in view.tables.items()}
    return json.dumps({"facts": view.facts, "tables": tables}, indent=2, allow_nan=False)


def as_csv(view: View) -> str:
    """The main table."""
    return next(iter(view.tables.values())).to_csv(index=False, lineterminator="\n").removesuffix("\n")


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one level: `{"provenance": {"seed": 0}}` -> `{"provenance.seed": 0}`."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= flat_facts(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    present = table.astype(object).where(table.notna(), None)
    return present.to_dict(orient="records")


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
