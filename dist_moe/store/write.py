"""Writing a mask store: in a directory beside its place, the completeness marker last, then one rename.

Chunks: one batch (16 prompts) a chunk, so that reading one batch's mask decodes nothing else; 256 chunks a shard, so
that 100,000 batches are some hundred files an array. The largest array, counts, is stored as int32.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dist_moe import __version__
from dist_moe.files import atomic_directory
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.select import SelectionRule
from dist_moe.risk.table import RiskTable
from dist_moe.store.layout import (
    FORMAT,
    ROOT_METADATA,
    VERSION,
    array_digest,
    encode_texts,
    root_digest,
    statistic_array,
)

CHUNKS_PER_SHARD = 256
PROMPTS_PER_CHUNK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContents:
    """All that one analysis found, and where it came from."""

    counts: RoutingCounts
    """Of all P prompts."""
    prompt_ids: tuple[str, ...]
    unsafe_P: np.ndarray
    """bool [P]: the prompts' labels."""
    batch_of_P: np.ndarray
    """int [P]: index of the batch that a prompt is in."""
    batch_ids: tuple[str, ...]
    categories: tuple[str, ...]
    """Category of each batch."""
    risk: RiskTable
    """Of the B batches."""
    masks: ExpertMasks
    """Of the B batches."""
    rule: SelectionRule
    counted_tokens: str
    """prompt, completion or all."""
    layer_names: tuple[str, ...]
    """The model's module name of each MoE layer, L of them."""
    provenance: Mapping[str, Any]
    """JSON values; at least model_hash, tokenizer_hash and data_hash, and whatever else made the batches."""
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further results by name (q-values, stability, ...), each float32 or int32, of shape [B, L, E] or [B]."""

    def __post_init__(self) -> None:
        num_prompts, num_layers, num_experts = self.counts.counts_PLE.shape
        assert len(self.prompt_ids) == num_prompts
        assert self.unsafe_P.shape == self.batch_of_P.shape == (num_prompts,)
        assert self.unsafe_P.dtype == np.bool_
        assert len(self.layer_names) == num_layers
        assert len(self.batch_ids) == len(self.categories)
        assert self.masks.masks_BLE.shape == (len(self.batch_ids), num_layers, num_experts)
        assert self.risk.a_safe_n_BLE.shape == self.masks.masks_BLE.shape
        assert {"model_hash", "tokenizer_hash", "data_hash"} <= self.provenance.keys()
        for name, values in self.statistics.items():
            assert name.isidentifier(), f"{name!r} cannot be the name of an array"
            assert values.dtype in (np.float32, np.int32), f"{name} is {values.dtype}"
            assert values.shape in (self.masks.masks_BLE.shape, (len(self.batch_ids),)), f"{name} is {values.shape}"


def write_store(path: Path, contents: StoreContents, *, overwrite: bool = False) -> None:
    """Write a store that appears at `path` complete, or not at all.

    Raises:
        UserError: `path` exists, and `overwrite` is false.
    """
    with atomic_directory(path, overwrite=overwrite) as directory:
        group = zarr.create_group(store=directory, zarr_format=3, attributes=_attributes(contents))
        arrays = _arrays(contents)
        for name, data in arrays.items():
            _write_array(group, name, data)
        _mark_complete(group, directory, {name: array_digest(directory / name) for name in arrays})


def _attributes(contents: StoreContents) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "dist_moe_version": __version__,
        "selection_rule": dataclasses.asdict(contents.rule),
        "counted_tokens": contents.counted_tokens,
        "experts_per_token": contents.counts.experts_per_token,
        "layer_names": list(contents.layer_names),
        "statistics": sorted(contents.statistics),
        "provenance": dict(contents.provenance),
    }


def _arrays(contents: StoreContents) -> dict[str, np.ndarray]:
    counts, risk, masks = contents.counts, contents.risk, contents.masks
    assert counts.tokens_P.max() <= np.iinfo(np.int32).max
    return {
        "prompt_ids": encode_texts(contents.prompt_ids),
        "prompt_unsafe": contents.unsafe_P,
        "prompt_batch": contents.batch_of_P.astype(np.int32),
        "prompt_tokens": counts.tokens_P,
        "prompt_counts": counts.counts_PLE.astype(np.int32),
        "batch_ids": encode_texts(contents.batch_ids),
        "batch_categories": encode_texts(contents.categories),
        "batch_mask_hashes": encode_texts([masks.hash(batch) for batch in range(len(masks.masks_BLE))]),
        "batch_num_unsafe_experts": masks.num_experts_B.astype(np.int32),
        "a_safe_n": risk.a_safe_n_BLE,
        "a_unsafe_n": risk.a_unsafe_n_BLE,
        "risk_diff": risk.risk_diff_BLE,
        "masks": masks.masks_BLE,
    } | {statistic_array(name): contents.statistics[name] for name in sorted(contents.statistics)}


def _write_array(group: zarr.Group, name: str, data: np.ndarray) -> None:
    chunks: tuple[int, ...] = data.shape
    shards: tuple[int, ...] | None = None
    if data.ndim == 3:
        rows = PROMPTS_PER_CHUNK if name == "prompt_counts" else 1
        num_chunks = -(-data.shape[0] // rows)
        chunks = (rows, *data.shape[1:])
        shards = (rows * min(CHUNKS_PER_SHARD, num_chunks), *data.shape[1:])
    array = group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=chunks, shards=shards)
    array[:] = data


def _mark_complete(group: zarr.Group, directory: Path, array_digests: dict[str, str]) -> None:
    root = json.loads((directory / ROOT_METADATA).read_text(encoding="utf-8"))
    group.attrs["complete"] = {"arrays": array_digests, "digest": root_digest(root, array_digests)}
