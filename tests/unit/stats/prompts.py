"""Makes small batches: prompts of different lengths, whose tokens choose k experts each."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np

from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Design, Kinship
from dist_moe.stats.evidence import Evidence, evidence
from dist_moe.stats.population import PopulationSums
from dist_moe.stats.settings import StatisticsConfig


def random_counts(seed, num_prompts, num_layers=3, num_experts=6, k=2):
    generator = np.random.default_rng(seed)
    tokens_P = generator.integers(1, 9, num_prompts)
    likes_PLE = generator.dirichlet(np.full(num_experts, 0.5), (num_prompts, num_layers)) + 0.02
    # the k largest of log p + Gumbel noise are k draws without replacement
    keys_PLTE = np.log(likes_PLE)[:, :, None] + generator.gumbel(size=(num_prompts, num_layers, 8, num_experts))
    chosen_PLTE = keys_PLTE >= np.partition(keys_PLTE, -k)[..., -k, None]
    is_token_PT = np.arange(8) < tokens_P[:, None]
    counts_PLE = (chosen_PLTE & is_token_PT[:, None, :, None]).sum(2)
    return RoutingCounts(counts_PLE, tokens_P, k)


def half_unsafe(num_prompts):
    return np.arange(num_prompts) >= num_prompts // 2


def kin(pair_P, cluster_P=None):
    """Of rows of one batch: pairs by number from 1, 0 for none, and clusters; without them each row is its own."""
    pair_P = np.array(pair_P)
    cluster_P = np.arange(len(pair_P)) if cluster_P is None else np.array(cluster_P)
    return Kinship(cluster_P.astype(np.uint64), pair_P.astype(np.uint64), np.zeros(len(pair_P), np.int64))


def paired(unsafe_P, pair_P) -> Design:
    """The design of rows that each have a prompt of their own."""
    return kin(pair_P).design(unsafe_P)


def batch_of(seed, num_prompts=16, index=0, run_seed=0, shape=(3, 6, 2), **settings) -> Evidence:
    return evidence(
        random_counts(seed, num_prompts, *shape),
        half_unsafe(num_prompts),
        Kinship.none(np.zeros(num_prompts, np.int64)),
        StatisticsConfig(**{"permutations": 200, "resamples": 40, "null_draws": 20} | settings),
        run_seed,
        index,
    )


def populated(batches, choose=lambda batch: None) -> list[Evidence]:
    """The same batches, with their common union: of what `choose` selects in each."""
    population = reduce(add, (PopulationSums.of(batch, choose(batch)) for batch in batches)).population()
    return [replace(batch, population=population) for batch in batches]


def slow_risk_diff(counts, unsafe_P, rows, estimate):
    """The definition, over the given prompts (one may come several times), with exact sums."""
    arms = []
    for arm in (True, False):
        of_arm = [row for row in rows if unsafe_P[row] == arm]
        if estimate == "micro":
            tokens = sum(int(counts.tokens_P[row]) for row in of_arm)
            arms.append(sum(counts.counts_PLE[row] for row in of_arm) / tokens)
        else:
            arms.append(np.mean([counts.counts_PLE[row] / counts.tokens_P[row] for row in of_arm], axis=0))
    return arms[0] - arms[1]
