"""A store small enough to compute by hand: 3 batches of one safe and one unsafe prompt, 2 layers of 4 experts, k = 2.

Risk differences (layer 0 | layer 1), and with threshold 0.05 the unsafe experts:

    batch 0 hexes    -0.6  0    0.6  0    |   0    0   0    0      L00_E02
    batch 1 hexes     0   -0.6  0.6  0    |  -0.4  0   0    0.4    L00_E02, L01_E03
    batch 2 heists    0    0    0    0    |  -0.1  0  -0.2  0.3    L01_E03
"""

import dataclasses
from pathlib import Path

import numpy as np

from dist_moe.risk.counts import RoutingCounts, concatenate
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.names import batch_name
from dist_moe.risk.select import SelectionRule, selected
from dist_moe.risk.table import RiskTable, risk_table
from dist_moe.store import StoreContents, write_store

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
    "seed": 7,
    "batches": {"batch_size": 2, "safe_ratio": 0.5},
}


TABLES = {
    "gates": (COUNTS_PLE / 8).astype(np.float32),
    "prefill_tokens": np.array([3, 1, 4, 1, 5, 9], np.int32),
}


def example_contents(top_k: int = 50) -> StoreContents:
    counts = RoutingCounts(COUNTS_PLE, np.array([10, 10, 10, 10, 20, 20]), 2, TABLES)
    unsafe_P = np.array([False, True] * 3)
    batch_of_P = np.array([0, 0, 1, 1, 2, 2])
    names = [batch_name(index, CATEGORIES[index], BATCH_IDS[index]) for index in range(3)]
    risk = risk_table(counts, unsafe_P, batch_of_P, 3, names)
    rule = SelectionRule(threshold=0.05, top_k=top_k)
    return StoreContents(
        counts=counts,
        prompt_ids=("p0", "p1 é", "", 'p"3', "p4", "p5\x00"),
        unsafe_P=unsafe_P,
        batch_of_P=batch_of_P,
        batch_ids=BATCH_IDS,
        categories=CATEGORIES,
        risk=risk,
        masks=ExpertMasks(np.array([selected(diff_LE, rule.threshold, rule.top_k) for diff_LE in risk.risk_diff_BLE])),
        rule=rule,
        counted_tokens="prompt",
        layer_names=("model.layers.1.mlp", "model.layers.2.mlp"),
        provenance=PROVENANCE,
    )


def tiled_contents(copies: int) -> StoreContents:
    """The example's three batches over and over, with ids of their own."""
    one = example_contents()
    return dataclasses.replace(
        one,
        counts=concatenate([one.counts] * copies),
        prompt_ids=one.prompt_ids * copies,
        unsafe_P=np.tile(one.unsafe_P, copies),
        batch_of_P=(np.arange(copies)[:, None] * 3 + one.batch_of_P).ravel(),
        batch_ids=tuple(f"{index:016x}" for index in range(3 * copies)),
        categories=one.categories * copies,
        risk=RiskTable(
            np.tile(one.risk.a_safe_n_BLE, (copies, 1, 1)), np.tile(one.risk.a_unsafe_n_BLE, (copies, 1, 1))
        ),
        masks=ExpertMasks(np.tile(one.masks.masks_BLE, (copies, 1, 1))),
    )


def write_example(path: Path) -> Path:
    write_store(path, example_contents())
    return path
