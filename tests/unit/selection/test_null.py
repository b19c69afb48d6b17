import numpy as np
import pytest

from dist_moe.rules import RULES
from dist_moe.selection.null import null_count
from dist_moe.stats.design import Kinship
from dist_moe.stats.evidence import evidence
from dist_moe.stats.labelings import labelings
from dist_moe.stats.order import unsafe_experts
from tests.unit.rules.made import made
from tests.unit.stats.prompts import batch_of, slow_risk_diff

RULE = made("threshold_top_k", threshold=0.05, top_k=6)


def test_the_rule_on_permuted_labels():
    batch, rule = batch_of(0), made("threshold_top_k", threshold=0.05, top_k=50)
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, 201, batch.generator("null"))
    numbers = []
    for labels_P in labels_NP:
        diff_LE = slow_risk_diff(batch.counts, labels_P, range(16), "micro")
        numbers.append(len(unsafe_experts(diff_LE, 0.05, 50)))
    found = null_count(batch, rule, 201)
    assert found.mean == np.mean(numbers)
    assert found.high == sorted(numbers)[190]  # 10 of the other 200, 5 %, are not below
    assert sorted(numbers)[180] < sorted(numbers)[190]


@pytest.mark.parametrize("name", ["random", "random_matched", "load", "lowest"])
def test_controls_have_the_null_of_what_they_imitate(name):
    assert null_count(batch_of(0), made(name, threshold=0.05, top_k=6), 20) == null_count(batch_of(0), RULE, 20)


def test_a_number_that_does_not_follow_from_the_batch_has_no_null():
    assert not any(RULES[name].has_null for name in ("budget_per_layer", "steermoe", "shrunk", "gradient"))
    assert all(RULES[name].has_null for name in ("threshold_top_k", "significant", "stable", "esft_token", "esft_gate"))


def test_family_wise_significance_finds_next_to_nothing_by_chance():
    rule = made("significant", correction="family")
    assert null_count(batch_of(0), rule, 20).mean < 0.5 < null_count(batch_of(0), RULE, 20).mean


def test_the_null_of_esft_is_a_loop_over_permuted_labels_and_layers():
    batch, num_layers = batch_of(0), 3
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, 21, batch.generator("null"))
    numbers = []
    for labels_P in labels_NP:
        numbers.append(0)
        for layer in range(num_layers):
            shares_PE = [
                counts_LE[layer] / (2 * tokens)
                for counts_LE, tokens, unsafe in zip(
                    batch.counts.counts_PLE, batch.counts.tokens_P, labels_P, strict=True
                )
                if unsafe
            ]
            reached = 0.0
            for share in sorted(np.mean(shares_PE, axis=0), reverse=True):
                numbers[-1] += reached < 0.6 - 1e-12
                reached += share
    assert len(set(numbers)) > 1
    assert null_count(batch, made("esft_token", top_p=0.6), 21).mean == np.mean(numbers)


@pytest.mark.parametrize("name", ["stable", "significant", "esft_token"])
def test_the_null_of_a_rule_is_that_rule_on_evidence_made_with_permuted_labels(name):
    batch, rule = batch_of(0), made(name, threshold=0.05, top_k=6, alpha=0.9, top_p=0.6)
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, 9, batch.generator("null"))
    kinship = Kinship.none(np.zeros(16, np.int64))
    anew = [evidence(batch.counts, labels_P, kinship, batch.settings, 0, 0) for labels_P in labels_NP]
    numbers = [int(rule.select(each).sum()) for each in anew]
    assert len(set(numbers)) > 1
    assert null_count(batch, rule, 9).mean == np.mean(numbers)
