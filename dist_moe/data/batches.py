"""Puts prompts into batches of safe and unsafe rows, orders batches in an epoch, and groups rows of like length.

Everything follows from the seed and the ids of the rows; the order of rows in files does not matter. Each random draw
has a generator of its own, so that adding a category does not change the shuffles of the others.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import TypeVar

import numpy as np

from dist_moe.config.schema import num_safe_rows
from dist_moe.data.dealing import Deck, SafeDeck, separate
from dist_moe.data.index import BatchIndex
from dist_moe.data.rows import Prompt
from dist_moe.errors import UserError
from dist_moe.stats.design import Kinship

T = TypeVar("T")

UNCATEGORISED = "uncategorised"


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches, sorted by category, with the safe rows of each first, and the rows that are in none."""

    index: BatchIndex
    taken_P: tuple[int, ...]
    """Index into the list of all prompts, for each prompt of `index`."""
    left_over_safe: int
    left_over_unsafe: dict[str, int]
    """Number of unused unsafe rows by category."""


def plan_batches(prompts: Sequence[Prompt], batch_size: int, safe_ratio: float, seed: int) -> BatchPlan:
    """Put prompts into batches of one unsafe category each. No prompt is in two batches.

    Safe rows may be of any category; the partners (`pair_id`) of a batch's unsafe rows are taken first. Rows of one
    prompt go to different batches as far as possible. Categories take turns, so that if safe rows run out, every
    category loses its last batches, and no category loses all.

    Raises:
        UserError: there are too few rows for a single batch.
    """
    num_safe = num_safe_rows(batch_size, safe_ratio)
    num_unsafe = batch_size - num_safe
    by_id = sorted(range(len(prompts)), key=lambda i: prompts[i].id)
    safe = _shuffled([i for i in by_id if not prompts[i].unsafe], seed, "safe")
    pools: dict[str, list[int]] = {}
    for i in by_id:
        if prompts[i].unsafe:
            pools.setdefault(prompts[i].category or UNCATEGORISED, []).append(i)
    pools = {name: _shuffled(pools[name], seed, "unsafe", name) for name in sorted(pools)}

    turns = _turns({name: len(pool) // num_unsafe for name, pool in pools.items()}, len(safe) // num_safe)
    prompt_of, pair_of = [prompt.question for prompt in prompts], [prompt.pair_id for prompt in prompts]
    safe_deck = SafeDeck(safe, prompt_of, pair_of)
    decks = {name: Deck(pool, prompt_of) for name, pool in pools.items()}
    left = Counter(turns)
    dealt: list[list[int]] = []
    for turn, name in enumerate(turns):
        unsafe = decks[name].deal(num_unsafe, left[name], frozenset())
        present = {prompt_of[i] for i in unsafe}
        pairs = {pair for i in unsafe if (pair := pair_of[i]) is not None}
        dealt.append(safe_deck.deal(num_safe, len(turns) - turn, present, pairs) + unsafe)
        left[name] -= 1
    separate(dealt, num_safe, prompt_of, pair_of)

    if not dealt:
        name, most = max(((name, len(pool)) for name, pool in pools.items()), key=lambda item: item[1], default=("", 0))
        raise UserError(
            f"too few rows for one batch: it needs {num_safe} safe and {num_unsafe} unsafe rows of one category, there "
            f"are {len(safe)} safe and at most {most} unsafe ones{f' ({name})' if name else ''}; add rows or lower "
            "batches.batch_size"
        )
    batches = sorted(zip(turns, dealt, strict=True), key=lambda each: each[0])
    taken_P = tuple(row for _, rows in batches for row in rows)
    left_over = {name: len(deck) for name, deck in decks.items() if deck}
    index = _index([prompts[row] for row in taken_P], [prompt_of[row] for row in taken_P], batches)
    return BatchPlan(index, taken_P, len(safe_deck), left_over)


def _index(prompts: Sequence[Prompt], questions: Sequence[str], batches: Sequence[tuple[str, list[int]]]) -> BatchIndex:
    """The BatchIndex of batches, each given as (category, rows); `prompts` are those of all batches in order, and
    `questions` theirs."""
    sizes = [len(rows) for _, rows in batches]
    batch_of_P = np.repeat(np.arange(len(sizes)), sizes)
    starts = [0, *np.cumsum(sizes).tolist()]
    return BatchIndex.of_sizes(
        sizes,
        ids=[_batch_id(prompts[start:stop]) for start, stop in pairwise(starts)],
        categories=[category for category, _ in batches],
        prompt_ids=[prompt.id for prompt in prompts],
        unsafe=[prompt.unsafe for prompt in prompts],
        kinship=Kinship.of_texts(questions, [p.pair_id for p in prompts], batch_of_P),
    )


def _turns(most: dict[str, int], total: int) -> list[str]:
    """The categories in turn, each at most as often as `most` says, `total` in all."""
    turns: list[str] = []
    for number in range(max(most.values(), default=0)):
        turns += [name for name, batches in most.items() if batches > number]
    return turns[:total]


def epoch_order(num_batches: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the batches in an epoch: int64 [num_batches], a permutation, the same on every rank."""
    return _generator(seed, "epoch", epoch).permutation(num_batches)


def micro_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split items into consecutive parts of `size`; the last one may be smaller. No items: no parts."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def token_budget(
    lengths: Sequence[int], budget: int, most_rows: int | None = None, *, packed: bool = False
) -> list[list[int]]:
    """Group rows into forward passes, longest first, each of at most `budget` positions, and of at most `most_rows`
    rows. Positions are rows times longest, as rows are padded or, `packed`, all rows' tokens.

    A row that is longer than the budget has a pass to itself. The result depends on the lengths alone, so it is the
    same for any number of ranks. Returns indices into `lengths`.
    """
    most_rows = len(lengths) if most_rows is None else most_rows
    parts: list[list[int]] = []
    positions = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        positions += lengths[row] if packed or not parts else lengths[parts[-1][0]]
        if parts and len(parts[-1]) < most_rows and positions <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
            positions = lengths[row]
    return parts


def even_parts(lengths: Sequence[int], num_parts: int, most_rows: int, *, packed: bool = False) -> list[list[int]]:
    """Group rows of like length, longest first, into at most `num_parts` forward passes of at most `most_rows` rows,
    such that the largest has as few positions as possible. Returns indices into `lengths`."""
    assert len(lengths) <= num_parts * most_rows, "more rows than fit"

    def is_enough(budget: int) -> bool:
        return len(token_budget(lengths, budget, most_rows, packed=packed)) <= num_parts

    largest = len(lengths) * max(lengths, default=0)
    budget = bisect_left(range(largest), True, key=is_enough)  # more parts never need a larger budget
    return token_budget(lengths, budget, most_rows, packed=packed)


def _batch_id(prompts: Sequence[Prompt]) -> str:
    rows = sorted([prompt.id, prompt.content] for prompt in prompts)
    return sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _shuffled(indices: list[int], *key: int | str) -> list[int]:
    return [indices[i] for i in _generator(*key).permutation(len(indices))]


def _generator(*key: int | str) -> np.random.Generator:
    """A separate random generator for each key (seed, purpose, ...)."""
    return np.random.default_rng(int.from_bytes(sha256(json.dumps(key).encode()).digest()))
