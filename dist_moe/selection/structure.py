"""The structure that older scripts expect of an analysis: lists and masks of each batch, a table and a list of all.

It is written as Parquet and .npz, with one file of facts beside them from which the same mask store can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from dist_moe.artefacts import EXACT, Written, check_files, read_sealed, write_sealed
from dist_moe.data.index import BatchIndex
from dist_moe.errors import UserError, refused_by_library
from dist_moe.rules import from_facts
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.stored import stored_rule
from dist_moe.stats.frames import lists_frame, select_head
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store.mask_plan import MaskPlan, MaskResults
from dist_moe.store.plan import HASHES
from dist_moe.store.read import MaskStore
from dist_moe.store.write import write_store

Experts = tuple[tuple[int, int], ...]
LISTS, MASKS, TABLE, GLOBAL = (
    "batch_unsafe_experts.parquet",
    "batch_expert_masks.npz",
    "aggregated_risk_diff.parquet",
    "global_unsafe_experts.parquet",
)
FACTS, KIND, VERSION = "facts.json", "dist_moe-older-structure", 1
ADVICE = "restore it from a copy, or write it again with `dist-moe store export`"


@dataclass(frozen=True, slots=True, kw_only=True)
class OlderStructure:
    """A mask store in the older scripts' words."""

    batch_unsafe_experts: tuple[Experts, ...]
    """(layer, expert) of each batch's unsafe experts, largest risk_diff first."""
    batch_expert_masks: np.ndarray
    """bool [B, L, E]: the same as masks."""
    aggregated_risk_diff: pd.DataFrame
    """All experts with their rates over all prompts, largest risk_diff first; columns as in `risk_frame`."""
    global_unsafe_experts: Experts
    """Those of this table that the rule's threshold and top_k (or their defaults) select."""

    @staticmethod
    def of(store: MaskStore) -> OlderStructure:
        """Reads the counts, too."""
        return OlderStructure(
            batch_unsafe_experts=tuple(tuple(store.unsafe_experts(batch)) for batch in range(len(store.batches))),
            batch_expert_masks=store.masks[:],
            aggregated_risk_diff=store.counts.aggregated,
            global_unsafe_experts=_pairs(overall(store)),
        )

    @property
    def as_dict(self) -> dict[str, Any]:
        """As the older scripts' pickles have it, without their other keys."""
        return {
            "batch_unsafe_experts": [list(pairs) for pairs in self.batch_unsafe_experts],
            "batch_expert_masks": list(self.batch_expert_masks),
            "aggregated_risk_diff": self.aggregated_risk_diff,
            "global_unsafe_experts": list(self.global_unsafe_experts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the mask store has besides, but for its statistics; and the digests of the files."""

    __pydantic_config__ = EXACT

    batch_ids: list[str]
    categories: list[str]
    batch_prompts: list[tuple[int, int]]
    """Safe and unsafe prompts of each batch."""
    batch_signs: list[tuple[int, int, int]]
    num_experts: int
    experts_per_token: int
    counted_tokens: str
    layer_names: list[str]
    provenance: dict[str, Any]
    selection_rule: dict[str, Any]
    counts: str
    revision: int
    previous: str | None
    files: dict[str, Written]


def overall(store: MaskStore) -> pd.DataFrame:
    """The first rows of `store.counts.aggregated`: those that the store's threshold and top_k (or their defaults)
    select."""
    rule = stored_rule(store).like(ThresholdTopK)
    return select_head(store.counts.aggregated, rule.threshold, rule.top_k)


def write_structure(directory: Path, store: MaskStore) -> None:
    """Write the structure of a mask store into an empty directory."""
    found = OlderStructure.of(store)
    lists_frame(found.batch_unsafe_experts).to_parquet(directory / LISTS, index=False)
    np.savez_compressed(directory / MASKS, batch_expert_masks=found.batch_expert_masks)
    found.aggregated_risk_diff.to_parquet(directory / TABLE, index=False)
    lists_frame([found.global_unsafe_experts]).drop(columns="batch").to_parquet(directory / GLOBAL, index=False)
    facts = Facts(
        batch_ids=list(store.batch_ids),
        categories=list(store.categories),
        batch_prompts=[(safe, unsafe) for safe, unsafe in store.arms_B2.tolist()],
        batch_signs=[(above, below, zero) for above, below, zero in store.signs_B3.tolist()],
        num_experts=store.num_experts,
        experts_per_token=store.experts_per_token,
        counted_tokens=store.counted_tokens,
        layer_names=list(store.layer_names),
        provenance=dict(store.provenance),
        selection_rule=dict(store.selection_rule),
        counts=store.counts_digest,
        revision=store.revision,
        previous=store.previous,
        files={name: Written.of(directory / name) for name in (LISTS, MASKS, TABLE, GLOBAL)},
    )
    write_sealed(directory / FACTS, KIND, VERSION, asdict(facts))


def read_structure(directory: Path) -> tuple[OlderStructure, Facts]:
    """Read what `write_structure` has written.

    Raises:
        UserError: a file is missing, has changed, or does not fit the others.
    """
    facts, _ = read_sealed(directory / FACTS, KIND, VERSION, Facts, ADVICE)
    check_files(directory, facts.files, (FACTS,), ADVICE)
    with refused_by_library(f"{directory}: a file cannot be read", ADVICE):
        lists, table, all_prompts = (pd.read_parquet(directory / name) for name in (LISTS, TABLE, GLOBAL))
        with np.load(directory / MASKS, allow_pickle=False) as archive:
            masks_BLE = archive["batch_expert_masks"]
        of_batch = {batch: _pairs(part) for batch, part in lists.groupby("batch")}
        found = tuple(of_batch.get(batch, ()) for batch in range(len(facts.batch_ids)))
        structure = OlderStructure(
            batch_unsafe_experts=found,
            batch_expert_masks=masks_BLE,
            aggregated_risk_diff=table,
            global_unsafe_experts=_pairs(all_prompts),
        )
    _require_consistent(directory, structure, facts)
    return structure, facts


def _require_consistent(directory: Path, structure: OlderStructure, facts: Facts) -> None:
    """Refuse files whose digests are right, but that do not fit together."""
    masks_BLE, num_batches = structure.batch_expert_masks, len(facts.batch_ids)
    shape = (num_batches, len(facts.layer_names), facts.num_experts)
    if masks_BLE.dtype != np.bool_ or masks_BLE.shape != shape:
        raise UserError(
            f"{directory / MASKS} holds {masks_BLE.dtype} {masks_BLE.shape}, expected bool {shape}: {ADVICE}"
        )
    listed = [sorted(pairs) for pairs in structure.batch_unsafe_experts]
    if listed != [[(layer, expert) for layer, expert in np.argwhere(mask_LE).tolist()] for mask_LE in masks_BLE]:
        raise UserError(f"{directory}: {LISTS} and {MASKS} are not of the same experts: {ADVICE}")
    from_facts(facts.selection_rule, str(directory / FACTS))
    sizes = [sum(signs) for signs in facts.batch_signs]
    is_revision = facts.revision > 0 and facts.previous is not None
    if (
        not num_batches == len(facts.categories) == len(facts.batch_prompts)
        or sizes != masks_BLE.sum(axis=(1, 2)).tolist()
        or min((number for each in facts.batch_prompts for number in each), default=0) < 0
        or not set(HASHES) <= facts.provenance.keys()
        or not (is_revision or (facts.revision == 0 and facts.previous is None))
    ):
        raise UserError(f"{directory / FACTS}: its facts do not fit together, or not the masks: {ADVICE}")


def write_masks_of(path: Path, structure: OlderStructure, facts: Facts) -> None:
    """Write the mask store that the structure is of, without its statistics."""
    arms = np.array(facts.batch_prompts).reshape(-1, 2)
    index = BatchIndex.of_sizes(
        arms.sum(axis=1).tolist(),
        ids=facts.batch_ids,
        categories=facts.categories,
        prompt_ids=[""] * int(arms.sum()),  # a mask store does not keep them
        unsafe=np.repeat(np.tile([False, True], len(arms)), arms.ravel()).tolist(),
        kinship=None,
    )
    plan = MaskPlan(
        index=index,
        num_experts=facts.num_experts,
        experts_per_token=facts.experts_per_token,
        counted_tokens=facts.counted_tokens,
        layer_names=tuple(facts.layer_names),
        provenance=facts.provenance,
        selection_rule=facts.selection_rule,
        counts_digest=facts.counts,
        revision=facts.revision,
        previous=facts.previous,
    )
    signs_B3 = np.array(facts.batch_signs, np.int32).reshape(-1, 3)
    write_store(path, plan, MaskResults(masks=ExpertMasks(structure.batch_expert_masks), signs_B3=signs_B3))


def _pairs(table: pd.DataFrame) -> Experts:
    ordered = table.sort_values("rank", kind="stable") if "rank" in table else table
    pairs: Mapping[str, list[int]] = {name: ordered[name].tolist() for name in ("layer", "expert")}
    return cast(Experts, tuple(zip(pairs["layer"], pairs["expert"], strict=True)))
