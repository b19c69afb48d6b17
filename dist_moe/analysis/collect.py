"""Count the routing of many prompts over all ranks.

The unit of work is a micro-batch, cut by the rows' lengths alone before anything is handed to ranks: whatever their
number, each forward pass sees the same tensor, and so the integers that are summed are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dist_moe.analysis.generate import Sampling, count_generated
from dist_moe.data.batches import token_budget
from dist_moe.data.tokens import CountedTokens, Encoded, collate
from dist_moe.moe.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.risk.counts import RoutingCounts


def count_rows(
    model: MoEModel,
    rows: Sequence[Encoded],
    *,
    tokens: CountedTokens | Sampling,
    micro_batch_tokens: int,
    pad_id: int,
    comm: Comm,
    gates: bool = False,
) -> RoutingCounts:
    """Routing counts of R prompts in their order, the same on every rank; all ranks call it with the same rows.

    `model` must hold all experts on this rank. `tokens` is what is counted of the given rows (prompt, completion, all
    or span), or how the model writes the answers that are. `micro_batch_tokens` bounds a forward pass and its padding.
    With `gates` the weights of the counted tokens are summed too.
    """
    shape = model.shape
    counts_RLE = torch.zeros(len(rows), shape.num_layers, shape.num_experts, dtype=torch.int64, device=comm.device)
    tokens_R = torch.zeros(len(rows), dtype=torch.int64, device=comm.device)
    gates_RLE = torch.zeros_like(counts_RLE, dtype=torch.float64) if gates else None
    generated = tokens if isinstance(tokens, Sampling) else None
    lengths = [len(r.prompt_ids) + (generated.max_new_tokens if generated else len(r.response_ids)) for r in rows]
    for indices in token_budget(lengths, micro_batch_tokens)[comm.rank :: comm.size]:
        chosen = [rows[i] for i in indices]
        sums_RLE = None if gates_RLE is None else gates_RLE.new_zeros(len(indices), shape.num_layers, shape.num_experts)
        if isinstance(tokens, Sampling):
            counts_RLE[indices], tokens_R[indices] = count_generated(model, chosen, tokens, pad_id, sums_RLE)
        else:
            counts_RLE[indices], tokens_R[indices] = _count_given(model, chosen, tokens, pad_id, sums_RLE)
        if gates_RLE is not None and sums_RLE is not None:
            gates_RLE[indices] = sums_RLE
    comm.sum_(counts_RLE)
    comm.sum_(tokens_R)
    if gates_RLE is not None:
        comm.sum_(gates_RLE)  # each prompt's sum was made by one rank, the others add zeros: the same for any number
    return RoutingCounts(
        counts_RLE.cpu().numpy().astype(np.int64),
        tokens_R.cpu().numpy().astype(np.int64),
        shape.top_k,
        None if gates_RLE is None else gates_RLE.cpu().numpy(),
    )


def _count_given(
    model: MoEModel, rows: Sequence[Encoded], tokens: CountedTokens, pad_id: int, gates_RLE: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [R, L, E] and counted tokens [R] of one forward pass."""
    batch = collate(rows, pad_id).to(model.layers[0].comm.device)
    counted_RS = batch.counted(tokens)
    model.set_live(batch.live)
    with torch.no_grad(), model.tap.count(counted_RS, gates_RLE) as counts_RLE:
        model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    model.set_live(None)
    return counts_RLE, counted_RS.sum(1)
