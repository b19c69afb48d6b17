"""What `train.compile` compiles: of each decoder layer the parts without experts, such as attention and norms.

torch's compiler makes one pass over memory of several operations that lie between two products. To know:

- A part is compiled once for passes of any number of rows and tokens, not for each length anew; once more for passes of
  one row, and for those without gradients. What cannot be compiled so as a whole is an error: torch would otherwise
  compute some of it in another way, and that would be in no record.
- Nothing is chosen by timing, and no sum is split by how long the first rows were: the same rows give the same bits, in
  each process anew. They are not the bits that are computed without a compiler, as less is rounded in between.
- MoE blocks are left alone: what they compute depends on masks and on the routing, and torch's compiler cannot follow
  into the grouped products of the experts, whose sizes are values on the device.
- It is for training steps alone. Counts, answers and scores never are of compiled parts, whatever a run compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe.internals import is_decoder_layer, is_experts

OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"deterministic": True, "split_reductions": False}
VARIANTS = 64
"""How many kinds of passes a part can be compiled for; more is an error."""


def dense_parts(module: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Of each decoder layer the modules without experts, with their names; those of torch are one operation each."""
    names = {
        part: f"{name}.{child}"
        for name, layer in module.named_modules()
        if is_decoder_layer(layer)
        for child, part in layer.named_children()
        if not type(part).__module__.startswith("torch.nn") and not any(map(is_experts, part.modules()))
    }
    return [(name, part) for part, name in names.items()]  # one that several layers share comes once


class CompiledParts:
    """The compiled parts of a model."""

    def __init__(self, module: PreTrainedModel) -> None:
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (part, torch.compile(part.forward, fullgraph=True, dynamic=True, options=OPTIONS))
            for _, part in dense_parts(module)
        ]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While entered, the model computes with them, in forward passes and in their recomputation."""
        with torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=4 * VARIANTS):
            for part, forward in self._forwards:
                part.forward = forward
            try:
                yield
            finally:
                for part, _ in self._forwards:
                    del part.forward
