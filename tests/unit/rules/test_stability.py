from dataclasses import replace

import numpy as np
import pytest

from dist_moe.stats.evidence import evidence
from dist_moe.stats.order import unsafe_experts
from dist_moe.stats.resamples import half_samples
from tests.unit.rules.made import made
from tests.unit.stats.prompts import batch_of, kin, paired, populated, slow_risk_diff

RULE = {"threshold": 0.05, "top_k": 5, "per_layer": 2, "top_p": 0.4}
PAIRS_P = np.tile([1, 2, 3, 4, 5, 0, 0, 0], 2)
OWN = {"threshold_top_k", "shrunk", "budget_per_layer", "esft_token", "esft_gate", "steermoe", "gradient"}


@pytest.fixture(scope="module")
def batch():
    one, *others = [batch_of(seed, index=seed) for seed in range(3)]
    gates_PLE = one.counts.counts_PLE * np.random.default_rng(0).random(one.counts.counts_PLE.shape)
    tables = {"gates": gates_PLE, "gradients": gates_PLE[::-1]}
    design = paired(one.unsafe_P, PAIRS_P)
    one = replace(one, designed=lambda: design, counts=replace(one.counts, tables=tables))
    return populated([one, *others])[0]


def slow_frequency(batch, select):
    times_LE, drawn = np.zeros((3, 6)), half_samples(batch.unsafe_P, batch.design, 40, batch.generator("half-samples"))
    for chosen_P in drawn:
        times_LE += select(chosen_P)
    return times_LE / len(drawn)


def by_threshold(batch, chosen_P, estimate, top_k):
    mask_LE = np.zeros((3, 6))
    diff_LE = slow_risk_diff(batch.counts, batch.unsafe_P, np.nonzero(chosen_P)[0], estimate)
    for place in unsafe_experts(diff_LE, 0.05, top_k):
        mask_LE[place] = 1
    return mask_LE


@pytest.mark.parametrize("name", sorted(OWN))
def test_it_is_the_share_of_half_samples_in_which_the_rule_itself_selects(batch, name):
    rule = made(name, **RULE)

    def of_half(chosen_P):
        half = evidence(
            batch.counts.of(chosen_P),
            batch.unsafe_P[chosen_P],
            kin(PAIRS_P[chosen_P]),
            batch.settings,
            batch.seed,
            batch.batch,
        )
        return rule.select(replace(half, population=batch.population))

    found_LE = rule.stability(batch)
    np.testing.assert_allclose(found_LE, slow_frequency(batch, of_half))
    assert len(np.unique(found_LE)) > 2
    if name != "threshold_top_k":
        assert (found_LE != made("threshold_top_k", **RULE).stability(batch)).any()


@pytest.mark.parametrize("estimate", ["micro", "macro"])
@pytest.mark.parametrize(
    "name", ["threshold_top_k", "significant", "stable", "random", "random_matched", "load", "lowest"]
)
def test_it_is_that_of_threshold_and_top_k_where_the_rule_itself_cannot_run(batch, name, estimate):
    batch = replace(batch, settings=replace(batch.settings, estimate=estimate))
    top_k = 50 if name == "significant" else 5  # it has none, so the default
    expected_LE = slow_frequency(batch, lambda chosen_P: by_threshold(batch, chosen_P, estimate, top_k))
    np.testing.assert_allclose(made(name, **RULE).stability(batch), expected_LE)
    assert expected_LE.max() > 0


def test_an_expert_below_the_threshold_is_never_selected(batch):
    assert not made("threshold_top_k", threshold=0.999).stability(batch).any()
