"""Made-up batches without any effect, whose prompts have several rows: tests and intervals are as wrong as they say."""

import numpy as np
import pytest

from tools.simulate import Scenario, intervals, performance, simulate

SHAPE = {"num_layers": 2, "num_experts": 16, "experts_per_token": 4, "tokens": (4, 12)}
BATCHES = 150
CHANCE = 2.6 * np.sqrt(0.05 * 0.95 / BATCHES)


def errors(as_rows=False, **changes):
    return performance(
        Scenario(**SHAPE, **changes),
        num_batches=BATCHES,
        num_permutations=99,
        alpha=0.05,
        statistic="standardized",
        seed=3,
        as_rows=as_rows,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"safe_rows": (1, 8), "unsafe_rows": (1, 8), "row_spread": 0.5},
        {"safe_rows": (1, 1), "unsafe_rows": (8, 8), "row_spread": 0.5},
        {"num_unsafe": 2, "safe_rows": (8, 8), "spread": 0.2, "row_spread": 1.5},
        {"num_safe": 2, "num_unsafe": 2, "num_both": 6, "safe_rows": (1, 4), "unsafe_rows": (1, 4)},
        {"num_safe": 0, "num_unsafe": 0, "num_both": 8, "safe_rows": (7, 7), "spread": 0.2, "row_spread": 1.0},
        {"num_safe": 1, "num_unsafe": 1, "safe_rows": (8, 8), "unsafe_rows": (8, 8)},
    ],
)
def test_clusters_keep_the_level(changes):
    found = errors(**changes)
    assert found.expert_error <= 0.05 + CHANCE
    assert found.family_error <= 0.05 + CHANCE
    assert found.fdr_error <= 0.05 + CHANCE


def test_clusters_taken_for_rows_do_not():
    found = errors(as_rows=True, safe_rows=(1, 8), unsafe_rows=(1, 8), row_spread=0.5)
    assert found.expert_error > 0.15
    assert found.family_error > 0.5


def test_an_effect_in_clusters_is_found():
    assert errors(safe_rows=(2, 2), unsafe_rows=(2, 2), effect=4.0).family_power > 0.3


def test_intervals_of_many_clusters_hold_the_truth_and_those_of_their_rows_do_not():
    scenario = Scenario(**SHAPE, num_safe=32, num_unsafe=32, safe_rows=(1, 8), unsafe_rows=(1, 8))
    clusters, rows = (
        intervals(scenario, num_batches=40, num_resamples=200, as_rows=as_rows, seed=0) for as_rows in (False, True)
    )
    assert 0.88 < clusters.coverage < 0.97
    assert rows.coverage < clusters.coverage - 0.1


def test_rows_of_a_cluster_are_made_alike():
    scenario = Scenario(
        num_safe=2, num_unsafe=2, num_both=1, safe_rows=(3, 3), unsafe_rows=(1, 2), **(SHAPE | {"tokens": (4000, 4000)})
    )
    counts, unsafe_P, kinship = simulate(scenario, np.random.default_rng(0))
    assert kinship.cluster_P[~unsafe_P].tolist() == [0, 0, 0, 1, 1, 1, 4, 4, 4]
    assert set(kinship.cluster_P[unsafe_P].tolist()) == {2, 3, 4}
    rates = counts.counts_PLE / 4000
    alike = [
        np.abs(rates[i] - rates[j]).max()
        for i in range(9)
        for j in range(i)
        if kinship.cluster_P[i] == kinship.cluster_P[j]
    ]
    assert max(alike) < 0.06
    assert np.abs(rates[0] - rates[3]).max() > 0.2
