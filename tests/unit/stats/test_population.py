from dataclasses import asdict, replace

import numpy as np
import pytest

from dist_moe.stats.evidence import evidence
from dist_moe.stats.population import PopulationSums
from tests.unit.stats.prompts import batch_of, kin, slow_risk_diff


def added(batches):
    first, *others = map(PopulationSums.of, batches)
    for other in others:
        first += other
    return first


def direct(batches):
    """The definitions, over all batches at once: load, pooled risk_diff, and τ² as a plain mean."""
    prompts = [
        (batch.counts.counts_PLE[row], batch.counts.tokens_P[row], batch.unsafe_P[row])
        for batch in batches
        for row in range(batch.counts.num_prompts)
    ]
    load_LE = sum(counts_LE for counts_LE, _, _ in prompts)
    rates = [
        sum(counts_LE for counts_LE, _, unsafe in prompts if unsafe == arm)
        / sum(int(tokens) for _, tokens, unsafe in prompts if unsafe == arm)
        for arm in (False, True)
    ]
    pooled_LE = rates[1] - rates[0]
    excess_BLE = []
    for batch in batches:
        diff_LE = slow_risk_diff(batch.counts, batch.unsafe_P, range(batch.counts.num_prompts), "micro")
        excess_BLE.append((diff_LE - pooled_LE) ** 2 - batch.variance_LE)
    return load_LE, pooled_LE, np.maximum(np.mean(excess_BLE, axis=(0, 2)), 0)


@pytest.mark.parametrize("num_batches", [1, 2, 30])
def test_population_is_that_of_all_batches_at_once(num_batches):
    batches = [batch_of(seed, num_prompts=6 + seed) for seed in range(num_batches)]
    found, (load_LE, pooled_LE, between_L) = added(batches).population(), direct(batches)
    assert (found.load_LE == load_LE).all()
    assert (found.pooled_LE == pooled_LE).all()
    np.testing.assert_allclose(found.between_L, between_L, rtol=1e-10, atol=1e-16)


def test_batches_that_differ_have_variance_between_them():
    # two kinds of batches, +d and -d in turn: tau^2 is d^2, less what the prompts' own noise adds
    one = batch_of(0)
    other = replace(one, unsafe_P=~one.unsafe_P)
    batches = [one, other] * 10
    between_L = added(batches).population().between_L
    np.testing.assert_allclose(between_L, direct(batches)[2], rtol=1e-10)
    assert (between_L >= 0).all()
    assert between_L.max() > 1e-3


def test_an_arm_of_one_prompt_leaves_no_variance_between_batches_and_no_nan():
    batches = [batch_of(0, num_prompts=2), batch_of(1), batch_of(2, num_prompts=2)]
    found = added(batches).population()
    assert (found.between_L == 0).all()
    assert np.isfinite(found.pooled_LE).all()
    shrunk_LE = replace(batches[0], population=found).shrunk_LE
    assert (shrunk_LE == found.pooled_LE).all()


def test_parts_added_in_order_are_the_whole_bit_for_bit_in_counts_and_within_rounding_in_sums():
    batches = [batch_of(seed) for seed in range(8)]
    whole, parts = added(batches), added(batches[:3]) + added(batches[3:])
    assert parts.num_batches == whole.num_batches == 8
    assert (parts.counts_ALE == whole.counts_ALE).all()
    assert (parts.tokens_A == whole.tokens_A).all()
    for name in ("diff_LE", "diff_squared_LE", "variance_LE"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=1e-15)


def test_the_union_is_of_what_each_batch_adds_in_any_parts():
    batches = [batch_of(seed) for seed in range(3)]
    given = [np.arange(18).reshape(3, 6) == place for place in (4, 7, 4)]
    first, second, third = map(PopulationSums.of, batches, given)
    expected = [(0, 4), (1, 1)]
    for sums in (first + second + third, first + (second + third)):
        assert list(zip(*np.nonzero(sums.population().union_LE), strict=True)) == expected
    assert not PopulationSums.of(batches[0]).union_LE.any()


def test_prompts_without_a_counted_token_change_no_sum():
    batch = batch_of(0)
    counts = replace(
        batch.counts,
        counts_PLE=np.concatenate([np.zeros((1, 3, 6), np.int64), batch.counts.counts_PLE]),
        tokens_P=np.append(0, batch.counts.tokens_P),
    )
    more = evidence(counts, np.append(True, batch.unsafe_P), kin(np.zeros(17)), batch.settings, 0, 0)
    sums, expected = asdict(PopulationSums.of(more)), asdict(PopulationSums.of(batch))
    assert all(np.asarray(sums[name]).tobytes() == np.asarray(expected[name]).tobytes() for name in expected)
