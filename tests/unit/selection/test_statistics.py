from dataclasses import replace

import numpy as np
import pytest

from dist_moe.config.schema import AnalysisConfig
from dist_moe.errors import UserError
from dist_moe.rules import RULES
from dist_moe.selection.evidence import can_be_pooled, evidence_of_each, pooled_evidence
from dist_moe.selection.statistics import batch_results, selection_rule, statistic_kinds
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.labelings import labelings, num_labelings
from dist_moe.stats.permutation import benjamini_hochberg
from dist_moe.stats.population import PopulationSums
from dist_moe.stats.settings import StatisticsConfig
from tests.batches import batch_index
from tests.unit.rules.made import made
from tests.unit.stats.prompts import random_counts

SETTINGS = StatisticsConfig(permutations=200, resamples=20, null_draws=10)
COUNTS, UNSAFE_P = random_counts(0, 32), np.tile(np.arange(16) >= 8, 2)
PAIRS = [*(["a", None, "b"] + [None] * 5), *(["a", None, "b"] + [None] * 5), *[None] * 16]
TEXTS = [str(row) for row in range(32)]
INDEX = batch_index((16, 16), UNSAFE_P.tolist(), TEXTS, PAIRS)
ALL = list(evidence_of_each(INDEX, COUNTS, SETTINGS, seed=3))
POPULATION = (PopulationSums.of(ALL[0]) + PopulationSums.of(ALL[1])).population()
RULE = made("threshold_top_k", threshold=0.05, top_k=5)


@pytest.fixture(scope="module")
def batches():
    return list(evidence_of_each(INDEX, COUNTS, SETTINGS, 3, POPULATION))


def test_each_batch_has_its_own_prompts(batches):
    for index, batch in enumerate(batches):
        rows = slice(16 * index, 16 * index + 16)
        assert (batch.counts.counts_PLE == COUNTS.counts_PLE[rows]).all()
        assert (batch.seed, batch.batch) == (3, index)
    assert num_labelings(batches[0].unsafe_P, batches[0].design) == 2 * 2 * 924
    assert num_labelings(batches[1].unsafe_P, batches[1].design) == 12870


def test_labels_of_all_prompts_are_exchanged_within_batches_and_pairs():
    pooled = pooled_evidence(INDEX, COUNTS, SETTINGS, seed=3)
    assert num_labelings(pooled.unsafe_P, pooled.design) == 2 * 2 * 924 * 12870
    assert pooled.design.units(pooled.unsafe_P)[2].rows_R.tolist() == [0, 8, 2, 10]
    labels_NP, _ = labelings(pooled.unsafe_P, pooled.design, 50, np.random.default_rng(0))
    assert (labels_NP[:, :16].sum(axis=1) == 8).all()
    assert (labels_NP[:, 0] != labels_NP[:, 8]).all()


def test_a_prompt_whose_partner_has_no_counted_token_exchanges_labels_in_its_own_batch():
    index = batch_index((16, 16), UNSAFE_P.tolist(), TEXTS, [*[None] * 16, *PAIRS[:16]])
    tokens_P = COUNTS.tokens_P * (np.arange(32) != 24)  # the partner of 16
    counts = RoutingCounts(COUNTS.counts_PLE * (tokens_P > 0)[:, None, None], tokens_P, COUNTS.experts_per_token)
    pooled = pooled_evidence(index, counts, SETTINGS, seed=3)
    # 13 prompts of the second batch have no partner, 7 of them safe; one pair is left
    assert num_labelings(pooled.unsafe_P, pooled.design) == 12870 * 1716 * 2
    assert pooled.design.units(pooled.unsafe_P)[2].rows_R.tolist() == [18, 25]


def test_too_many_prompts_are_not_tested_together(monkeypatch):
    assert can_be_pooled(INDEX, SETTINGS)
    monkeypatch.setattr("dist_moe.selection.evidence.POOLED_LIMIT", 32 * 200 - 1)
    assert not can_be_pooled(INDEX, SETTINGS)


def test_names_hold_what_they_say(batches):
    rule = made("budget_per_layer", per_layer=2)
    values = batch_results(COUNTS, INDEX, rule, SETTINGS, 3, POPULATION, show_progress=False).statistics
    for index, batch in enumerate(batches):
        assert (values["p_value"][index] == batch.test.p_LE.astype(np.float32)).all()
        q_LE = benjamini_hochberg(batch.test.p_LE.ravel()).reshape(3, 6)
        assert (values["q_value"][index] == q_LE.astype(np.float32)).all()
        assert (values["family_p_value"][index] == batch.test.family_p_LE.astype(np.float32)).all()
        assert (values["stability"][index] == rule.stability(batch).astype(np.float32)).all()
        assert (values["interval_low"][index] <= values["interval_high"][index]).all()
    assert values["smallest_p_value"].tolist() == [np.float32(1 / 201)] * 2
    assert all(array.dtype == np.float32 for array in values.values())
    shrunk = [batch.shrunk_LE.astype(np.float32) for batch in batches]
    assert (values["shrunk_risk_diff"] == shrunk).all()


@pytest.mark.parametrize(
    ("name", "permutations"),
    [(name, number) for name in RULES for number in (0, 20) if (name, number) != ("significant", 0)],
)
def test_statistics_are_those_that_are_announced(name, permutations):
    rule, settings = made(name), StatisticsConfig(permutations=permutations, resamples=4, null_draws=2)
    counts = replace(COUNTS, tables=dict.fromkeys(("gates", "gradients"), COUNTS.counts_PLE / 8))
    found = batch_results(counts, INDEX, rule, settings, 3, POPULATION, show_progress=False)
    kinds = {name: (values.dtype.name, values.ndim) for name, values in found.statistics.items()}
    assert kinds == statistic_kinds(rule, settings)


def test_results_of_a_batch_do_not_depend_on_those_beside_it():
    both = batch_results(COUNTS, INDEX, RULE, SETTINGS, 3, POPULATION, show_progress=False)
    second = INDEX.of(range(1, 2))
    alone = batch_results(COUNTS.of(slice(16, 32)), second, RULE, SETTINGS, 3, POPULATION, show_progress=False)
    assert (both.masks.masks_BLE[1] == alone.masks.masks_BLE[0]).all()
    assert (both.signs_B3[1] == alone.signs_B3[0]).all()
    for name, values in alone.statistics.items():
        assert values[0].tobytes() == both.statistics[name][1].tobytes(), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "gradient", "ep_size": 4}, "rule = gradient needs all experts on each rank, but .*ep_size is 4"),
        ({"rule": "esft_gate", "gates": False}, "rule = esft_gate needs analysis.gates"),
        ({"rule": "significant", "statistics": StatisticsConfig(permutations=0)}, "permutations is 0: set it to 2000"),
    ],
)
def test_a_rule_without_what_it_needs_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        selection_rule(AnalysisConfig(**settings))
