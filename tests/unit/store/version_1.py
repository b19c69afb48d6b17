"""A store of format version 1, written with zarr-python as the documentation of that version said."""

import hashlib
import json
from pathlib import Path

import numpy as np
import zarr

from dist_moe.store import BatchResults, StorePlan


def write_version_1(path: Path, plan: StorePlan, results: BatchResults) -> Path:
    counts, risk, masks = results.counts, results.risk, results.masks
    texts = {
        "prompt_ids": plan.prompt_ids,
        "batch_ids": plan.batch_ids,
        "batch_categories": plan.categories,
        "batch_mask_hashes": [masks.hash(batch) for batch in range(len(masks.masks_BLE))],
    }
    arrays = {
        "prompt_unsafe": plan.unsafe_P,
        "prompt_batch": plan.batch_of_P.astype(np.int32),
        "prompt_tokens": counts.tokens_P,
        "prompt_counts": counts.counts_PLE.astype(np.int32),
        "batch_num_unsafe_experts": masks.num_experts_B.astype(np.int32),
        "a_safe_n": risk.a_safe_n_BLE,
        "a_unsafe_n": risk.a_unsafe_n_BLE,
        "risk_diff": risk.risk_diff_BLE,
        "masks": masks.masks_BLE,
        **{name: np.frombuffer(json.dumps(list(values)).encode(), np.uint8) for name, values in texts.items()},
    }
    attributes = {
        "format": "dist_moe.masks",
        "format_version": 1,
        "dist_moe_version": "0.1.0",
        "selection_rule": {name: getattr(plan.rule, name) for name in ("name", "threshold", "top_k")},
        "counted_tokens": plan.counted_tokens,
        "experts_per_token": counts.experts_per_token,
        "layer_names": list(plan.layer_names),
        "provenance": dict(plan.provenance),
    }
    group = zarr.create_group(store=path, zarr_format=3, attributes=attributes)
    for name, data in arrays.items():
        chunks, shards = data.shape, None
        if data.ndim == 3:
            rows = 16 if name == "prompt_counts" else 1
            chunks = (rows, *data.shape[1:])
            shards = (rows * min(256, -(-len(data) // rows)), *data.shape[1:])
        group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=chunks, shards=shards)[:] = data
    digests = {name: array_digest(path / name) for name in arrays}
    root = json.loads((path / "zarr.json").read_text())
    text = json.dumps([root, digests], sort_keys=True)
    group.attrs["complete"] = {"arrays": digests, "digest": hashlib.sha256(text.encode()).hexdigest()}
    return path


def array_digest(directory: Path) -> str:
    files = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    lines = [f"{name}\0{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\n" for name in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
