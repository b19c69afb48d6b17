"""What a store says of its arms: prompts in both, clusters that are all of an arm, lengths that differ."""

import dataclasses

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.report.views import summary
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship
from dist_moe.store import MaskStore, write_store
from dist_moe.store.facts import arm_facts
from dist_moe.store.repair import repair
from tests.unit.store.example import example_contents, tiled_contents

CLUSTERS, PAIRS = np.array([9, 8, 7, 9, 6, 5], np.uint64), np.array([1, 1, 0, 0, 2, 2], np.uint64)


def with_kin(contents, clusters=CLUSTERS, pairs=PAIRS, **fields):
    return contents.changed(kinship=Kinship(clusters, pairs, contents.plan.batch_of_P), **fields)


def test_clusters_and_pairs_are_stored_and_read_back(tmp_path):
    write_store(tmp_path / "a.zarr", *with_kin(example_contents(), template_P=np.arange(6)))
    store = MaskStore.open(tmp_path / "a.zarr")
    assert store.kinship.cluster_P.tolist() == CLUSTERS.tolist()
    assert store.kinship.pair_P.tolist() == PAIRS.tolist()
    assert store.kinship.batch_P.tolist() == [0, 0, 1, 1, 2, 2]
    assert store.template_tokens.tolist() == list(range(6))
    store.check()


def test_a_store_that_does_not_know_its_clusters_says_nothing_of_prompts(tmp_path):
    write_store(tmp_path / "a.zarr", *example_contents())
    store = MaskStore.open(tmp_path / "a.zarr")
    assert (store.kinship, store.template_tokens) == (None, None)
    assert "prompts" not in store.attributes["arms"]
    assert store.warnings == ()


def test_prompts_in_both_arms_and_arms_of_one_prompt_are_counted(tmp_path):
    write_store(tmp_path / "a.zarr", *with_kin(example_contents()))
    store = MaskStore.open(tmp_path / "a.zarr")
    arms = store.attributes["arms"]
    assert (arms["prompts"], arms["prompts_in_both_arms"], arms["rows_of_prompts_in_both_arms"]) == (5, 1, 2)
    assert arms["batches_with_one_prompt_in_an_arm"] == 3
    both, single = store.warnings
    assert both.startswith("1 of 5 prompts are in both arms (2 rows)")
    assert single.startswith("WARNING: in 3 of 3 batches all rows of an arm have the same prompt")
    facts = summary(store).facts
    assert facts["arms"] == arms
    assert facts["warnings"] == list(store.warnings)


def lengths(unsafe_length, copies=20, **changes):
    """Batches of one safe prompt of ten tokens or a few more, and an unsafe one; facts and warnings."""
    contents = tiled_contents(copies)
    unsafe_P = contents.plan.unsafe_P
    tokens_P = np.where(unsafe_P, unsafe_length, 10) + np.random.default_rng(0).integers(0, 3, len(unsafe_P))
    plan = dataclasses.replace(contents.plan, **changes)
    return plan, arm_facts(plan, tokens_P), tokens_P


def test_arms_that_differ_in_length_are_said(tmp_path):
    contents = tiled_contents(20)
    counts = contents.results.counts
    tokens_P = np.where(contents.plan.unsafe_P, 60, 20)
    longer = RoutingCounts(counts.counts_PLE, tokens_P, counts.experts_per_token, counts.tables)
    write_store(tmp_path / "a.zarr", contents.plan, dataclasses.replace(contents.results, counts=longer))
    store = MaskStore.open(tmp_path / "a.zarr")
    found = store.attributes["arms"]["tokens"]
    assert (found["safe"], found["unsafe"], found["p"], found["batches"]) == (20, 60, 0.001, [])
    (line,) = store.warnings
    assert line == (
        "WARNING: the arms differ in the number of counted tokens: 60.0 of unsafe and 20.0 of safe prompts, p = 0.001 "
        "if labels mean nothing (level 0.05). Experts may differ by that alone: match the prompts' lengths, or count "
        "the prompts' own text only (analysis.tokens: content)"
    )


def test_arms_of_equal_length_are_not():
    _, facts, _ = lengths(10)
    assert facts["tokens"]["p"] > 0.05
    assert facts["tokens"]["batches"] == []


def test_lengths_are_compared_by_clusters():
    """Two long questions against two short ones, with ten answers each: that happens by chance."""
    plan, _, _ = lengths(10)
    clusters = np.where(plan.unsafe_P, 0, 2) + np.arange(len(plan.unsafe_P)) // 2 % 2
    kinship = Kinship(clusters.astype(np.uint64), np.zeros(len(clusters), np.uint64), plan.batch_of_P)
    tokens_P = np.where(plan.unsafe_P, 20, 10)
    assert arm_facts(plan, tokens_P)["tokens"]["p"] == 0.001
    assert arm_facts(dataclasses.replace(plan, kinship=kinship), tokens_P)["tokens"]["p"] == pytest.approx(2 / 6)


def test_a_batch_that_differs_by_itself_is_named():
    plan, _, _ = lengths(10)
    half = np.arange(32) >= 16
    whole = dataclasses.replace(
        plan,
        prompt_ids=tuple(map(str, range(64))),
        unsafe_P=np.tile(half, 2),
        batch_of_P=np.repeat([0, 1], 32),
        batch_ids=("a", "b"),
        categories=("x", "y"),
    )
    tokens_P = np.r_[np.where(half, 30, 10), np.full(32, 10)] + np.arange(64) % 3
    assert arm_facts(whole, tokens_P)["tokens"]["batches"] == [0]


def test_a_share_of_template_that_differs_is_said():
    plan, _, tokens_P = lengths(10)
    plan = dataclasses.replace(plan, template_P=np.where(plan.unsafe_P, 2, 8))
    share = arm_facts(plan, tokens_P)["template_share"]
    assert share["p"] == 0.001
    safe = plan.unsafe_P == 0
    assert share["safe"] == pytest.approx(8 * safe.sum() / tokens_P[safe].sum())


def test_clusters_survive_a_repair_and_cannot_be_made_anew(tmp_path):
    path = tmp_path / "a.zarr"
    write_store(path, *with_kin(example_contents(), template_P=np.arange(6)))
    (path / "masks" / "c" / "0" / "0" / "0").unlink()
    (path / "prompt_clusters" / "zarr.json").unlink()
    assert repair(MaskStore.open(path), tmp_path / "new.zarr").exact
    (tmp_path / "new.zarr" / "prompt_clusters" / "c" / "0").unlink()
    with pytest.raises(UserError, match="prompt_clusters cannot be computed from the rest"):
        repair(MaskStore.open(tmp_path / "new.zarr"), tmp_path / "other.zarr")
