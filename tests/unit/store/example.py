"""A store small enough to compute by hand: 3 batches of one safe and one unsafe prompt, 2 layers of 4 experts, k = 2.

Risk differences (layer 0 | layer 1), and with threshold 0.05 the unsafe experts:

    batch 0 hexes    -0.6  0    0.6  0    |   0    0   0    0      L00_E02
    batch 1 hexes     0   -0.6  0.6  0    |  -0.4  0   0    0.4    L00_E02, L01_E03
    batch 2 heists    0    0    0    0    |  -0.1  0  -0.2  0.3    L01_E03
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.names import batch_name
from dist_moe.stats.order import selected
from dist_moe.stats.table import risk_table
from dist_moe.store import BatchResults, StorePlan, write_store
from dist_moe.store.contents import concatenate_results

CATEGORIES = ("hexes", "hexes", "heists")
BATCH_IDS = ("00aa11bb22cc33dd", "11bb22cc33dd44ee", "22cc33dd44ee55ff")
COUNTS_PLE = np.array(
    [
        [[10, 10, 0, 0], [5, 5, 5, 5]],
        [[4, 10, 6, 0], [5, 5, 5, 5]],
        [[10, 10, 0, 0], [5, 5, 5, 5]],
        [[10, 4, 6, 0], [1, 5, 5, 9]],
        [[20, 20, 0, 0], [10, 10, 10, 10]],
        [[20, 20, 0, 0], [8, 10, 6, 16]],
    ]
)
PROVENANCE = {
    "model_hash": "a1" * 32,
    "tokenizer_hash": "b2" * 32,
    "data_hash": "c3" * 32,
    "tokens_hash": "d4" * 32,
    "seed": 7,
    "batches": {"batch_size": 2, "safe_ratio": 0.5},
}


TABLES = {
    "gates": (COUNTS_PLE / 8).astype(np.float32),
    "prefill_tokens": np.array([3, 1, 4, 1, 5, 9], np.int32),
}


class Contents(NamedTuple):
    plan: StorePlan
    results: BatchResults

    def changed(self, **fields: Any) -> "Contents":
        """With other fields of either; the plan says of statistics and tables what the results have."""
        of_results = {name: fields.pop(name) for name in fields.keys() & BatchResults.__dataclass_fields__.keys()}
        results = dataclasses.replace(self.results, **of_results)
        statistics, tables = (
            {name: (values.dtype.name, values.ndim) for name, values in arrays.items()}
            for arrays in (results.statistics, results.counts.tables)
        )
        return Contents(dataclasses.replace(self.plan, statistics=statistics, tables=tables, **fields), results)


def example_contents(top_k: int = 50) -> Contents:
    counts = RoutingCounts(COUNTS_PLE, np.array([10, 10, 10, 10, 20, 20]), 2, TABLES)
    unsafe_P = np.array([False, True] * 3)
    batch_of_P = np.array([0, 0, 1, 1, 2, 2])
    names = [batch_name(index, CATEGORIES[index], BATCH_IDS[index]) for index in range(3)]
    risk = risk_table(counts, unsafe_P, batch_of_P, 3, names)
    rule = ThresholdTopK(threshold=0.05, top_k=top_k)
    plan = StorePlan(
        prompt_ids=("p0", "p1 é", "", 'p"3', "p4", "p5\x00"),
        unsafe_P=unsafe_P,
        batch_of_P=batch_of_P,
        batch_ids=BATCH_IDS,
        categories=CATEGORIES,
        num_experts=4,
        experts_per_token=2,
        selection_rule=rule.facts,
        counted_tokens="prompt",
        layer_names=("model.layers.1.mlp", "model.layers.2.mlp"),
        provenance=PROVENANCE,
        statistics={},
        tables={"gates": ("float32", 3), "prefill_tokens": ("int32", 1)},
    )
    masks = ExpertMasks(np.array([selected(diff_LE, rule.threshold, rule.top_k) for diff_LE in risk.risk_diff_BLE]))
    return Contents(plan, BatchResults(counts=counts, risk=risk, masks=masks))


def tiled_contents(copies: int) -> Contents:
    """The example's three batches over and over, with ids of their own."""
    plan, results = example_contents()
    return Contents(
        dataclasses.replace(
            plan,
            prompt_ids=plan.prompt_ids * copies,
            unsafe_P=np.tile(plan.unsafe_P, copies),
            batch_of_P=(np.arange(copies)[:, None] * 3 + plan.batch_of_P).ravel(),
            batch_ids=tuple(f"{index:016x}" for index in range(3 * copies)),
            categories=plan.categories * copies,
        ),
        concatenate_results([results] * copies),
    )


def write_example(path: Path) -> Path:
    write_store(path, *example_contents())
    return path
