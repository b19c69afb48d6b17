"""A store small enough to compute by hand: 3 batches of one safe and one unsafe prompt, 2 layers of 4 experts, k = 2.

Risk differences (layer 0 | layer 1), and with threshold 0.05 the unsafe experts:

    batch 0 hexes    -0.6  0    0.6  0    |   0    0   0    0      L00_E02
    batch 1 hexes     0   -0.6  0.6  0    |  -0.4  0   0    0.4    L00_E02, L01_E03
    batch 2 heists    0    0    0    0    |  -0.1  0  -0.2  0.3    L01_E03
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.stats.counts import RoutingCounts, concatenate
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.order import selected
from dist_moe.stats.table import RiskTable, risk_table
from dist_moe.store import Counts, CountsPlan, MaskPlan, MaskResults, write_store

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


NO_COUNTS = "e5" * 32
"""A digest that no store has."""

TABLES = {
    "gates": (COUNTS_PLE / 8).astype(np.float32),
    "prefill_tokens": np.array([3, 1, 4, 1, 5, 9], np.int32),
}


class Contents(NamedTuple):
    """The values that a counts store and a mask store are written from."""

    counts_plan: CountsPlan
    counts: RoutingCounts
    plan: MaskPlan
    results: MaskResults

    def changed(self, **fields: Any) -> "Contents":
        """With other fields of any of them; the plans say of tables and statistics what the results have.

        The signs of other masks are those of the counts.
        """
        counts = dataclasses.replace(
            fields.pop("counts", self.counts), **_taken(fields, {"tables", "counts_PLE", "tokens_P"})
        )
        index = dataclasses.replace(self.plan.index, **_taken(fields, set(BatchIndex.__dataclass_fields__)))
        if "masks" in fields and "signs_B3" not in fields:
            fields["signs_B3"] = MaskResults.signs(fields["masks"], _risk(counts, index).risk_diff_BLE)
        results = dataclasses.replace(self.results, **_taken(fields, {"masks", "signs_B3", "statistics"}))
        of_counts = {name: fields[name] for name in fields.keys() & CountsPlan.__dataclass_fields__.keys()}
        of_masks = {name: fields[name] for name in fields.keys() & MaskPlan.__dataclass_fields__.keys()}
        assert of_counts.keys() | of_masks.keys() == fields.keys()
        return Contents(
            dataclasses.replace(self.counts_plan, index=index, tables=_kinds(counts.tables), **of_counts),
            counts,
            dataclasses.replace(self.plan, index=index, statistics=_kinds(results.statistics), **of_masks),
            results,
        )


def _risk(counts: RoutingCounts, index: BatchIndex) -> RiskTable:
    return risk_table(counts, index.unsafe_P, index.batch_of_P, len(index), index.names)


def _taken(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: fields.pop(name) for name in names & fields.keys()}


def _kinds(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int]]:
    return {name: (values.dtype.name, values.ndim) for name, values in arrays.items()}


def example_contents(top_k: int = 50) -> Contents:
    counts = RoutingCounts(COUNTS_PLE, np.array([10, 10, 10, 10, 20, 20]), 2, TABLES)
    index = BatchIndex(
        ids=BATCH_IDS,
        categories=CATEGORIES,
        starts_B1=np.array([0, 2, 4, 6]),
        prompt_ids=("p0", "p1 é", "", 'p"3', "p4", "p5\x00"),
        unsafe_P=np.array([False, True] * 3),
        cluster_P=None,
        pair_P=None,
    )
    risk = _risk(counts, index)
    rule = ThresholdTopK(threshold=0.05, top_k=top_k)
    facts: dict[str, Any] = {
        "index": index,
        "num_experts": 4,
        "experts_per_token": 2,
        "counted_tokens": "prompt",
        "layer_names": ("model.layers.1.mlp", "model.layers.2.mlp"),
        "provenance": PROVENANCE,
    }
    masks = ExpertMasks(np.array([selected(diff_LE, rule.threshold, rule.top_k) for diff_LE in risk.risk_diff_BLE]))
    return Contents(
        CountsPlan(tables=_kinds(TABLES), **facts),
        counts,
        MaskPlan(selection_rule=rule.facts, counts_digest=NO_COUNTS, **facts),
        MaskResults(masks=masks, signs_B3=MaskResults.signs(masks, risk.risk_diff_BLE)),
    )


def tiled_contents(copies: int) -> Contents:
    """The example's three batches repeated, each with its own id."""
    contents = example_contents()
    index = dataclasses.replace(
        contents.plan.index,
        ids=tuple(f"{index:016x}" for index in range(3 * copies)),
        categories=CATEGORIES * copies,
        starts_B1=np.arange(3 * copies + 1) * 2,
        prompt_ids=contents.plan.index.prompt_ids * copies,
        unsafe_P=np.tile(contents.plan.index.unsafe_P, copies),
    )
    return Contents(
        dataclasses.replace(contents.counts_plan, index=index),
        concatenate([contents.counts] * copies),
        dataclasses.replace(contents.plan, index=index),
        MaskResults(
            masks=ExpertMasks(np.tile(contents.results.masks.masks_BLE, (copies, 1, 1))),
            signs_B3=np.tile(contents.results.signs_B3, (copies, 1)),
            statistics={name: np.concatenate([v] * copies) for name, v in contents.results.statistics.items()},
        ),
    )


def write_contents(path: Path, contents: Contents) -> Path:
    """Write the masks to `path`, and the counts to counts.zarr in the same directory."""
    counts = path.parent / "counts.zarr"
    write_store(counts, contents.counts_plan, contents.counts, overwrite=True)
    write_store(path, dataclasses.replace(contents.plan, counts_digest=Counts.open(counts).digest), contents.results)
    return path


def write_example(path: Path) -> Path:
    return write_contents(path, example_contents())


def write_counts(path: Path, contents: Contents) -> Path:
    """Write only the counts."""
    write_store(path, contents.counts_plan, contents.counts)
    return path
