"""The attribute `arms` of a counts store: other differences between safe and unsafe prompts than risk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.stats.arms import arm_difference
from dist_moe.stats.design import Kinship
from dist_moe.stats.permutation import benjamini_hochberg

LEVEL = 0.05
MOST_BATCHES = 1000
"""Up to this number of batches, each is tested on its own."""


def arm_facts(index: BatchIndex, tokens_P: np.ndarray, template_P: np.ndarray | None, seed: int) -> dict[str, Any]:
    """The attribute `arms` (see docs/formats.md).

    Args:
        index: which rows are in which batch, with what label.
        tokens_P: int [P], number of counted tokens of each row.
        template_P: int [P], number of prompt tokens that belong to the chat template alone; None if unknown.
        seed: of the permutations of labels.
    """
    counted_P = tokens_P > 0
    kinship, unsafe_P = index.kinship.of(counted_P), index.unsafe_P[counted_P]
    facts: dict[str, Any] = {"level": LEVEL}
    if index.is_kinship_known:
        facts |= _prompts(kinship, unsafe_P)
    weight_P = tokens_P[counted_P].astype(np.float64)
    measures = {"tokens": (weight_P, np.ones(len(weight_P)))}
    if template_P is not None:
        measures["template_share"] = (template_P[counted_P].astype(np.float64), weight_P)
    if unsafe_P.any() and not unsafe_P.all():
        for name, (value_P, share_of_P) in measures.items():
            generator = np.random.default_rng([seed, *name.encode()])
            found = arm_difference(value_P, share_of_P, unsafe_P, kinship.design(unsafe_P), generator)
            batches = _batches_that_differ(value_P, share_of_P, unsafe_P, kinship, generator)
            facts[name] = {key: float(value) for key, value in asdict(found).items()} | {"batches": batches}
    return facts


def _prompts(kinship: Kinship, unsafe_P: np.ndarray) -> dict[str, Any]:
    """Numbers of prompts, of prompts and rows in both arms, and of batches with a single prompt in an arm."""
    safe, unsafe = (np.unique(kinship.cluster_P[arm_P]) for arm_P in (~unsafe_P, unsafe_P))
    both = np.intersect1d(safe, unsafe)
    of_arms = np.stack([2 * kinship.batch_P.astype(np.uint64) + unsafe_P.astype(np.uint64), kinship.cluster_P], axis=1)
    arms, number = np.unique(np.unique(of_arms, axis=0)[:, 0], return_counts=True)
    return {
        "prompts": len(np.union1d(safe, unsafe)),
        "prompts_in_both_arms": len(both),
        "rows_of_prompts_in_both_arms": int(np.isin(kinship.cluster_P, both).sum()),
        "batches_with_one_prompt_in_an_arm": len(np.unique(arms[number == 1] // 2)),
    }


def _batches_that_differ(
    value_P: np.ndarray, weight_P: np.ndarray, unsafe_P: np.ndarray, kinship: Kinship, generator: np.random.Generator
) -> list[int] | None:
    """Batches whose arms differ, at a false discovery rate of LEVEL; None if there are too many to test."""
    batches, starts = np.unique(kinship.batch_P, return_index=True)
    if len(batches) > MOST_BATCHES:
        return None
    p_B = np.ones(len(batches))
    for index, rows in enumerate(map(slice, starts, [*starts[1:], len(unsafe_P)])):
        labels_P = unsafe_P[rows]
        if labels_P.any() and not labels_P.all():
            design = kinship.of(rows).design(labels_P)
            p_B[index] = arm_difference(value_P[rows], weight_P[rows], labels_P, design, generator).p
    return [int(batch) for batch in batches[benjamini_hochberg(p_B) <= LEVEL]]


def warnings(arms: Mapping[str, Any], counted_tokens: str, num_batches: int) -> Iterator[str]:
    """Lines about differences in `arms` that may explain a difference in routing."""
    if number := arms.get("prompts_in_both_arms"):
        yield (
            f"{number} of {arms['prompts']} prompts have both safe and unsafe rows "
            f"({arms['rows_of_prompts_in_both_arms']} rows): in tests, these rows exchange labels only with each other"
        )
    if number := arms.get("batches_with_one_prompt_in_an_arm"):
        yield (
            f"WARNING: in {number} of {num_batches} batches, all safe or all unsafe rows have the same prompt, so that "
            "nothing shows how other prompts would differ: no interval, no stability, and large p-values. Add prompts"
        )
    share = "share of counted tokens that belong to the chat template"
    for name, what, unit in (("tokens", "number of counted tokens", "{:.1f}"), ("template_share", share, "{:.0%}")):
        found = arms.get(name)
        if found is None or (found["p"] > arms["level"] and not found["batches"]):
            continue
        means = [unit.format(found[arm]) for arm in ("unsafe", "safe")]
        some = f"; also within {len(found['batches'])} of {num_batches} batches" if found["batches"] else ""
        other = " or count only the text of the messages (analysis.tokens: content)" * (
            counted_tokens in ("prompt", "all")
        )
        advice = f"match the prompts' lengths{',' if other else ''}{other}"
        yield (
            f"WARNING: unsafe and safe prompts differ in the {what}: {means[0]} against {means[1]}, "
            f"p = {found['p']:.2g} with permuted labels (level {arms['level']}){some}. Experts may differ for this "
            f"reason alone: {advice}"
        )
