"""Routing counts of made-up prompts, to learn how often the tests are wrong and what they can find.

Prompts differ on their own: each has its own logits, so that tokens of one prompt go to the same experts. That spread
is what makes 8 + 8 prompts noisy.
"""

from dataclasses import dataclass

import numpy as np

from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import bootstrap_interval, risk_diff
from dist_moe.risk.permutation import Statistic, permutation_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """OLMoE's shape by default."""

    num_layers: int = 16
    num_experts: int = 64
    experts_per_token: int = 8
    num_safe: int = 8
    num_unsafe: int = 8
    tokens: tuple[int, int] = (16, 64)
    """Fewest and most tokens of a prompt, uniform."""
    spread: float = 1.0
    """Standard deviation of a prompt's own effect on each expert's logit."""
    pair_spread: float = 0.0
    """Above 0: the i-th safe and the i-th unsafe prompt are a pair, and share such an effect on top of their own."""
    effect: float = 0.0
    """What unsafe prompts add to the logits of the affected experts, the first `num_affected` of each layer."""
    num_affected: int = 2


def simulate(scenario: Scenario, generator: np.random.Generator) -> tuple[RoutingCounts, np.ndarray, np.ndarray]:
    """Counts of one batch, safe prompts first, unsafe_P and strata_P.

    Token logits = expert (normal, 1) + prompt (normal, spread) + pair (normal, pair_spread) + effect + Gumbel noise:
    the k largest are k draws without replacement from the softmax (Gumbel-top-k).
    """
    num_prompts = scenario.num_safe + scenario.num_unsafe
    unsafe_P = np.arange(num_prompts) >= scenario.num_safe
    shape_LE = scenario.num_layers, scenario.num_experts
    expert_LE = generator.normal(size=shape_LE)
    strata_P, shared_PLE = np.zeros(num_prompts, np.int64), np.zeros((num_prompts, *shape_LE))
    if scenario.pair_spread:
        assert scenario.num_safe == scenario.num_unsafe
        strata_P = np.tile(np.arange(1, scenario.num_safe + 1), 2)
        shared_PLE += np.tile(scenario.pair_spread * generator.normal(size=(scenario.num_safe, *shape_LE)), (2, 1, 1))
    tokens_P = generator.integers(scenario.tokens[0], scenario.tokens[1] + 1, size=num_prompts)
    counts_PLE = np.empty((num_prompts, *shape_LE), np.int64)
    for counts_LE, shared_LE, unsafe, num_tokens in zip(counts_PLE, shared_PLE, unsafe_P, tokens_P, strict=True):
        logits_LE = expert_LE + shared_LE + scenario.spread * generator.normal(size=shape_LE)
        logits_LE[:, : scenario.num_affected] += scenario.effect * unsafe
        noisy_TLE = logits_LE + generator.gumbel(size=(num_tokens, *shape_LE))
        chosen_TLk = np.argpartition(-noisy_TLE, scenario.experts_per_token - 1, axis=2)
        chosen_TLE = np.zeros(noisy_TLE.shape, np.bool_)
        np.put_along_axis(chosen_TLE, chosen_TLk[..., : scenario.experts_per_token], True, axis=2)
        counts_LE[:] = chosen_TLE.sum(axis=0)
    return RoutingCounts(counts_PLE, tokens_P.astype(np.int64), scenario.experts_per_token), unsafe_P, strata_P


@dataclass(frozen=True, slots=True)
class Performance:
    """Over simulated batches; `family` calls family-wise p <= alpha, `fdr` calls q <= alpha."""

    family_error: float
    """Share of batches in which `family` calls an expert that is not affected."""
    family_power: float
    """Mean share of the affected experts that `family` calls; nan without any effect."""
    fdr_error: float
    """Mean share of false calls among those of `fdr` (0 where it calls none)."""
    fdr_power: float
    above_threshold: float
    """Mean number of experts with risk_diff above 0.05."""


def performance(
    scenario: Scenario, *, num_batches: int, num_permutations: int, alpha: float, statistic: Statistic, seed: int
) -> Performance:
    """Error rates and power of the permutation test. An expert counts as affected if `effect` was added to it."""
    affected_LE = np.zeros((scenario.num_layers, scenario.num_experts), np.bool_)
    affected_LE[:, : scenario.num_affected] = scenario.effect > 0
    rows = []
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, batch])
        counts, unsafe_P, strata_P = simulate(scenario, generator)
        test = permutation_test(
            counts,
            unsafe_P,
            strata_P,
            num_permutations=num_permutations,
            estimate="micro",
            statistic=statistic,
            generator=generator,
        )
        family_LE, fdr_LE = test.family_p_LE <= alpha, test.q_LE <= alpha
        rows.append(
            (
                (family_LE & ~affected_LE).any(),
                family_LE[affected_LE].mean() if affected_LE.any() else np.nan,
                (fdr_LE & ~affected_LE).sum() / max(1, fdr_LE.sum()),
                fdr_LE[affected_LE].mean() if affected_LE.any() else np.nan,
                (risk_diff(counts, unsafe_P, "micro") > 0.05).sum(),
            )
        )
    return Performance(*(float(value) for value in np.mean(np.array(rows, np.float64), axis=0)))


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals over simulated batches without an effect, where the true difference is 0."""

    coverage: float
    """Share of experts whose interval holds 0."""
    length: float
    """Mean over experts."""


def intervals(scenario: Scenario, *, num_batches: int, num_resamples: int, with_pairs: bool, seed: int) -> Intervals:
    """Coverage and length of bootstrap intervals; without `with_pairs` pairs are taken apart."""
    assert scenario.effect == 0
    rows = []
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, batch])
        counts, unsafe_P, strata_P = simulate(scenario, generator)
        low_LE, high_LE = bootstrap_interval(
            counts,
            unsafe_P,
            strata_P if with_pairs else np.zeros_like(strata_P),
            estimate="micro",
            num_resamples=num_resamples,
            confidence=0.95,
            generator=generator,
        )
        rows.append((((low_LE <= 0) & (high_LE >= 0)).mean(), (high_LE - low_LE).mean()))
    return Intervals(*(float(value) for value in np.mean(rows, axis=0)))
