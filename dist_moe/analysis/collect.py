"""Count the routing of one batch over all ranks.

The unit of work is a micro-batch of fixed rows, cut before anything is handed to ranks: whatever their number, each
forward pass sees the same tensor, and so the integers that are summed are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import CountedTokens, Encoded, TokenBatch, collate
from dist_moe.moe.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.risk.counts import RoutingCounts


def count_batch(
    model: MoEModel,
    rows: Sequence[Encoded],
    *,
    tokens: CountedTokens,
    micro_batch_size: int,
    pad_id: int,
    comm: Comm,
) -> RoutingCounts:
    """Routing counts of R prompts, the same on every rank; all ranks call it with the same rows.

    `model` must hold all experts on this rank; `tokens` is what is counted: prompt, completion or all.
    """
    shape = model.shape
    counts_RLE = torch.zeros(len(rows), shape.num_layers, shape.num_experts, dtype=torch.int64, device=comm.device)
    tokens_R = torch.zeros(len(rows), dtype=torch.int64, device=comm.device)
    for indices in micro_batches(range(len(rows)), micro_batch_size)[comm.rank :: comm.size]:
        batch = collate([rows[i] for i in indices], pad_id).to(comm.device)
        counted = batch.counted(tokens)
        counts_RLE[list(indices)] = _count(model, batch, counted)
        tokens_R[list(indices)] = counted.sum(1)
    comm.sum_(counts_RLE)
    comm.sum_(tokens_R)
    return RoutingCounts(
        counts_RLE.cpu().numpy().astype(np.int64), tokens_R.cpu().numpy().astype(np.int64), shape.top_k
    )


def _count(model: MoEModel, batch: TokenBatch, counted: torch.Tensor) -> torch.Tensor:
    model.set_live(batch.live)
    with torch.no_grad(), model.tap.count(counted) as counts:
        model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    model.set_live(None)
    return counts
