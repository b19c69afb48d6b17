"""Routing counts of made-up prompts, to learn how often the tests are wrong and what they can find.

Prompts differ on their own: each has its own logits, so that tokens of one prompt go to the same experts, and so do all
rows of it. That spread is what makes 8 + 8 prompts noisy.
"""

from dataclasses import dataclass

import numpy as np

from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship
from dist_moe.stats.estimates import bootstrap_interval, risk_diff
from dist_moe.stats.permutation import Statistic, permutation_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """OLMoE's shape by default."""

    num_layers: int = 16
    num_experts: int = 64
    experts_per_token: int = 8
    num_safe: int = 8
    """Prompts."""
    num_unsafe: int = 8
    num_both: int = 0
    """Prompts with rows in both arms, on top of these."""
    safe_rows: tuple[int, int] = (1, 1)
    """Fewest and most rows of a safe prompt, uniform."""
    unsafe_rows: tuple[int, int] = (1, 1)
    tokens: tuple[int, int] = (16, 64)
    """Fewest and most tokens of a row, uniform."""
    spread: float = 1.0
    """Standard deviation of a prompt's own effect on each expert's logit."""
    row_spread: float = 0.0
    """Standard deviation of a row's, on top of its prompt's."""
    pair_spread: float = 0.0
    """Above 0: the i-th safe and the i-th unsafe prompt are a pair, and share such an effect on top of their own."""
    effect: float = 0.0
    """What unsafe rows add to the logits of the affected experts, the first `num_affected` of each layer."""
    num_affected: int = 2


def simulate(scenario: Scenario, generator: np.random.Generator) -> tuple[RoutingCounts, np.ndarray, Kinship]:
    """Counts of one batch, safe rows first, unsafe_P, and which rows are of one prompt or pair.

    Token logits = expert (normal, 1) + prompt (normal, spread) + row (normal, row_spread) + pair (normal, pair_spread)
    + effect + Gumbel noise: the k largest are k draws without replacement from the softmax (Gumbel-top-k).
    """
    shape_LE = scenario.num_layers, scenario.num_experts
    expert_LE = generator.normal(size=shape_LE)
    cluster_P, unsafe_P = _rows(scenario, generator)
    pair_P, shared = np.zeros(len(cluster_P), np.uint64), {}
    if scenario.pair_spread:
        assert scenario.num_safe == scenario.num_unsafe
        assert not scenario.num_both
        pair_P = (cluster_P % scenario.num_safe + 1).astype(np.uint64)
        of_pairs = scenario.pair_spread * generator.normal(size=(scenario.num_safe, *shape_LE))
        shared = dict(enumerate(of_pairs, 1))
    tokens_P = generator.integers(scenario.tokens[0], scenario.tokens[1] + 1, size=len(cluster_P))
    own: dict[int, np.ndarray] = {}
    counts_PLE = np.empty((len(cluster_P), *shape_LE), np.int64)
    for counts_LE, cluster, pair, unsafe, num_tokens in zip(
        counts_PLE, cluster_P.tolist(), pair_P.tolist(), unsafe_P, tokens_P, strict=True
    ):
        if cluster not in own:
            own[cluster] = scenario.spread * generator.normal(size=shape_LE)
        logits_LE = expert_LE + own[cluster] + shared.get(pair, 0.0)
        if scenario.row_spread:
            logits_LE += scenario.row_spread * generator.normal(size=shape_LE)
        logits_LE[:, : scenario.num_affected] += scenario.effect * unsafe
        noisy_TLE = logits_LE + generator.gumbel(size=(num_tokens, *shape_LE))
        chosen_TLk = np.argpartition(-noisy_TLE, scenario.experts_per_token - 1, axis=2)
        chosen_TLE = np.zeros(noisy_TLE.shape, np.bool_)
        np.put_along_axis(chosen_TLE, chosen_TLk[..., : scenario.experts_per_token], True, axis=2)
        counts_LE[:] = chosen_TLE.sum(axis=0)
    counts = RoutingCounts(counts_PLE, tokens_P.astype(np.int64), scenario.experts_per_token)
    return counts, unsafe_P, Kinship(cluster_P.astype(np.uint64), pair_P, np.zeros(len(cluster_P), np.int64))


def _rows(scenario: Scenario, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's prompt, and its label."""
    num_alone = scenario.num_safe + scenario.num_unsafe
    both = np.arange(num_alone, num_alone + scenario.num_both)
    arms = (
        (np.r_[0 : scenario.num_safe, both], scenario.safe_rows),
        (np.r_[scenario.num_safe : num_alone, both], scenario.unsafe_rows),
    )
    clusters = []
    for prompts, (fewest, most) in arms:
        sizes = fewest if fewest == most else generator.integers(fewest, most + 1, size=len(prompts))
        clusters.append(np.repeat(prompts, sizes))
    return np.concatenate(clusters), np.arange(sum(map(len, clusters))) >= len(clusters[0])


@dataclass(frozen=True, slots=True)
class Performance:
    """Over simulated batches; `family` calls family-wise p <= alpha, `fdr` calls q <= alpha."""

    expert_error: float
    """Mean share of the experts that are not affected whose own p is at most alpha."""
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
    scenario: Scenario,
    *,
    num_batches: int,
    num_permutations: int,
    alpha: float,
    statistic: Statistic,
    seed: int,
    as_rows: bool = False,
) -> Performance:
    """Error rates and power of the permutation test. An expert counts as affected if `effect` was added to it.

    With `as_rows` the test is not told which rows are of one prompt.
    """
    affected_LE = np.zeros((scenario.num_layers, scenario.num_experts), np.bool_)
    affected_LE[:, : scenario.num_affected] = scenario.effect > 0
    rows = []
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, batch])
        counts, unsafe_P, kinship = simulate(scenario, generator)
        test = permutation_test(
            counts,
            unsafe_P,
            (Kinship.none(kinship.batch_P) if as_rows else kinship).design(unsafe_P),
            num_permutations=num_permutations,
            estimate="micro",
            statistic=statistic,
            generator=generator,
        )
        family_LE, fdr_LE = test.family_p_LE <= alpha, test.q_LE <= alpha
        rows.append(
            (
                (test.p_LE <= alpha)[~affected_LE].mean(),
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


def intervals(scenario: Scenario, *, num_batches: int, num_resamples: int, as_rows: bool, seed: int) -> Intervals:
    """Coverage and length of bootstrap intervals; with `as_rows` pairs and rows of one prompt are taken apart."""
    assert scenario.effect == 0
    rows = []
    for batch in range(num_batches):
        generator = np.random.default_rng([seed, batch])
        counts, unsafe_P, kinship = simulate(scenario, generator)
        low_LE, high_LE = bootstrap_interval(
            counts,
            unsafe_P,
            (Kinship.none(kinship.batch_P) if as_rows else kinship).design(unsafe_P),
            estimate="micro",
            num_resamples=num_resamples,
            confidence=0.95,
            generator=generator,
        )
        rows.append((((low_LE <= 0) & (high_LE >= 0)).mean(), (high_LE - low_LE).mean()))
    return Intervals(*(float(value) for value in np.mean(rows, axis=0)))
