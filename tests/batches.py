"""Makes small batches, and reads what is in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dist_moe.data.batches import BatchPlan
from dist_moe.data.index import BatchIndex
from dist_moe.stats.design import Kinship


class Batch(NamedTuple):
    id: str
    category: str
    rows: list[int]
    """Indices of the dealt prompts."""


def batches_of(plan: BatchPlan) -> list[Batch]:
    index = plan.index
    stops = index.starts_B1.tolist()
    return [
        Batch(index.ids[i], index.categories[i], list(plan.taken_P[stops[i] : stops[i + 1]])) for i in range(len(index))
    ]


def batch_index(
    sizes: Sequence[int], unsafe: Sequence[bool], texts: Sequence[str], pair_ids: Sequence[str | None]
) -> BatchIndex:
    """Batches of these sizes, called id0, id1, ..., of category "c"."""
    return BatchIndex.of_sizes(
        sizes,
        ids=[f"id{batch}" for batch in range(len(sizes))],
        categories=["c"] * len(sizes),
        prompt_ids=[f"row {row}" for row in range(len(texts))],
        unsafe=unsafe,
        kinship=Kinship.of_texts(texts, pair_ids, np.repeat(np.arange(len(sizes)), sizes)),
    )
