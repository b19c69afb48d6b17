"""Which token goes to which expert, by transformers' own routing under the mask by its definition: for counts that owe
nothing to what is counted."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tools.bench.setup import Mode, PlainRouteMask, Setup
from tools.bench.timing import Count

TOKENS_GOAL = 1.10


def pairs_BLE(setup: Setup, mode: Mode) -> torch.Tensor:
    """How many of this rank's real tokens each expert gets in each batch, int64 [B, L, E], with the first weights."""
    model, o = setup.plain_model(), setup.options
    mask = PlainRouteMask(model, cut=True)
    found_BLE = torch.zeros(o.batches, o.layers, o.experts, dtype=torch.int64)

    def count(batch: int, layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        chosen = args[1][setup.batch(batch).live.flatten()]
        found_BLE[batch, layer] = torch.bincount(chosen.flatten().cpu(), minlength=o.experts)

    for batch in range(o.batches):
        mask.allowed_LE = setup.allowed(mode, batch)
        hooks = [
            layer.mlp.experts.register_forward_pre_hook(partial(count, batch, index))
            for index, layer in enumerate(model.model.layers)
        ]
        with torch.no_grad():
            model(input_ids=setup.batch(batch).input_ids, use_cache=False)
        for hook in hooks:
            hook.remove()
    return found_BLE


def bytes_of_pairs(pairs_RLE: torch.Tensor, owner_LE: torch.Tensor, trained_L: torch.Tensor, row_bytes: int) -> int:
    """What all ranks together send of one batch if each pair of a token and an expert that is on another rank is sent
    by itself: the token there and the result back in every layer; from the first trained layer on the gradient of
    the result there, and above that layer the one of the token back."""
    rank_R11 = torch.arange(len(pairs_RLE))[:, None, None]
    remote_L = (pairs_RLE * (owner_LE != rank_R11)).sum((0, 2))
    first = int(torch.nonzero(trained_L)[0])
    layer_L = torch.arange(len(remote_L))
    times_L = 2 + (layer_L >= first).long() + (layer_L > first).long()
    return int((remote_L * times_L).sum()) * row_bytes


def sent_goal(row: str, sent: float, of_pairs: int) -> Count:
    """Bytes that a step sends over those of its allowed pairs."""
    return Count(
        f"{row}: bytes sent / bytes of allowed pairs",
        sent / of_pairs,
        1.0,
        f"{sent - of_pairs:,.0f} bytes more",
        f"{sent / of_pairs:.3f} = {sent / 2**20:.2f} / {of_pairs / 2**20:.2f} MiB",
    )


def tokens_goal(row: str, pairs: torch.Tensor, owner_LE: torch.Tensor, num_ranks: int) -> Count:
    """Rows of experts, of the rank with most over the mean of ranks, in the mean of batches; `pairs` [B, L, E]."""
    held_RX = owner_LE.flatten() == torch.arange(num_ranks)[:, None]
    rows_BX = pairs.flatten(1)
    found_B = _balance(rows_BX @ held_RX.T.long())
    dealt_B = [_balance(_dealt(rows_X, num_ranks))[0] for rows_X in rows_BX]
    largest_B = (rows_BX.max(1).values * num_ranks / rows_BX.sum(1)).clamp(min=1)
    values = ", ".join(f"{value:.3f}" for value in found_B.tolist())
    return Count(
        f"{row}: rows of experts, max / mean of ranks",
        float(found_B.mean()),
        TOKENS_GOAL,
        f"by batch {values}; with each batch's experts dealt anew by their rows {sum(dealt_B) / len(dealt_B):.3f}; no "
        f"assignment is below {float(largest_B.mean()):.3f}, because of the largest expert",
    )


def _balance(rows_BR: torch.Tensor) -> torch.Tensor:
    rows_BR = torch.atleast_2d(rows_BR).double()
    return rows_BR.max(1).values / rows_BR.mean(1)


def _dealt(rows_X: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Rows of each rank if the largest experts go first, each to the rank with the fewest rows."""
    rows_R = torch.zeros(num_ranks, dtype=torch.int64)
    for rows in rows_X.sort(descending=True).values.tolist():
        rows_R[int(rows_R.argmin())] += rows
    return rows_R
