"""Routing counts of made-up prompts, to learn how often the tests are wrong and what they can find.

Prompts differ on their own: each has its own logits, so that tokens of one prompt go to the same experts. That spread
is what makes 8 + 8 prompts noisy.
"""

from dataclasses import dataclass

import numpy as np

from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import risk_diff
from dist_moe.risk.permutation import permutation_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
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
    effect: float = 0.0
    """What unsafe prompts add to the logits of the affected experts, the first `num_affected` of each layer."""
    num_affected: int = 2


def simulate(population: Population, generator: np.random.Generator) -> tuple[RoutingCounts, np.ndarray]:
    """Counts of one batch, safe prompts first, and unsafe_P.

    Token logits = expert (normal, 1) + prompt (normal, spread) + effect + Gumbel noise: the k largest are k draws
    without replacement from the softmax (Gumbel-top-k).
    """
    num_prompts = population.num_safe + population.num_unsafe
    unsafe_P = np.arange(num_prompts) >= population.num_safe
    shape_LE = population.num_layers, population.num_experts
    expert_LE = generator.normal(size=shape_LE)
    tokens_P = generator.integers(population.tokens[0], population.tokens[1] + 1, size=num_prompts)
    counts_PLE = np.empty((num_prompts, *shape_LE), np.int64)
    for counts_LE, unsafe, num_tokens in zip(counts_PLE, unsafe_P, tokens_P, strict=True):
        logits_LE = expert_LE + population.spread * generator.normal(size=shape_LE)
        logits_LE[:, : population.num_affected] += population.effect * unsafe
        noisy_TLE = logits_LE + generator.gumbel(size=(num_tokens, *shape_LE))
        chosen_TLk = np.argpartition(-noisy_TLE, population.experts_per_token - 1, axis=2)
        chosen_TLE = np.zeros(noisy_TLE.shape, np.bool_)
        np.put_along_axis(chosen_TLE, chosen_TLk[..., : population.experts_per_token], True, axis=2)
        counts_LE[:] = chosen_TLE.sum(axis=0)
    return RoutingCounts(counts_PLE, tokens_P.astype(np.int64), population.experts_per_token), unsafe_P


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
    population: Population, *, num_batches: int, num_permutations: int, alpha: float, seed: int
) -> Performance:
    """Error rates and power of the permutation test. An expert counts as affected if `effect` was added to it."""
    affected_LE = np.zeros((population.num_layers, population.num_experts), np.bool_)
    affected_LE[:, : population.num_affected] = population.effect > 0
    rows = []
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, batch])
        counts, unsafe_P = simulate(population, generator)
        test = permutation_test(
            counts,
            unsafe_P,
            np.zeros(len(unsafe_P), np.int64),
            num_permutations=num_permutations,
            estimate="micro",
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
