"""Groups of evaluated rows. Rows of different kinds, such as trained and held out, are never in one group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dist_moe.evaluation.measures import Resampling, measures_of
from dist_moe.evaluation.rows import KINDS, EvaluatedRow, Kind
from dist_moe.stats.measured import Group

By = Literal["all", "batch", "category", "file"]
BYS: tuple[By, ...] = ("all", "batch", "category", "file")


def groups_of(rows: Sequence[EvaluatedRow], judges: Sequence[str], resampling: Resampling) -> list[Group]:
    """Every group of every kind that there is a row of; batches of trained rows only, the others have none."""
    found = []
    for kind in KINDS:
        of_kind = [row for row in rows if row.kind == kind]
        for by in BYS:
            parts: dict[str, list[EvaluatedRow]] = {}
            for row in of_kind:
                if (name := _name(row, by)) is not None:
                    parts.setdefault(name, []).append(row)
            names = sorted(parts, key=int if by == "batch" else str)
            found += [_group(kind, by, name, parts[name], judges, resampling) for name in names]
    return found


def _name(row: EvaluatedRow, by: By) -> str | None:
    if by == "batch":
        return None if row.batch is None else str(row.batch)
    return {"all": "all", "category": row.category, "file": row.file}[by]


def _group(
    kind: Kind, by: By, name: str, rows: Sequence[EvaluatedRow], judges: Sequence[str], resampling: Resampling
) -> Group:
    num_unsafe = sum(row.is_unsafe for row in rows)
    return Group(
        kind=kind,
        by=by,
        name=name,
        num_safe=len(rows) - num_unsafe,
        num_unsafe=num_unsafe,
        num_prompts=len({row.prompt for row in rows}),
        measures=measures_of(rows, judges, resampling, f"{kind}/{by}/{name}"),
    )
