"""Rows of one prompt (a cluster) go to different batches; all others are dealt as they always were."""

import random
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_moe.config.schema import num_safe_rows
from dist_moe.data.batches import _shuffled, plan_batches
from dist_moe.data.rows import Message, Prompt
from tests.batches import batches_of


def row(name: str, unsafe: bool, text: str | None = None, pair: str | None = None, category: str = "a") -> Prompt:
    messages = (Message("user", text or f"text of {name}"),)
    return Prompt(name, messages, f"answer {name}", unsafe, category if unsafe else None, "rows.jsonl:1", pair)


def reference(prompts: list[Prompt], batch_size: int, safe_ratio: float, seed: int) -> list[tuple[str, list[str]]]:
    """Dealing as it was when no row looked at another's prompt: each batch sorts all safe rows that are left."""
    num_safe = num_safe_rows(batch_size, safe_ratio)
    num_unsafe = batch_size - num_safe
    by_id = sorted(range(len(prompts)), key=lambda i: prompts[i].id)
    safe = _shuffled([i for i in by_id if not prompts[i].unsafe], seed, "safe")
    pools: dict[str, list[int]] = {}
    for i in by_id:
        if prompts[i].unsafe:
            pools.setdefault(prompts[i].category or "uncategorised", []).append(i)
    pools = {name: _shuffled(pools[name], seed, "unsafe", name) for name in sorted(pools)}
    dealt: dict[str, list[list[int]]] = {name: [] for name in pools}
    while takers := [name for name, pool in pools.items() if len(pool) >= num_unsafe]:
        if len(safe) < num_safe:
            break
        for name in takers[: len(safe) // num_safe]:
            unsafe = pools[name][:num_unsafe]
            pairs = {prompts[i].pair_id for i in unsafe} - {None}
            if pairs:
                safe = sorted(
                    safe,
                    key=lambda i: 0 if prompts[i].pair_id in pairs else 1 if prompts[i].pair_id is None else 2,
                )
            dealt[name].append(safe[:num_safe] + unsafe)
            del safe[:num_safe], pools[name][:num_unsafe]
    return [(name, [prompts[i].id for i in rows]) for name in dealt for rows in dealt[name]]


def planned(prompts: list[Prompt], batch_size: int, safe_ratio: float = 0.5, seed: int = 0):
    plan = plan_batches(prompts, batch_size, safe_ratio, seed)
    return [(batch.category, [prompts[i].id for i in batch.rows]) for batch in batches_of(plan)]


PAIR = st.one_of(st.none(), st.sampled_from([f"pair{i}" for i in range(12)]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PAIR, min_size=4, max_size=40),
    st.lists(st.tuples(PAIR, st.sampled_from("abc")), min_size=12, max_size=40),
    st.sampled_from([(2, 0.5), (4, 0.5), (4, 0.25), (6, 0.66)]),
    st.integers(0, 5),
)
def test_clusters_of_one_row_are_dealt_as_before(safe, unsafe, shape, seed) -> None:
    prompts = [row(f"s{i:03}", False, pair=pair) for i, pair in enumerate(safe)]
    prompts += [row(f"u{i:03}", True, pair=pair, category=name) for i, (pair, name) in enumerate(unsafe)]
    assert planned(prompts, *shape, seed) == reference(prompts, *shape, seed)


def test_batch_ids_without_clusters_are_pinned() -> None:
    """Masks are stored under batch ids: a changed draw makes old stores useless and shows here."""
    prompts = [row(f"s{i:03}", False, pair=f"p{i}" if i % 3 else None) for i in range(40)]
    prompts += [row(f"u{i:03}", True, pair=f"p{i}" if i % 4 else None, category="ab"[i % 2]) for i in range(40)]
    assert list(plan_batches(prompts, 16, 0.5, 7).index.ids) == [
        "2a98c475e20accf3",
        "6a822c5fe18bd57f",
        "95f783c27f025366",
        "3f95e25f56a3c24b",
    ]


def most_alike(prompts: list[Prompt], batch_size: int, **settings) -> list[int]:
    """For each batch, the largest number of its rows that are of one prompt."""
    plan = plan_batches(prompts, batch_size, 0.5, settings.get("seed", 0))
    return [max(Counter(prompts[i].question for i in batch.rows).values()) for batch in batches_of(plan)]


def answers(sizes: list[int], unsafe: bool, prefix: str) -> list[Prompt]:
    """As many rows of each prompt as `sizes` says."""
    return [
        row(f"{prefix}{number:03}-{i}", unsafe, text=f"{prefix} {number}")
        for number, size in enumerate(sizes)
        for i in range(size)
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=10, max_size=60), st.integers(0, 5), st.sampled_from([2, 4, 8]))
def test_clusters_are_spread_over_all_batches(sizes, seed, half) -> None:
    """Of one arm: never two rows where each prompt has at most one a batch, else at most its share of the batches."""
    prompts = answers([1] * sum(sizes), False, "s") + answers(sizes, True, "u")
    batches = sum(sizes) // half
    if not batches:
        return
    assert max(most_alike(prompts, 2 * half, seed=seed)) <= max(1, -(-max(sizes) // batches))


@pytest.mark.parametrize("seed", range(5))
def test_clusters_of_both_arms_are_spread_too(seed) -> None:
    """Ten questions with five safe and five unsafe answers each, over 25 batches of two and two."""
    safe, unsafe = (
        [row(f"{arm}{q}{i}", arm == "u", text=f"q{q}") for q in range(10) for i in range(5)] for arm in "su"
    )
    assert set(most_alike([*safe, *unsafe], 4, seed=seed)) == {1}


def test_a_prompt_with_more_rows_than_batches_is_shared_evenly() -> None:
    """Eight rows of one prompt and eight others, over four batches of four: two in each."""
    prompts = answers([1] * 16, False, "s") + answers([8] + [1] * 8, True, "u")
    plan = plan_batches(prompts, 8, 0.5, 0)
    assert [sum(prompts[i].question == prompts[16].question for i in batch.rows) for batch in batches_of(plan)] == [
        2
    ] * 4


def test_white_space_makes_no_other_prompt() -> None:
    one, *others = (
        row("s", False, text).question for text in ("two words", " two words\n", "two\n\n  words", "twowords")
    )
    assert [other == one for other in others] == [True, True, False]


def test_of_clusters_that_are_left_over_the_repeats_are() -> None:
    """Eight rows of one prompt and seven others for one batch of eight unsafe rows: all eight prompts are in it."""
    prompts = answers([1] * 8, False, "s") + answers([8] + [1] * 7, True, "u")
    assert most_alike(prompts, 16) == [1]


def test_clusters_are_dealt_alike_whatever_the_order_of_the_rows() -> None:
    prompts = answers([3, 1, 2] * 9, False, "s") + answers([1, 4, 2] * 9, True, "u")
    prompts = [replace(one, pair_id=one.id[-5:]) if one.id[1:4] < "009" else one for one in prompts]
    assert planned(prompts, 8) == planned(random.Random(1).sample(prompts, len(prompts)), 8)


def test_partners_come_first_among_clusters_too() -> None:
    prompts = answers([2] * 20, False, "s") + answers([2] * 20, True, "u")
    prompts = [replace(one, pair_id=one.id[1:]) for one in prompts]
    for _, names in planned(prompts, 8):
        assert {name[1:] for name in names[:4]} == {name[1:] for name in names[4:]}
        assert len({name[1:4] for name in names}) == 4


@pytest.mark.parametrize("kind", ["pairs", "one pair", "large pairs", "clusters", "one cluster"])
def test_dealing_clusters_and_pairs_takes_time_in_proportion(kind) -> None:
    """Four times the rows take about four times as long; it was sixteen times with pairs, and forty with large ones."""

    def seconds(number: int) -> float:
        texts = {"clusters": lambda i: f"q{i // 8}", "one cluster": lambda i: "q"}.get(kind)
        pairs = {"pairs": str, "one pair": lambda i: "p", "large pairs": lambda i: f"p{i % 50}"}.get(
            kind, lambda i: None
        )
        prompts = [
            row(f"{arm}{i:06}", arm == "u", text=texts and arm + texts(i), pair=pairs(i))
            for arm in "su"
            for i in range(number)
        ]
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            plan_batches(prompts, 16, 0.5, 0)
            best = min(best, time.process_time() - start)
        return best

    times = [seconds(number) for number in (2000, 8000)]
    assert all(later < 9 * earlier for earlier, later in pairwise(times)), times
