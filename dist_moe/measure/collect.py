"""Counts the routing of many prompts, spread over all ranks.

Only integers are summed, so counts are the same on any number of ranks, also if ranks share experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dist_moe.data.tokens import CountedTokens, Encoded
from dist_moe.errors import UserError
from dist_moe.measure.gradients import gradient_table
from dist_moe.measure.passes import count_generated, count_given
from dist_moe.model.generate import Sampling
from dist_moe.model.model import MoEModel
from dist_moe.model.tapped import Tapped
from dist_moe.moe.tap import GATE_UNIT
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.rows import map_rows
from dist_moe.stats.counts import RoutingCounts


def count_rows(
    model: MoEModel | Tapped,
    rows: Sequence[Encoded],
    *,
    tokens: CountedTokens | Sampling,
    micro_batch_tokens: int,
    pad_id: int,
    comm: Comm,
    gates: bool = False,
    gradients: bool = False,
) -> RoutingCounts:
    """Routing counts of R rows, in order, the same on every rank. All ranks call it with the same rows.

    If ranks of `comm` share the experts of `model`, they run their passes together.

    Args:
        model: the model. One that is only tapped counts given tokens, without gradients.
        rows: R encoded rows.
        tokens: which tokens of the rows are counted, or how to generate the answers that are counted; then there are
            tables `prefill_counts` and `prefill_tokens`, for the prompts as the model reads them.
        micro_batch_tokens: maximum tokens of a forward pass, with padding, which packed rows do not have. Each row has
            its own pass if padding would change results.
        pad_id: token id for padding.
        comm: all ranks.
        gates: add a table `gates`, the sums of the counted tokens' routing weights.
        gradients: add a table `gradients`, see `gradient_table`.

    Raises:
        UserError: the model computes NaN or infinite values, so that its routing means nothing.
    """
    shape_LE = (model.shape.num_layers, model.shape.num_experts)
    shapes: dict[str, tuple[int, ...]] = {"counts": shape_LE, "tokens": (), "not_finite": ()}
    if gates:
        shapes["gates"] = shape_LE
    if isinstance(tokens, Sampling):
        shapes |= {"prefill_counts": shape_LE, "prefill_tokens": ()}

    def measure(chosen: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        if isinstance(tokens, Sampling):
            assert isinstance(model, MoEModel)
            return count_generated(model, chosen, tokens, pad_id, gates=gates)
        return count_given(model, chosen, tokens, pad_id, gates=gates)

    def length(row: Encoded) -> int:
        if isinstance(tokens, Sampling):
            return len(row.inference_ids) + tokens.max_new_tokens
        return row.num_tokens

    sums = map_rows(
        rows,
        measure,
        comm,
        results={name: (torch.int64, shape) for name, shape in shapes.items()},
        length=length,
        budget=model.at_once(micro_batch_tokens),
        packed=model.packed and not isinstance(tokens, Sampling),
        sharing=model.in_step.size,
    )
    arrays = {name: values.cpu().numpy() for name, values in sums.items()}
    _require_finite(model, arrays.pop("not_finite"))
    tables = {name: values.astype(np.int32) for name, values in arrays.items() if name.startswith("prefill")}
    if gates:
        tables["gates"] = (arrays["gates"] * GATE_UNIT).astype(np.float32)
    if gradients:
        assert isinstance(model, MoEModel)
        tables["gradients"] = gradient_table(model, rows, comm)
    return RoutingCounts(arrays["counts"], arrays["tokens"], model.shape.top_k, tables)


def _require_finite(model: MoEModel | Tapped, not_finite_R: np.ndarray) -> None:
    if not_finite_R.any():
        dtype = str(model.module.dtype).removeprefix("torch.")
        raise UserError(
            f"model.path: a router's weights are NaN or infinite, for {np.count_nonzero(not_finite_R)} of "
            f"{len(not_finite_R)} prompts: config.json does not fit the weights, or they overflow in {dtype}: copy or "
            "download the checkpoint again, or set analysis.dtype to float32"
        )
