"""Dealing rows into batches: fair, disjoint, and the same from the same rows whatever their order."""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_moe.data.batches import epoch_order, even_parts, micro_batches, plan_batches, token_budget
from dist_moe.data.rows import Message, Prompt
from dist_moe.errors import UserError
from tests.batches import batches_of


def prompt(name: str, unsafe: bool, category: str | None = None) -> Prompt:
    return Prompt(name, (Message("user", f"text of {name}"),), "r", unsafe, category, "rows.jsonl:1")


def rows(num_safe: int, **num_unsafe: int) -> list[Prompt]:
    """`num_safe` safe prompts, and as many unsafe ones of each category as given."""
    safe = [prompt(f"s{i:03}", unsafe=False, category="ignored") for i in range(num_safe)]
    return safe + [
        prompt(f"{name}{i:03}", unsafe=True, category=None if name == "none" else name)
        for name, count in num_unsafe.items()
        for i in range(count)
    ]


def by_name(prompts: list[Prompt], **settings: int) -> list[tuple[str, str, list[str]]]:
    plan = plan_batches(prompts, settings.get("batch_size", 4), 0.5, settings.get("seed", 0))
    return [(batch.id, batch.category, [prompts[i].id for i in batch.rows]) for batch in batches_of(plan)]


def test_batches_are_full_disjoint_and_of_one_category() -> None:
    prompts = rows(40, hacking=19, fraud=17, none=8)
    plan = plan_batches(prompts, batch_size=16, safe_ratio=0.5, seed=3)
    assert [batch.category for batch in batches_of(plan)] == ["fraud", "fraud", "hacking", "hacking", "uncategorised"]
    for batch in batches_of(plan):
        assert len(batch.rows) == 16
        assert [prompts[i].unsafe for i in batch.rows] == [False] * 8 + [True] * 8
        assert {prompts[i].category or "uncategorised" for i in batch.rows[8:]} == {batch.category}
    used = Counter(i for batch in batches_of(plan) for i in batch.rows)
    assert max(used.values()) == 1
    assert plan.left_over_safe == 0
    assert plan.left_over_unsafe == {"fraud": 1, "hacking": 3}


def test_batches_are_sorted_by_category_whatever_the_ids() -> None:
    names = {"a": "zoo", "b": "hacking", "c": "fraud"}
    prompts = [replace(row, category=names.get(row.id[0])) for row in rows(12, a=4, b=4, c=4)]
    plan = plan_batches(prompts, batch_size=4, safe_ratio=0.5, seed=0)
    assert [batch.category for batch in batches_of(plan)] == ["fraud", "fraud", "hacking", "hacking", "zoo", "zoo"]


@pytest.mark.parametrize(("safe_ratio", "num_safe"), [(0.25, 2), (0.5, 4), (0.75, 6)])
def test_safe_ratio(safe_ratio: float, num_safe: int) -> None:
    prompts = rows(12, a=12)
    for batch in batches_of(plan_batches(prompts, batch_size=8, safe_ratio=safe_ratio, seed=0)):
        assert [prompts[i].unsafe for i in batch.rows] == [False] * num_safe + [True] * (8 - num_safe)


def test_when_safe_rows_run_short_every_category_keeps_its_share() -> None:
    plan = plan_batches(rows(10, a=20, b=20, c=2, d=20), batch_size=4, safe_ratio=0.5, seed=0)
    assert Counter(plan.index.categories) == {"a": 2, "b": 1, "c": 1, "d": 1}
    assert plan.left_over_unsafe == {"a": 16, "b": 18, "d": 18}
    # 22 batches' worth of safe rows: c is used up after one round, the others share the rest
    plan = plan_batches(rows(14, a=20, b=20, c=2, d=20), batch_size=4, safe_ratio=0.5, seed=0)
    assert Counter(plan.index.categories) == {"a": 2, "b": 2, "c": 1, "d": 2}


@given(st.integers(1, 60), st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=1), st.integers(0, 9))
def test_as_many_batches_as_the_rows_allow(num_safe: int, num_unsafe: dict[str, int], seed: int) -> None:
    possible = {name: count // 2 for name, count in num_unsafe.items()}
    expected = min(num_safe // 2, sum(possible.values()))
    prompts = rows(num_safe, **num_unsafe)
    if expected == 0:
        with pytest.raises(UserError, match="too few rows"):
            plan_batches(prompts, 4, 0.5, seed)
        return
    plan = plan_batches(prompts, 4, 0.5, seed)
    counts = Counter(plan.index.categories)
    assert len(plan.index) == expected
    assert plan.left_over_safe == num_safe - 2 * expected
    assert all(plan.left_over_unsafe.get(name, 0) == count - 2 * counts[name] for name, count in num_unsafe.items())
    short = [counts[name] for name in possible if counts[name] < possible[name]]
    assert all(counts[name] <= min(short) + 1 for name in possible if short)


def test_order_of_the_rows_changes_nothing() -> None:
    prompts = rows(30, hacking=20, fraud=21)
    shuffled = random.Random(1).sample(prompts, len(prompts))
    assert by_name(prompts) == by_name(shuffled)


def test_seed_changes_the_batches() -> None:
    prompts = rows(30, hacking=20, fraud=21)
    assert {batch[0] for batch in by_name(prompts, seed=0)}.isdisjoint(batch[0] for batch in by_name(prompts, seed=1))


def test_one_more_category_leaves_the_shuffles_of_the_others() -> None:
    def unsafe(prompts: list[Prompt]) -> list[list[str]]:
        return [names[2:] for _, category, names in by_name(prompts) if category == "hacking"]

    assert unsafe(rows(60, hacking=20)) == unsafe(rows(60, hacking=20, fraud=21))


def test_partners_are_in_one_batch() -> None:
    prompts = [
        replace(row, pair_id=row.id[-3:] if row.id[-3:] < "016" else None) for row in rows(48, fraud=16, hacking=16)
    ]
    unsafe = {f"fraud{i:03}" for i in range(8)} | {f"hacking{i:03}" for i in range(8, 16)}
    prompts = [replace(row, pair_id=None) if row.unsafe and row.id not in unsafe else row for row in prompts]
    for _, _, names in by_name(prompts, batch_size=16):
        for name in set(names) & unsafe:
            assert f"s{name[-3:]}" in names


def test_rows_are_shuffled() -> None:
    prompts = rows(100, a=100)
    names = [name for _, _, names in by_name(prompts, batch_size=20) for name in names]
    assert names != sorted(names)
    safe, unsafe = ([int(name[1:]) for name in names if name[0] == kind] for kind in "sa")
    assert sorted(safe) == sorted(unsafe) == list(range(100))
    assert safe != unsafe  # each kind has its own stream


def test_id_is_a_hash_of_the_rows_and_not_of_their_places() -> None:
    prompts = rows(8, a=8)
    for batch in batches_of(plan_batches(prompts, 8, 0.5, 0)):
        members = sorted([prompts[i].id, prompts[i].content] for i in batch.rows)
        assert batch.id == sha256(json.dumps(members).encode()).hexdigest()[:16]
    assert len(set(plan_batches(prompts, 8, 0.5, 0).index.ids)) == 2


def test_pinned_batches() -> None:
    """Masks are stored under batch ids: a changed draw, ours or numpy's, makes old stores useless and shows here."""
    assert by_name(rows(4, a=4)) == [
        ("f130f987cc2b9fa0", "a", ["s001", "s002", "a000", "a002"]),
        ("674fb7adbaee6760", "a", ["s000", "s003", "a003", "a001"]),
    ]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            rows(7, a=9),
            "needs 8 safe and 8 unsafe rows of one category, there are 7 safe and at most 9 unsafe ones (a)",
        ),
        (rows(9, a=6, b=7), "there are 9 safe and at most 7 unsafe ones (b); add rows or lower batches.batch_size"),
        (rows(9), "there are 9 safe and at most 0 unsafe ones; add rows"),
        ([], "there are 0 safe and at most 0 unsafe ones"),
    ],
)
def test_too_few_rows(prompts: list[Prompt], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_batches(prompts, 16, 0.5, 0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("num_rows", "size", "parts"),
    [(5, 2, [[0, 1], [2, 3], [4]]), (4, 2, [[0, 1], [2, 3]]), (2, 8, [[0, 1]]), (0, 2, [])],
)
def test_micro_batches(num_rows: int, size: int, parts: list[list[int]]) -> None:
    assert [list(part) for part in micro_batches(range(num_rows), size)] == parts


def test_reading_and_dealing_load_no_torch() -> None:
    code = "import sys, dist_moe.data.batches; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_epoch_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    np.testing.assert_array_equal(epoch_order(50, 1, 1), orders[3])


def test_token_budget_by_hand():
    assert token_budget([5, 20, 5, 7, 1], 15) == [[1], [3, 0], [2, 4]]
    assert token_budget([], 15) == []
    assert token_budget([5, 20, 5, 7, 1], 15, most_rows=1) == [[1], [3], [0], [2], [4]]


def padded_size(lengths: list[int]) -> int:
    return len(lengths) * max(lengths, default=0)


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 4), st.integers(0, 3))
def test_even_parts_are_the_best_of_all_cuts(lengths: list[int], num_parts: int, spare: int) -> None:
    most_rows = max(-(-len(lengths) // num_parts) + spare, 1)
    parts = even_parts(lengths, num_parts, most_rows)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert len(parts) <= num_parts
    assert all(len(part) <= most_rows for part in parts)
    ordered = sorted(lengths, reverse=True)
    cuts = [
        [ordered[start:stop] for start, stop in pairwise([0, *places, len(ordered)])]
        for places in combinations_with_replacement(range(len(ordered) + 1), num_parts - 1)
    ]
    allowed = [cut for cut in cuts if all(len(part) <= most_rows for part in cut)]
    best = min(max(map(padded_size, cut)) for cut in allowed)
    assert max((padded_size([lengths[row] for row in part]) for part in parts), default=0) == best


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_token_budget_keeps_to_the_budget_and_to_every_row(budget):
    lengths = np.random.default_rng(1).integers(1, 60, 50).tolist()
    parts = token_budget(lengths, budget)
    assert sorted(row for part in parts for row in part) == list(range(50))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= budget
    if budget == 100:
        assert len(parts) < 25
