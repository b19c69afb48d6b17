"""How batches do in mid-run: the values of an evaluation, and weak only beyond noise."""

import numpy as np
import pytest

from dist_moe.evaluation.batches import Limit, mean_loss, most_refused, refusal_rate
from dist_moe.evaluation.measures import Resampling
from dist_moe.stats.measured import Estimate

PROMPTS = [f"{i:016x}" for i in range(1, 9)]
RESAMPLING = Resampling(4000, 3)


def wilson(yes, number):
    """From its definition: the p at which |yes / n - p| is 1.96 standard errors of p."""
    grid = np.linspace(0, 1, 100_001)
    inside = grid[(yes / number - grid) ** 2 <= 1.959964**2 * grid * (1 - grid) / number]
    return inside.min(), inside.max()


def test_a_rate_is_of_the_rows_that_could_be_judged_with_wilsons_interval():
    said = [True, False, None, True, True, False, True, None]
    found = refusal_rate(PROMPTS, said)
    assert (found.value, found.num_rows, found.num_prompts) == (4 / 6, 6, 6)
    assert (found.low, found.high) == pytest.approx(wilson(4, 6), abs=1e-5)
    assert refusal_rate(PROMPTS, [None] * 8) is None


def test_a_loss_is_per_token_with_an_interval_over_prompts():
    generator = np.random.default_rng(0)
    losses, tokens = generator.uniform(1, 9, 8), generator.integers(1, 6, 8)
    found = mean_loss(PROMPTS, losses, tokens, RESAMPLING, "a batch")
    assert found.value == pytest.approx(losses.sum() / tokens.sum())
    drawn = generator.integers(0, 8, (20_000, 8))
    low, high = np.percentile(losses[drawn].sum(1) / tokens[drawn].sum(1), [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)
    assert found == mean_loss(PROMPTS, losses, tokens, RESAMPLING, "a batch")


def test_few_prompts_have_a_loss_but_no_interval_and_rows_without_a_response_none():
    few = mean_loss([*PROMPTS[:5], PROMPTS[0], PROMPTS[7]], [2.0] * 7, [1] * 6 + [0], RESAMPLING, "x")
    assert (few.value, few.low, few.high, few.num_rows, few.num_prompts) == (2.0, None, None, 6, 5)
    assert not Limit(None, 0.1).is_weak(few)
    assert mean_loss(PROMPTS, [0.0] * 8, [0] * 8, RESAMPLING, "x") is None


@pytest.mark.parametrize(
    ("limit", "low", "high", "is_weak"),
    [
        (Limit(0.5, None), 0.1, 0.49, True),
        (Limit(0.5, None), 0.1, 0.5, False),
        (Limit(0.5, None), 0.1, 0.7, False),
        (Limit(None, 0.5), 0.51, 0.9, True),
        (Limit(None, 0.5), 0.5, 0.9, False),
        (Limit(None, 0.5), 0.1, 0.9, False),
    ],
)
def test_a_batch_is_weak_only_if_its_whole_interval_is(limit, low, high, is_weak):
    value = Estimate(value=(low + high) / 2, low=low, high=high, num_rows=8, num_prompts=8)
    assert limit.is_weak(value) == is_weak
    assert not limit.is_weak(None)


@pytest.mark.parametrize("below", [0.2, 0.5, 0.8, 0.95])
def test_how_many_may_be_refused_is_as_many_as_a_weak_batch_has(below):
    for number in (1, 2, 8, 13):
        weak = [k for k in range(number + 1) if wilson(k, number)[1] < below - 1e-9]
        assert most_refused(number, below) == (max(weak) if weak else None)
    assert most_refused(8, 0.8) == 4
