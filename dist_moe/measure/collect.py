"""Count the routing of many prompts over all ranks.

The unit of work is a micro-batch, cut by the rows' lengths alone before anything is handed to ranks: whatever their
number, each forward pass sees the same tensor. All that is summed are integers, so the sums are the same too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dist_moe.data.batches import token_budget
from dist_moe.data.tokens import CountedTokens, Encoded, collate
from dist_moe.errors import UserError
from dist_moe.measure.gradients import gradient_table
from dist_moe.model.generate import Sampling, count_generated
from dist_moe.model.model import MoEModel
from dist_moe.moe.tap import GATE_UNIT
from dist_moe.parallel.comm import Comm
from dist_moe.stats.counts import RoutingCounts


def count_rows(
    model: MoEModel,
    rows: Sequence[Encoded],
    *,
    tokens: CountedTokens | Sampling,
    micro_batch_tokens: int,
    pad_id: int,
    comm: Comm,
    gates: bool = False,
    gradients: bool = False,
) -> RoutingCounts:
    """Routing counts of R prompts in their order, the same on every rank; all ranks call it with the same rows.

    Ranks of `comm` may share the experts of `model`; these then run their passes together. `tokens` is what is counted
    of the given rows (prompt, completion, all or span), or how the model writes the answers that are; then there are
    tables `prefill_counts` and `prefill_tokens` of the prompts, which the model reads before it writes.
    `micro_batch_tokens` bounds a forward pass and its padding; where padding would change results, each row is alone.
    With `gates` there is a table `gates`, the counted tokens' sums of routing weights, and with `gradients` one of what
    `gradient_table` gives.

    Raises:
        UserError: the model computes NaN or infinite values, so that its routing means nothing.
    """
    shape_LE = (model.shape.num_layers, model.shape.num_experts)
    shapes: dict[str, tuple[int, ...]] = {"counts": shape_LE, "tokens": (), "not_finite": ()}
    if gates:
        shapes["gates"] = shape_LE
    if isinstance(tokens, Sampling):
        shapes |= {"prefill_counts": shape_LE, "prefill_tokens": ()}
        lengths = [len(row.prompt_ids) + tokens.max_new_tokens for row in rows]
    else:
        lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]
    sums = {
        name: torch.zeros(len(rows), *shape, dtype=torch.int64, device=comm.device) for name, shape in shapes.items()
    }
    micro_batches = token_budget(lengths, model.at_once(micro_batch_tokens))
    num_idle = -len(micro_batches) % model.layers[0].comm.size  # ranks that share experts run as many passes each
    for indices in [*micro_batches, *[[]] * num_idle][comm.rank :: comm.size]:
        chosen = [rows[i] for i in indices]
        if isinstance(tokens, Sampling):
            measured = count_generated(model, chosen, tokens, pad_id, gates=gates)
        else:
            measured = _count_given(model, chosen, tokens, pad_id, gates=gates)
        for name, values in measured.items():
            sums[name][indices] = values[: len(indices)]
    arrays = {name: comm.sum_(values).cpu().numpy() for name, values in sums.items()}
    _require_finite(model, arrays.pop("not_finite"))
    tables = {name: values.astype(np.int32) for name, values in arrays.items() if name.startswith("prefill")}
    if gates:
        tables["gates"] = (arrays["gates"] * GATE_UNIT).astype(np.float32)
    if gradients:
        tables["gradients"] = gradient_table(model, rows, comm)
    return RoutingCounts(arrays["counts"], arrays["tokens"], model.shape.top_k, tables)


def _require_finite(model: MoEModel, not_finite_R: np.ndarray) -> None:
    if not_finite_R.any():
        dtype = str(model.module.dtype).removeprefix("torch.")
        raise UserError(
            f"model.path: a router's weights are NaN or infinite, for {np.count_nonzero(not_finite_R)} of "
            f"{len(not_finite_R)} prompts: config.json does not fit the weights, or they overflow in {dtype}: copy or "
            "download the checkpoint again, or set analysis.dtype to float32"
        )


def _count_given(
    model: MoEModel, rows: Sequence[Encoded], tokens: CountedTokens, pad_id: int, *, gates: bool
) -> dict[str, torch.Tensor]:
    """Counts [R, L, E], counted tokens [R], what is not finite [R] and, if asked for, gates [R, L, E] of one pass."""
    batch = collate(rows, pad_id).to(model.layers[0].comm.device)
    counted_RS = batch.counted(tokens)
    with torch.no_grad(), model.batch(batch.live), model.tap.count(counted_RS, gates=gates) as tally:
        model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    measured = {"counts": tally.counts_RLE, "tokens": counted_RS.sum(1), "not_finite": tally.not_finite_R}
    return measured if tally.gates_RLE is None else measured | {"gates": tally.gates_RLE}
