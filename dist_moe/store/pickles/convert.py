"""From an older pickle to a counts store, where it has the router's logits of all prompts."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.errors import UserError
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.names import expert_name
from dist_moe.stats.table import risk_table
from dist_moe.store.counts_plan import CountsPlan
from dist_moe.store.pickles.older import Older
from dist_moe.store.plan import HASHES

UNKNOWN = "unknown: imported"


def plan_and_counts(older: Older) -> tuple[CountsPlan, RoutingCounts]:
    """What a counts store is written from: counts from the file's logits.

    Raises:
        UserError: the file has no logits of the prompts, they do not fit together, or an arm of a batch has none.
    """
    data, k = older.contents.get("batch_data_list"), older.contents.get("num_experts_per_tok")
    if not isinstance(data, list) or not data or type(k) is not int:
        raise UserError(
            f"{older.path} has no batch_data_list with its prompts' routing and num_experts_per_tok, so no counts "
            "can be made of it: write its tables instead (--out NAME.parquet or NAME.csv)"
        )
    all_counts, unsafe_P, batch_of_P = _prompts(older.path, data, k)
    names = [f"{older.path} batch {batch}" for batch in range(len(data))]
    risk_table(all_counts, unsafe_P, batch_of_P, len(data), names)  # for its error
    digest = hashlib.sha256(older.path.read_bytes()).hexdigest()
    index = BatchIndex(
        ids=tuple(hashlib.sha256(f"{digest} {batch}".encode()).hexdigest()[:16] for batch in range(len(data))),
        categories=(UNKNOWN,) * len(data),
        starts_B1=np.searchsorted(batch_of_P, np.arange(len(data) + 1)),
        prompt_ids=tuple(f"batch {batch} prompt {number}" for number, batch in enumerate(batch_of_P)),
        unsafe_P=unsafe_P,
        cluster_P=None,
        pair_P=None,
    )
    num_layers, num_experts = all_counts.counts_PLE.shape[1:]
    plan = CountsPlan(
        index=index,
        num_experts=num_experts,
        experts_per_token=k,
        counted_tokens="generated",
        layer_names=tuple(f"layer {layer}" for layer in range(num_layers)),
        provenance={
            **dict.fromkeys(HASHES, UNKNOWN),
            "imported_from": older.path.name,
            "imported_sha256": digest,
        },
    )
    return plan, all_counts


def _prompts(path: Path, data: list[Any], k: int) -> tuple[RoutingCounts, np.ndarray, np.ndarray]:
    """Of all batches' prompts: their counts, bool [P] whether they are unsafe, and int [P] their batches."""
    counts, unsafe, batch_of = [], [], []
    for batch, item in enumerate(data):
        for arm, key in enumerate(("safe_routings", "unsafe_routings")):
            for logits_LTE in item[key] if isinstance(item, dict) and isinstance(item.get(key), list) else ():
                counts.append(_counts(path, batch, logits_LTE, k))
                unsafe.append(bool(arm))
                batch_of.append(batch)
    if len({counts_LE.shape for counts_LE, _ in counts}) != 1:
        raise UserError(f"{path}: the prompts' routings have different numbers of layers or experts, or there are none")
    counts_PLE, tokens_P = np.stack([counts_LE for counts_LE, _ in counts]), np.array([tokens for _, tokens in counts])
    return RoutingCounts(counts_PLE, tokens_P, k), np.array(unsafe), np.array(batch_of)


def _counts(path: Path, batch: int, logits_LTE: Any, k: int) -> tuple[np.ndarray, int]:
    if not isinstance(logits_LTE, np.ndarray) or logits_LTE.ndim != 3 or not 0 < k <= logits_LTE.shape[2]:
        raise UserError(f"{path} batch {batch}: routing is no array [layers, tokens, experts] with {k} experts a token")
    if logits_LTE.dtype.kind not in "fiu":
        raise UserError(f"{path} batch {batch}: routing is {logits_LTE.dtype}, expected numbers")
    num_layers, num_tokens, num_experts = logits_LTE.shape
    wrong = np.argwhere(~np.isfinite(logits_LTE))
    if len(wrong):
        layer, token, expert = wrong[0].tolist()
        value = logits_LTE[layer, token, expert]
        raise UserError(f"{path} batch {batch}: routing is {value} for token {token}, {expert_name(layer, expert)}")
    counts_LE = np.zeros((num_layers, num_experts), np.int64)
    for layer, logits_TE in enumerate(logits_LTE):
        # Of equal logits the lower expert; the older code took whichever its sort left there.
        chosen_Tk = np.argsort(-logits_TE.astype(np.float32), axis=1, kind="stable")[:, :k]
        counts_LE[layer] = np.bincount(chosen_Tk.ravel(), minlength=num_experts)
    return counts_LE, num_tokens
