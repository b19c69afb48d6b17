"""Counts the routing of one forward pass: of given tokens, or of those that the model generates.

Generated tokens are counted in the pass that reads them. No pass reads the last token of an answer, so an answer of n
tokens counts n - 1. The prompts, which the first pass reads, are counted separately.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dist_moe.data.tokens import CountedTokens, Encoded, collate
from dist_moe.model.generate import Asked, Sampling, write_answers
from dist_moe.model.model import MoEModel
from dist_moe.model.tapped import Tapped


def count_given(
    model: MoEModel | Tapped, rows: Sequence[Encoded], tokens: CountedTokens, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Counts [R, L, E], number of counted tokens [R], number of non-finite values [R] and, if asked for, gates [R, L,
    E]."""
    batch = collate(rows, pad_id, packed=model.packed).to(model.in_step.device)
    counted_RS = batch.counted(tokens)
    counting = model.tap.count(counted_RS, gates=gates, num_rows=batch.num_rows, row_RS=batch.row)
    with torch.no_grad(), model.batch(batch.live), counting as tally:
        model.module(**batch.inputs)
    tokens_R = torch.zeros_like(tally.not_finite_R)
    tokens_R.scatter_add_(0, batch.row.flatten(), counted_RS.flatten().long())
    measured = {"counts": tally.counts_RLE, "tokens": tokens_R, "not_finite": tally.not_finite_R}
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE}


@torch.no_grad()
def count_generated(
    model: MoEModel, rows: Sequence[Encoded], sampling: Sampling, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Generate answers to R prompts in shared passes, and count them. All values are int64.

    Of the answers: counts [R, L, E], number of counted tokens [R] and, if asked for, gates [R, L, E]. Of the prompts:
    `prefill_counts` [R, L, E] and `prefill_tokens` [R]. Of both: `not_finite` [R]. All ranks that share experts call it
    together; a rank without rows takes part and counts nothing.
    """
    asked = Asked.of(rows, pad_id, model.layers[0].comm.device)
    num_rows = len(asked.live)
    counting = model.tap.count(asked.live, gates=gates, num_rows=2 * num_rows, first_row=num_rows)  # answers first
    tokens_R = torch.zeros(num_rows, dtype=torch.int64, device=asked.live.device)

    def before_pass(going_on_R: torch.Tensor) -> None:
        tokens_R.add_(going_on_R)
        model.tap.next_pass(going_on_R[:, None])

    with counting as tally:
        write_answers(model, asked, sampling, before_pass)
    measured = {
        "counts": tally.counts_RLE[:num_rows],
        "not_finite": tally.not_finite_R.view(2, num_rows).sum(0),
        "tokens": tokens_R,
        "prefill_counts": tally.counts_RLE[num_rows:],
        "prefill_tokens": asked.live.sum(1),
    }
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE[:num_rows]}
