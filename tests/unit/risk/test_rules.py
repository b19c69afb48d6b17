from dataclasses import fields, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from dist_moe.config.schema import AnalysisConfig
from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.overlap import jaccard_matrix
from dist_moe.risk.rules import COUNTED_AS, RULES, matched_masks, select_masks
from dist_moe.risk.select import PARAMETERS, SelectionRule, selected, unsafe_experts
from tests.unit.risk.prompts import batch_of, slow_risk_diff

RULE = SelectionRule(threshold=0.05, top_k=5)


def with_gates(batch):
    gates_PLE = batch.counts.counts_PLE * np.random.default_rng(0).random(batch.counts.counts_PLE.shape)
    return replace(batch, counts=replace(batch.counts, tables={"gates": gates_PLE}))


def places(mask_LE):
    return sorted(map(tuple, np.argwhere(mask_LE).tolist()))


def chosen(name, batch, **parameters):
    return places(RULES[name](batch, replace(RULE, name=name, **parameters)))


def ranked(score_LE):
    """All (layer, expert), largest score first, in reading order among equals."""
    return sorted(np.ndindex(score_LE.shape), key=lambda place: (-score_LE[place], place))


def micro(batch):
    return slow_risk_diff(batch.counts, batch.unsafe_P, range(16), "micro").round(12)


def test_every_name_of_the_configuration_is_a_rule():
    names = set(get_args(get_type_hints(AnalysisConfig)["rule"]))
    assert names == RULES.keys() | {"random_matched"}
    assert names >= COUNTED_AS.keys()
    assert names == PARAMETERS.keys()


@pytest.mark.parametrize("name", sorted([*RULES, "random_matched"]))
def test_the_stored_facts_of_a_rule_are_all_that_it_reads(name):
    rule = SelectionRule(
        name=name, threshold=0.02, top_k=7, alpha=0.9, correction="family", frequency=0.4, per_layer=2, top_p=0.3
    )
    again = SelectionRule(**rule.facts)
    assert again.facts == rule.facts
    assert len(rule.facts) < len(fields(rule))
    batches = [with_gates(batch_of(seed)) for seed in range(3)]
    expected, masks = select_masks(batches, rule).masks_BLE, select_masks(batches, again).masks_BLE
    assert expected.any()
    assert (masks == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_selected_is_unsafe_experts(seed):
    risk_diff_LE = np.random.default_rng(seed).integers(-3, 4, (4, 5)) / 20
    for top_k in (1, 3, 30):
        assert places(selected(risk_diff_LE, 0.05, top_k)) == sorted(unsafe_experts(risk_diff_LE, 0.05, top_k))


def test_threshold_top_k():
    batch = batch_of(0)
    diff_LE = micro(batch)
    assert chosen("threshold_top_k", batch) == sorted(place for place in ranked(diff_LE)[:5] if diff_LE[place] > 0.05)


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
    frequency_LE = batch.stability_LE(RULE)
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
    batch = with_gates(batch_of(0))
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
    rule = replace(RULE, name="random")
    both = select_masks([batch_of(0), batch_of(0, index=1)], rule).masks_BLE
    assert places(both[0]) == first
    assert places(both[1]) == places(select_masks([batch_of(0, index=1)], rule).masks_BLE[0])


def test_random_matched_has_all_in_common_but_the_experts():
    generator = np.random.default_rng(0)
    masks_BLE = generator.random((6, 4, 32)) < 0.15
    load_LE = generator.random((4, 32))
    matched_BLE = matched_masks(masks_BLE, load_LE, seed=3)
    assert (matched_BLE.sum(axis=2) == masks_BLE.sum(axis=2)).all()
    assert matched_BLE.any(axis=0).sum() == masks_BLE.any(axis=0).sum()
    assert (jaccard_matrix(matched_BLE) == jaccard_matrix(masks_BLE)).all()
    quartile_LE = np.argsort(np.argsort(load_LE, axis=1), axis=1) // 8
    for quartile in range(4):
        number_BL = (masks_BLE & (quartile_LE == quartile)).sum(axis=2)
        assert ((matched_BLE & (quartile_LE == quartile)).sum(axis=2) == number_BL).all()
    assert (matched_BLE & masks_BLE).sum() < 0.5 * masks_BLE.sum()
    assert (matched_masks(masks_BLE, load_LE, seed=3) == matched_BLE).all()
    assert (matched_masks(masks_BLE, load_LE, seed=4) != matched_BLE).any()


def test_random_matched_of_batches():
    batches = [batch_of(seed, index=seed) for seed in range(3)]
    reference_BLE = select_masks(batches, RULE).masks_BLE
    masks_BLE = select_masks(batches, replace(RULE, name="random_matched")).masks_BLE
    assert (masks_BLE.sum(axis=2) == reference_BLE.sum(axis=2)).all()
    assert (masks_BLE != reference_BLE).any()


def test_a_rule_that_selects_nothing_is_an_error():
    with pytest.raises(UserError, match=r"analysis.rule = significant selects no expert in any of 1 batches"):
        select_masks([batch_of(0)], replace(RULE, name="significant", alpha=1e-9))


def test_prompts_without_a_counted_token_say_nothing():
    from dist_moe.risk.evidence import evidence

    batch = batch_of(0)
    none = RoutingCounts(np.zeros((1, 3, 6), np.int64), np.zeros(1, np.int64), 2)
    counts = RoutingCounts(
        np.concatenate([none.counts_PLE, batch.counts.counts_PLE]), np.append(0, batch.counts.tokens_P), 2
    )
    more = evidence(counts, np.append(False, batch.unsafe_P), np.append(0, batch.strata_P), batch.settings, 0, 0)
    assert more.test.p_LE.tobytes() == batch.test.p_LE.tobytes()
