"""What a store says of its arms: prompts in both, clusters that are all of an arm, lengths that differ."""

import dataclasses

import numpy as np
import pytest

from dist_moe.report.views import summary
from dist_moe.store import Counts, MaskStore
from dist_moe.store.facts import arm_facts
from tests.unit.store.example import example_contents, tiled_contents, write_contents, write_counts

CLUSTERS, PAIRS = np.array([9, 8, 7, 9, 6, 5], np.uint64), np.array([1, 1, 0, 0, 2, 2], np.uint64)


def with_kin(contents, clusters=CLUSTERS, pairs=PAIRS, **fields):
    return contents.changed(cluster_P=clusters, pair_P=pairs, **fields)


def test_clusters_and_pairs_are_stored_and_read_back(tmp_path):
    store = Counts.open(write_counts(tmp_path / "a.zarr", with_kin(example_contents(), template_P=np.arange(6))))
    kinship = store.index.kinship
    assert kinship.cluster_P.tolist() == CLUSTERS.tolist()
    assert kinship.pair_P.tolist() == PAIRS.tolist()
    assert kinship.batch_P.tolist() == [0, 0, 1, 1, 2, 2]
    assert store.template_tokens.tolist() == list(range(6))
    store.check()


def test_a_store_that_does_not_know_its_clusters_says_nothing_of_prompts(tmp_path):
    store = Counts.open(write_counts(tmp_path / "a.zarr", example_contents()))
    assert (store.index.is_kinship_known, store.template_tokens) == (False, None)
    assert "prompts" not in store.attributes["arms"]
    assert store.warnings == ()


def test_prompts_in_both_arms_and_arms_of_one_prompt_are_counted(tmp_path):
    masks = MaskStore.open(write_contents(tmp_path / "a.zarr", with_kin(example_contents())))
    store = masks.counts
    arms = store.attributes["arms"]
    assert (arms["prompts"], arms["prompts_in_both_arms"], arms["rows_of_prompts_in_both_arms"]) == (5, 1, 2)
    assert arms["batches_with_one_prompt_in_an_arm"] == 3
    both, single = store.warnings
    assert both.startswith("1 of 5 prompts have both safe and unsafe rows (2 rows)")
    assert single.startswith("WARNING: in 3 of 3 batches, all safe or all unsafe rows have the same prompt")
    facts = summary(masks).facts
    assert facts["arms"] == arms
    assert facts["warnings"] == list(store.warnings)


def facts_of(plan, tokens_P):
    return arm_facts(plan.index, tokens_P, plan.template_P, seed=0)


def lengths(unsafe_length, copies=20, **changes):
    """Batches of one safe prompt of ten tokens or a few more, and an unsafe one; facts and warnings."""
    contents = tiled_contents(copies)
    unsafe_P = contents.plan.index.unsafe_P
    tokens_P = np.where(unsafe_P, unsafe_length, 10) + np.random.default_rng(0).integers(0, 3, len(unsafe_P))
    plan = dataclasses.replace(contents.counts_plan, **changes)
    return plan, facts_of(plan, tokens_P), tokens_P


def test_arms_that_differ_in_length_are_said(tmp_path):
    contents = tiled_contents(20)
    tokens_P = np.where(contents.plan.index.unsafe_P, 60, 20)
    store = Counts.open(write_counts(tmp_path / "a.zarr", contents.changed(tokens_P=tokens_P)))
    found = store.attributes["arms"]["tokens"]
    assert (found["safe"], found["unsafe"], found["p"], found["batches"]) == (20, 60, 0.001, [])
    (line,) = store.warnings
    assert line == (
        "WARNING: unsafe and safe prompts differ in the number of counted tokens: 60.0 against 20.0, p = 0.001 "
        "with permuted labels (level 0.05). Experts may differ for this reason alone: match the prompts' lengths, or "
        "count only the text of the messages (analysis.tokens: content)"
    )


def test_arms_of_equal_length_are_not():
    _, facts, _ = lengths(10)
    assert facts["tokens"]["p"] > 0.05
    assert facts["tokens"]["batches"] == []


def test_lengths_are_compared_by_clusters():
    """Two long questions against two short ones, with ten answers each: that happens by chance."""
    plan, _, _ = lengths(10)
    clusters = np.where(plan.index.unsafe_P, 0, 2) + np.arange(len(plan.index.unsafe_P)) // 2 % 2
    index = dataclasses.replace(
        plan.index, cluster_P=clusters.astype(np.uint64), pair_P=np.zeros(len(clusters), np.uint64)
    )
    tokens_P = np.where(plan.index.unsafe_P, 20, 10)
    assert facts_of(plan, tokens_P)["tokens"]["p"] == 0.001
    assert facts_of(dataclasses.replace(plan, index=index), tokens_P)["tokens"]["p"] == pytest.approx(2 / 6)


def test_a_batch_that_differs_by_itself_is_named():
    plan, _, _ = lengths(10)
    half = np.arange(32) >= 16
    index = dataclasses.replace(
        plan.index,
        prompt_ids=tuple(map(str, range(64))),
        unsafe_P=np.tile(half, 2),
        starts_B1=np.array([0, 32, 64]),
        ids=("a", "b"),
        categories=("x", "y"),
    )
    whole = dataclasses.replace(plan, index=index)
    tokens_P = np.r_[np.where(half, 30, 10), np.full(32, 10)] + np.arange(64) % 3
    assert facts_of(whole, tokens_P)["tokens"]["batches"] == [0]


def test_a_share_of_template_that_differs_is_said():
    plan, _, tokens_P = lengths(10)
    plan = dataclasses.replace(plan, template_P=np.where(plan.index.unsafe_P, 2, 8))
    share = facts_of(plan, tokens_P)["template_share"]
    assert share["p"] == 0.001
    safe = plan.index.unsafe_P == 0
    assert share["safe"] == pytest.approx(8 * safe.sum() / tokens_P[safe].sum())
