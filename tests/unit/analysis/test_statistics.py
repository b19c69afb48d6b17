import numpy as np
import pytest

from dist_moe.analysis.statistics import batch_evidence, batch_statistics, pooled_evidence
from dist_moe.config.schema import StatisticsConfig
from dist_moe.risk.labelings import labelings, num_labelings, units_of
from dist_moe.risk.permutation import benjamini_hochberg
from dist_moe.risk.select import SelectionRule
from dist_moe.risk.stability import stability
from tests.unit.risk.prompts import random_counts

SETTINGS = StatisticsConfig(permutations=200, resamples=20, null_draws=10)
COUNTS, UNSAFE_P = random_counts(0, 32), np.tile(np.arange(16) >= 8, 2)
BATCH_OF_P = np.repeat([0, 1], 16)
PAIRS = [*(["a", None, "b"] + [None] * 5), *(["a", None, "b"] + [None] * 5), *[None] * 16]


@pytest.fixture(scope="module")
def batches():
    return batch_evidence(COUNTS, UNSAFE_P, BATCH_OF_P, PAIRS, SETTINGS, seed=3)


def test_each_batch_has_its_own_prompts(batches):
    for index, batch in enumerate(batches):
        rows = slice(16 * index, 16 * index + 16)
        assert (batch.counts.counts_PLE == COUNTS.counts_PLE[rows]).all()
        assert (batch.seed, batch.batch) == (3, index)
    assert num_labelings(batches[0].unsafe_P, batches[0].strata_P) == 2 * 2 * 924
    assert num_labelings(batches[1].unsafe_P, batches[1].strata_P) == 12870


def test_labels_of_all_prompts_are_exchanged_within_batches_and_pairs(batches):
    pooled = pooled_evidence(COUNTS, UNSAFE_P, BATCH_OF_P, batches)
    assert num_labelings(pooled.unsafe_P, pooled.strata_P) == 2 * 2 * 924 * 12870
    assert units_of(pooled.unsafe_P, pooled.strata_P)[2].tolist() == [[0, 8], [2, 10]]
    labels_NP, _ = labelings(pooled.unsafe_P, pooled.strata_P, 50, np.random.default_rng(0))
    assert (labels_NP[:, :16].sum(axis=1) == 8).all()
    assert (labels_NP[:, 0] != labels_NP[:, 8]).all()


def test_too_many_prompts_are_not_tested_together(batches, monkeypatch):
    monkeypatch.setattr("dist_moe.analysis.statistics.POOLED_LIMIT", 32 * 200 - 1)
    assert pooled_evidence(COUNTS, UNSAFE_P, BATCH_OF_P, batches) is None


def test_names_hold_what_they_say(batches):
    rule = SelectionRule(name="budget_per_layer", per_layer=2)
    values = batch_statistics(batches, rule, show_progress=False)
    for index, batch in enumerate(batches):
        assert (values["p_value"][index] == batch.test.p_LE.astype(np.float32)).all()
        q_LE = benjamini_hochberg(batch.test.p_LE.ravel()).reshape(3, 6)
        assert (values["q_value"][index] == q_LE.astype(np.float32)).all()
        assert (values["family_p_value"][index] == batch.test.family_p_LE.astype(np.float32)).all()
        assert (values["stability"][index] == stability(batch, rule).astype(np.float32)).all()
        assert (values["interval_low"][index] <= values["interval_high"][index]).all()
    assert values["smallest_p_value"].tolist() == [np.float32(1 / 201)] * 2
    assert all(array.dtype == np.float32 for array in values.values())
    assert (values["shrunk_risk_diff"] == np.float32([batch.shrunk_LE for batch in batches])).all()


def test_batches_know_of_all_prompts(batches):
    safe_LE, unsafe_LE = (
        COUNTS.counts_PLE[arm_P].sum(axis=0) / COUNTS.tokens_P[arm_P].sum() for arm_P in (~UNSAFE_P, UNSAFE_P)
    )
    for batch in batches:
        assert (batch.population.pooled_LE == unsafe_LE - safe_LE).all()
        assert (batch.population.load_LE == COUNTS.counts_PLE.sum(axis=0)).all()


def test_statistics_of_a_batch_follow_from_it_and_the_population_alone(batches):
    rule = SelectionRule(threshold=0.05, top_k=5)
    one = batch_statistics(batches[1:], rule, show_progress=False)
    two = batch_statistics(batches, rule, show_progress=False)
    for name in one:
        assert one[name][0].tobytes() == two[name][1].tobytes(), name
