import numpy as np
import pytest

from dist_moe.rules import RULES
from dist_moe.selection.null import null_count
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


@pytest.mark.parametrize("name", ["stable", "esft_token"])
def test_every_other_rule_has_a_null(name):
    assert null_count(batch_of(0), made(name, threshold=0.05, top_k=6), 5).mean > 0
