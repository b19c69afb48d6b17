from dataclasses import fields, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from dist_moe.config.schema import AnalysisConfig
from dist_moe.rules import RULES, from_facts
from dist_moe.rules.rule import Unselected
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.evidence import Population, evidence
from dist_moe.stats.order import selected, unsafe_experts
from dist_moe.stats.overlap import jaccard_matrix
from tests.unit.rules.made import made
from tests.unit.stats.prompts import batch_of, kin, populated, slow_risk_diff

OTHER = {
    "threshold": 0.02,
    "top_k": 7,
    "alpha": 0.9,
    "correction": "family",
    "frequency": 0.4,
    "per_layer": 2,
    "top_p": 0.3,
}
RULE = {"threshold": 0.05, "top_k": 5}


def with_tables(batch):
    generator = np.random.default_rng(0)
    tables = {
        "gates": batch.counts.counts_PLE * generator.random(batch.counts.counts_PLE.shape),
        "gradients": generator.integers(0, 5, batch.counts.counts_PLE.shape).astype(np.float32),
    }
    return replace(batch, counts=replace(batch.counts, tables=tables))


def places(mask_LE):
    return sorted(map(tuple, np.argwhere(mask_LE).tolist()))


def chosen(name, batch, **parameters):
    return places(made(name, **{**RULE, **parameters}).select(batch))


def ranked(score_LE):
    """All (layer, expert), largest score first, in reading order among equals."""
    return sorted(np.ndindex(score_LE.shape), key=lambda place: (-score_LE[place], place))


def micro(batch):
    return slow_risk_diff(batch.counts, batch.unsafe_P, range(16), "micro").round(12)


def test_every_rule_and_parameter_is_a_setting():
    hints = get_type_hints(AnalysisConfig)
    assert get_args(hints["rule"]) == tuple(RULES)
    for name, rule in RULES.items():
        assert rule.name == name
        for field in fields(rule):
            assert hints[field.name] == get_type_hints(rule)[field.name]
            assert getattr(AnalysisConfig(), field.name) == getattr(rule(), field.name)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_stored_facts_of_a_rule_are_all_that_it_reads(name):
    rule = made(name, **OTHER)
    again = from_facts(rule.facts, "here")
    assert again == rule
    assert rule.facts == {"name": name, **{field.name: getattr(rule, field.name) for field in fields(rule)}}
    batches = populated([with_tables(batch_of(seed)) for seed in range(3)], made("threshold_top_k", **OTHER).select)
    assert any(rule.select(batch).any() for batch in batches)
    assert all((rule.select(batch) == again.select(batch)).all() for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_selected_is_unsafe_experts(seed):
    risk_diff_LE = np.random.default_rng(seed).integers(-3, 4, (4, 5)) / 20
    for top_k in (1, 3, 30):
        assert places(selected(risk_diff_LE, 0.05, top_k)) == sorted(unsafe_experts(risk_diff_LE, 0.05, top_k))


def test_threshold_top_k():
    batch = batch_of(0)
    diff_LE = micro(batch)
    assert chosen("threshold_top_k", batch) == sorted(place for place in ranked(diff_LE)[:5] if diff_LE[place] > 0.05)


def test_shrunk():
    batches = populated([batch_of(seed) for seed in range(4)])
    differs = 0
    for batch in batches:
        pooled_LE, between_L1 = batch.population.pooled_LE, batch.population.between_L[:, None]
        keep_LE = between_L1 / (between_L1 + batch.variance_LE)
        shrunk_LE = pooled_LE + keep_LE * (micro(batch) - pooled_LE)
        expected = sorted(place for place in ranked(shrunk_LE)[:5] if shrunk_LE[place] > 0.05)
        assert chosen("shrunk", batch) == expected
        differs += expected != chosen("threshold_top_k", batch)
    assert differs


def test_significant():
    batch = batch_of(0)
    up_LE = micro(batch) > 0
    for alpha in (0.1, 0.9):
        assert chosen("significant", batch, alpha=alpha) == places((batch.test.q_LE <= alpha) & up_LE)
        family = chosen("significant", batch, alpha=alpha, correction="family")
        assert family == places((batch.test.family_p_LE <= alpha) & up_LE)
    assert chosen("significant", batch, alpha=0.9)


def test_stable():
    batch = batch_of(0)
    frequency_LE = batch.frequency_LE(lambda diff_LE: selected(diff_LE, 0.05, 5))
    assert chosen("stable", batch, frequency=0.5) == places(frequency_LE >= 0.5) != []
    assert chosen("stable", batch, frequency=1.0) == places(frequency_LE == 1.0)


def test_budget_per_layer():
    diff_LE = micro(batch_of(0))
    expected = [place for layer in range(3) for place in [p for p in ranked(diff_LE) if p[0] == layer][:2]]
    assert chosen("budget_per_layer", batch_of(0), per_layer=2) == sorted(expected)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 1.0])
def test_esft_token_takes_the_fewest_whose_share_reaches_top_p(top_p):
    batch = batch_of(0)
    rows = np.nonzero(batch.unsafe_P)[0]
    shares = [batch.counts.counts_PLE[row] / (2 * batch.counts.tokens_P[row]) for row in rows]
    share_LE = np.mean(shares, axis=0).round(12)
    expected = []
    for layer in range(3):
        reached = 0.0
        for place in (p for p in ranked(share_LE) if p[0] == layer):
            if reached < top_p - 1e-9:
                expected.append(place)
                reached += share_LE[place]
    assert chosen("esft_token", batch, top_p=top_p) == sorted(expected)


def test_esft_gate_weighs_by_gates_relative_to_the_layer():
    batch = with_tables(batch_of(0))
    gates_PLE = batch.counts.tables["gates"]
    rows = np.nonzero(batch.unsafe_P)[0]
    mean_LE = np.mean([gates_PLE[row] / batch.counts.tokens_P[row] for row in rows], axis=0)
    expected = []
    for layer in range(3):
        reached = 0.0
        for place in (p for p in ranked(mean_LE) if p[0] == layer):
            if reached < 0.5 * mean_LE[layer].sum():
                expected.append(place)
                reached += mean_LE[place]
    assert chosen("esft_gate", batch, top_p=0.5) == sorted(expected)
    assert chosen("esft_gate", batch, top_p=0.5) != chosen("esft_token", batch, top_p=0.5)


def test_esft_token_takes_all_where_null_experts_keep_shares_below_top_p():
    batch = batch_of(0)
    fewer = RoutingCounts(batch.counts.counts_PLE // 2, batch.counts.tokens_P, 2)
    assert len(chosen("esft_token", replace(batch, counts=fewer), top_p=1.0)) == 18


def test_steermoe_takes_both_signs():
    diff_LE = micro(batch_of(0))
    assert chosen("steermoe", batch_of(0)) == sorted(ranked(np.abs(diff_LE))[:5])
    assert min(diff_LE[place] for place in chosen("steermoe", batch_of(0))) < 0


def test_gradient_takes_the_largest_means_over_unsafe_prompts_lower_places_first():
    batch = with_tables(batch_of(0))
    rows = np.nonzero(batch.unsafe_P)[0].tolist()
    mean_LE = np.zeros((3, 6))
    for place in np.ndindex(3, 6):
        mean_LE[place] = sum(int(batch.counts.tables["gradients"][(row, *place)]) for row in rows) / len(rows)
    assert len(np.unique(mean_LE)) < mean_LE.size  # there are ties
    for top_k in range(1, 19):
        assert chosen("gradient", batch, top_k=top_k) == sorted(ranked(mean_LE)[:top_k])
    safe = batch.counts.tables["gradients"] * ~batch.unsafe_P[:, None, None]
    more = replace(batch.counts, tables={"gradients": batch.counts.tables["gradients"] + 9 * safe})
    assert chosen("gradient", replace(batch, counts=more)) == chosen("gradient", batch)


def test_controls_take_as_many_as_the_threshold_does():
    batch = batch_of(0)
    number = len(chosen("threshold_top_k", batch))
    assert number > 0
    assert chosen("load", batch) == sorted(ranked(batch.counts.counts_PLE.sum(axis=0))[:number])
    assert chosen("lowest", batch) == sorted(ranked(-micro(batch))[:number])
    assert len(chosen("random", batch)) == number


def test_random_follows_from_seed_and_batch_alone():
    first = chosen("random", batch_of(0, index=0))
    assert chosen("random", batch_of(0, index=0)) == first
    assert chosen("random", batch_of(0, index=1)) != first
    assert chosen("random", batch_of(0, index=0, run_seed=1)) != first


def test_random_matched_has_all_in_common_but_the_experts():
    generator = np.random.default_rng(0)
    load_LE = generator.integers(1000, 2000, (4, 32))
    population = Population(load_LE, np.zeros((4, 32)), np.zeros(4))
    batches = [replace(batch_of(seed, run_seed=3, shape=(4, 32, 6)), population=population) for seed in range(6)]
    masks_BLE, matched_BLE = (
        np.array([made(name, threshold=0.05, top_k=20).select(batch) for batch in batches])
        for name in ("threshold_top_k", "random_matched")
    )
    assert (matched_BLE.sum(axis=2) == masks_BLE.sum(axis=2)).all()
    assert matched_BLE.any(axis=0).sum() == masks_BLE.any(axis=0).sum()
    assert (jaccard_matrix(matched_BLE) == jaccard_matrix(masks_BLE)).all()
    quartile_LE = np.argsort(np.argsort(load_LE, axis=1, kind="stable"), axis=1) // 8
    for quartile in range(4):
        number_BL = (masks_BLE & (quartile_LE == quartile)).sum(axis=2)
        assert ((matched_BLE & (quartile_LE == quartile)).sum(axis=2) == number_BL).all()
    assert 0 < (matched_BLE & masks_BLE).sum() < 0.5 * masks_BLE.sum()
    rule = made("random_matched", threshold=0.05, top_k=20)
    again, other = (np.array([rule.select(replace(batch, seed=seed)) for batch in batches]) for seed in (3, 4))
    assert (again == matched_BLE).all()
    assert (other != matched_BLE).any()


def test_random_matched_is_one_permutation_of_each_layers_quartiles_whatever_the_batch():
    # drawn layer by layer and quartile by quartile from (seed, name): masks of stores of earlier versions stay the same
    batches = populated([batch_of(seed, index=seed) for seed in range(3)])
    load_LE = sum(batch.counts.counts_PLE.sum(axis=0) for batch in batches)
    generator = np.random.default_rng([0, *b"random_matched"])
    goes_to = {}
    for layer in range(3):
        order = sorted(range(6), key=lambda expert: load_LE[layer, expert])
        for group in (order[:2], order[2:4], order[4:5], order[5:]):
            for source, target in zip(group, generator.permutation(group), strict=True):
                goes_to[layer, source] = layer, int(target)
    for batch in batches:
        expected = sorted(goes_to[place] for place in chosen("threshold_top_k", batch))
        assert chosen("random_matched", batch) == expected


def test_baselines_have_the_same_experts_for_every_batch_whatever_its_labels():
    batches = [batch_of(seed, index=seed) for seed in range(4)]
    of_each = [set(chosen("threshold_top_k", batch)) for batch in batches]
    assert len(set(map(frozenset, of_each))) == 4
    counts, unsafe = (
        np.concatenate([get(batch) for batch in batches])
        for get in (lambda batch: batch.counts.counts_PLE, lambda batch: batch.unsafe_P)
    )
    tokens_P = np.concatenate([batch.counts.tokens_P for batch in batches])
    pooled = RoutingCounts(counts, tokens_P, batches[0].counts.experts_per_token)
    pooled_LE = slow_risk_diff(pooled, unsafe, range(64), "micro")
    expected = {
        "union": sorted(set.union(*of_each)),
        "pooled": sorted([place for place in ranked(pooled_LE.round(12)) if pooled_LE[place] > 0.01][:5]),
        "every_expert": sorted(np.ndindex(3, 6)),
    }
    assert 0 < len(expected["pooled"]) < len(expected["union"]) < 18
    for batch in populated(batches, made("threshold_top_k", **RULE).select):
        for other in (batch, batch.relabelled(~batch.unsafe_P)):
            assert {
                name: chosen(name, other, threshold=0.01 if name == "pooled" else 0.05) for name in expected
            } == expected
        assert not made("pooled").stability(batch).any()


@pytest.mark.parametrize("name", ["threshold_top_k", "random", "random_matched", "load", "lowest"])
def test_no_expert_above_the_threshold_in_any_batch_is_an_error_that_names_the_largest(name):
    rule = made(name, threshold=0.05, top_k=50)
    assert rule.counted_as.none_selected(nothing(largest_risk_diff=0.0312)) == (
        "no expert in any batch has a risk_diff above analysis.threshold = 0.05: the largest is 0.0312; "
        "set analysis.threshold below that"
    )


def test_another_rule_that_selects_nothing_is_an_error():
    assert made("budget_per_layer").none_selected(nothing()) == (
        "analysis.rule = budget_per_layer selects no expert in any batch: make its parameters less strict (see "
        "docs/statistics.md), use larger batches, or choose another rule"
    )


def test_a_rule_that_selects_nothing_names_the_cause():
    """Too few prompts for a test or for half-samples, or parameters that are too strict."""
    significant, stable = made("significant", alpha=0.05), made("stable", threshold=0.05, frequency=0.8)
    some = nothing(num_batches=5, num_prompts=2, largest_risk_diff=0.4)
    assert significant.none_selected(replace(some, smallest_p_value=0.33)) == (
        "with 2 prompts of a label, no p-value in any of these batches can be below 0.33, and analysis.alpha = 0.05: "
        "use larger batches (batches.batch_size)"
    )
    for smallest in (0.05, 0.0005, None):
        said = significant.none_selected(replace(some, smallest_p_value=smallest))
        assert said.startswith("analysis.rule = significant selects no expert in any of these batches: make its")
    assert stable.none_selected(some) == (
        "no expert in any of these batches is selected in at least analysis.frequency = 0.8 of half-samples of its "
        "prompts, 2 of a label: use larger batches (batches.batch_size), or lower analysis.frequency"
    )
    assert "above analysis.threshold = 0.05: the largest is 0.03;" in stable.none_selected(
        nothing(largest_risk_diff=0.03)
    )


def nothing(**fields):
    """Batches without an expert: all of them, unless there are more."""
    given = {"num_empty": 2, "num_batches": 2, "largest_risk_diff": 0.2, "num_prompts": 8, "smallest_p_value": None}
    return Unselected(**given | fields)


def test_some_batches_may_be_empty():
    assert not made("threshold_top_k", threshold=0.99).select(batch_of(0)).any()


def test_a_prompt_whose_partner_has_no_counted_token_has_no_partner():
    batch = batch_of(0)
    tokens_P = batch.counts.tokens_P * (np.arange(16) != 9)
    counts = replace(
        batch.counts, counts_PLE=batch.counts.counts_PLE * (tokens_P > 0)[:, None, None], tokens_P=tokens_P
    )
    pair_P = np.tile([1, 2, 3, 0, 0, 0, 0, 0], 2)
    found = evidence(counts, batch.unsafe_P, kin(pair_P), batch.settings, 0, 0)
    assert found.design.units(found.unsafe_P)[2].rows_R.tolist() == [0, 8, 2, 9]


def test_prompts_without_a_counted_token_say_nothing():
    batch = batch_of(0)
    none = RoutingCounts(np.zeros((1, 3, 6), np.int64), np.zeros(1, np.int64), 2)
    counts = RoutingCounts(
        np.concatenate([none.counts_PLE, batch.counts.counts_PLE]), np.append(0, batch.counts.tokens_P), 2
    )
    more = evidence(counts, np.append(False, batch.unsafe_P), kin(np.zeros(17)), batch.settings, 0, 0)
    assert more.test.p_LE.tobytes() == batch.test.p_LE.tobytes()
