"""Splits rows into a part to train on and a part to choose settings by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from dist_moe.data.rows import Prompt


@dataclass(frozen=True, slots=True)
class Divided:
    """Two parts that have no prompt and no pair in common."""

    fitted: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]


def divide(prompts: Sequence[Prompt], share: float, seed: int) -> Divided:
    """About `share` of the rows of each category, and of the safe ones, for validation; at least one of each.

    Rows of one prompt, and rows that share a `pair_id`, are on the same side. Which ones follows from `seed` and the
    ids of the rows, so the order of the rows does not matter.
    """
    strata: dict[str | None, list[list[Prompt]]] = {}
    for related in _related(sorted(prompts, key=lambda prompt: prompt.id)):
        strata.setdefault(_stratum(related), []).append(related)
    chosen = set()
    for groups in strata.values():
        wanted = math.ceil(share * sum(map(len, groups)))
        for related in sorted(groups, key=lambda rows: sha256(f"{seed} {rows[0].id}".encode()).digest()):
            if wanted > 0:
                chosen |= {prompt.id for prompt in related}
                wanted -= len(related)
    parts = ([p for p in prompts if p.id not in chosen], [p for p in prompts if p.id in chosen])
    return Divided(*map(tuple, parts))


def _stratum(related: Sequence[Prompt]) -> str | None:
    """The category of the first unsafe row; None: there is none."""
    return next((prompt.category or "" for prompt in related if prompt.unsafe), None)


def _related(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Rows that are joined by a prompt or a pair, directly or through others."""
    group_of: dict[tuple[str, str], list[Prompt]] = {}
    groups: dict[int, list[Prompt]] = {}  # by identity, so that none has to be looked for
    for prompt in prompts:
        keys = [("prompt", prompt.question)] + ([("pair", prompt.pair_id)] if prompt.pair_id is not None else [])
        known = {id(group): group for key in keys if (group := group_of.get(key)) is not None}
        joined = [row for group in known.values() for row in group] + [prompt]
        for identity in known:
            del groups[identity]
        groups[id(joined)] = joined
        for row in joined:
            group_of["prompt", row.question] = joined
            if row.pair_id is not None:
                group_of["pair", row.pair_id] = joined
    return [*groups.values()]
