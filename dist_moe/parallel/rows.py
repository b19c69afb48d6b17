"""Spreads rows over ranks, one forward pass at a time, and returns each row's results in the order of the rows.

The lengths of the rows alone decide which rows share a pass, before passes are given to ranks. So each pass computes
with the same tensors on any number of ranks. The results of a row come from one rank; the others add zeros. Results
therefore have the same bits on any number of ranks, floating point included, if each rank uses as many threads and
holds all experts. If ranks share experts, the experts also compute on other ranks' tokens, and floating-point results
are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from dist_moe.data.batches import token_budget
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together

T = TypeVar("T")
Kind = tuple[torch.dtype, tuple[int, ...]]


def map_rows(
    rows: Sequence[T],
    function: Callable[[Sequence[T]], Mapping[str, torch.Tensor]],
    comm: Comm,
    *,
    results: Mapping[str, Kind],
    length: Callable[[T], int],
    budget: int,
    packed: bool = False,
    sharing: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> dict[str, torch.Tensor]:
    """`function` of all rows: name -> [R, ...], in the rows' order, the same on every rank, on `comm.device`.

    All ranks call it with the same rows.

    Args:
        rows: R of them.
        function: results of the rows of one forward pass, [their number, ...] each, or with more lines, which are left
            out. A rank without a pass calls it without rows, in step with those that it shares experts with.
        comm: all ranks; neighbours may share experts.
        results: by name the type of a result, and its shape for one row.
        length: tokens of a row.
        budget: a pass has at most so many tokens, padding included; a longer row has a pass of its own.
        packed: rows are laid end to end, so that there is no padding.
        sharing: how many ranks share experts, and so have to run as many passes each.
        progress: is told how many rows the ranks have done together, each time this rank has done a pass.

    Raises:
        UserError: `function` has raised it, on any rank; on all ranks. Ranks that share experts must raise it together.
    """
    found = {
        name: torch.zeros(len(rows), *shape, dtype=dtype, device=comm.device)
        for name, (dtype, shape) in results.items()
    }
    passes = token_budget([length(row) for row in rows], budget, packed=packed)
    passes += [[] for _ in range(-len(passes) % sharing)]
    with together(comm):
        for number in range(comm.rank, len(passes), comm.size):
            chosen = passes[number]
            for name, values in function([rows[row] for row in chosen]).items():
                found[name][chosen] = values[: len(chosen)]
            first = number - comm.rank
            progress(sum(map(len, passes[first : first + comm.size])))
    return {name: comm.sum_(values) for name, values in found.items()}
