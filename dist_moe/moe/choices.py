"""What tokens choose: the experts that are called for them, and with a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_moe.moe.bank import ExpertLayer
from dist_moe.moe.internals import named_arguments


@dataclass(frozen=True, slots=True)
class Choice:
    """Of T tokens in one layer."""

    index_Tk: torch.Tensor
    """int64; past E: null experts."""
    active_Tk: torch.Tensor
    """bool: where there is an expert with a weight other than 0; a mask has been applied."""

    def also_in(self, other: Choice) -> torch.Tensor:
        """bool [T, k]: which of these active ones the same tokens have in another choice."""
        same_Tkk = (self.index_Tk[:, :, None] == other.index_Tk[:, None, :]) & other.active_Tk[:, None, :]
        return self.active_Tk & same_Tkk.any(-1)


@contextmanager
def choices(layers: Sequence[ExpertLayer]) -> Iterator[list[Choice]]:
    """While entered, a forward pass leaves the choice of each layer in the list, in the order of the layers."""
    seen: list[Choice] = []

    def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named, num_experts = named_arguments(args, kwargs), len(layers[0].key_E)
        index_Tk = named["top_k_index"]
        seen.append(Choice(index_Tk, (index_Tk < num_experts) & (named["top_k_weights"] != 0)))

    # the last to be registered is the last to be called: after the mask, which changes weights
    handles = [layer.module.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
