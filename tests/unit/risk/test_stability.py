import numpy as np

from dist_moe.risk.resamples import half_samples
from dist_moe.risk.select import unsafe_experts
from dist_moe.risk.stability import selection_frequency
from tests.unit.risk.prompts import half_unsafe, random_counts, slow_risk_diff


def test_frequency_is_that_of_the_rule_over_half_samples():
    counts, unsafe_P = random_counts(4, 10), half_unsafe(10)
    times_LE = np.zeros((3, 6))
    for chosen_P in half_samples(unsafe_P, np.zeros(10, int), 25, np.random.default_rng(1)):
        for place in unsafe_experts(slow_risk_diff(counts, unsafe_P, np.nonzero(chosen_P)[0], "micro"), 0.1, 4):
            times_LE[place] += 1
    frequency_LE = selection_frequency(
        counts,
        unsafe_P,
        np.zeros(10, int),
        threshold=0.1,
        top_k=4,
        estimate="micro",
        num_resamples=25,
        generator=np.random.default_rng(1),
    )
    np.testing.assert_allclose(frequency_LE, times_LE / 25)
    assert frequency_LE.max() > 0


def test_an_expert_below_the_threshold_is_never_selected():
    counts, unsafe_P = random_counts(4, 10), half_unsafe(10)
    frequency_LE = selection_frequency(
        counts,
        unsafe_P,
        np.zeros(10, int),
        threshold=1.0,
        top_k=50,
        estimate="micro",
        num_resamples=25,
        generator=np.random.default_rng(1),
    )
    assert not frequency_LE.any()
