from dataclasses import replace

import numpy as np

from dist_moe.stats.estimates import bootstrap_interval, sampling_variance
from dist_moe.stats.order import selected, unsafe_experts
from dist_moe.stats.resamples import half_samples
from tests.unit.stats.prompts import batch_of, paired, slow_risk_diff

PAIRS_P = np.tile([1, 2, 3, 4, 5, 0, 0, 0], 2)
UNPAIRED = batch_of(0)
BATCH = replace(UNPAIRED, designed=lambda: paired(UNPAIRED.unsafe_P, PAIRS_P))


def test_intervals_are_of_pairs():
    interval, apart = (
        bootstrap_interval(
            BATCH.counts,
            BATCH.unsafe_P,
            batch.design,
            estimate="micro",
            num_resamples=40,
            confidence=0.95,
            generator=BATCH.generator("bootstrap"),
        )
        for batch in (BATCH, UNPAIRED)
    )
    assert (np.array(BATCH.interval) == interval).all()
    assert (np.array(interval) != apart).any()


def test_variance_is_of_pairs():
    variance_LE, apart_LE = (
        sampling_variance(BATCH.counts, BATCH.unsafe_P, batch.design) for batch in (BATCH, UNPAIRED)
    )
    assert (BATCH.variance_LE == variance_LE).all()
    assert (variance_LE != apart_LE).any()


def test_stability_is_of_pairs():
    times_LE = np.zeros((3, 6))
    for chosen_P in half_samples(BATCH.unsafe_P, BATCH.design, 40, BATCH.generator("half-samples")):
        diff_LE = slow_risk_diff(BATCH.counts, BATCH.unsafe_P, np.nonzero(chosen_P)[0], "micro")
        for place in unsafe_experts(diff_LE, 0.05, 5):
            times_LE[place] += 1
    np.testing.assert_allclose(BATCH.frequency_LE(lambda diff_LE: selected(diff_LE, 0.05, 5)), times_LE / 40)


def test_family_wise_p_is_of_the_statistic_that_is_set():
    by_statistic = {
        statistic: replace(BATCH, settings=replace(BATCH.settings, statistic=statistic)).test.family_p_LE
        for statistic in ("difference", "standardized")
    }
    assert (BATCH.test.family_p_LE == by_statistic["standardized"]).all()
    assert (by_statistic["difference"] != by_statistic["standardized"]).any()


def test_some_of_the_prompts_keep_their_pairs():
    rows_P = np.isin(np.arange(16), [0, 8, 2, 10, 6, 7, 13, 14])
    half = BATCH.of(rows_P)
    assert (half.counts.counts_PLE == BATCH.counts.counts_PLE[rows_P]).all()
    assert half.unsafe_P.tolist() == [False] * 4 + [True] * 4
    assert half.design.units(half.unsafe_P)[2].rows_R.tolist() == [0, 4, 1, 5]
    assert [rows_KR.tolist() for rows_KR in half.design.strata()] == [[[2], [3], [6], [7]], [[0], [4]], [[1], [5]]]
    assert (half.seed, half.batch, half.settings) == (BATCH.seed, BATCH.batch, BATCH.settings)
