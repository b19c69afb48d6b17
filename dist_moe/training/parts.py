"""Losses of many tokens, some at a time: each keeps a few values of the size of its logits in float32.

At 4,096 loss tokens and a vocabulary of 152,000, cross-entropy keeps five such tensors of 2.5 GB until its backward
pass is done. Here one part is there at a time, and is computed again in the backward pass. A token's loss depends on no
other token, so not one bit differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch.utils.checkpoint import checkpoint

from dist_moe.objective import Inputs

LIMIT = 1 << 25
"""Logits in a part: 128 MiB in float32. Fewer are computed at once, and kept."""


def in_parts(losses: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> torch.Tensor:
    """`losses(inputs)` of m tokens, [m], for a term that reads logits only."""
    num, width = inputs.logits_mV.shape
    size = max(1, LIMIT // width)
    if num <= size:
        return losses(inputs)
    found = [checkpoint(losses, part, use_reentrant=False, preserve_rng_state=False) for part in _split(inputs, size)]
    return torch.cat(found)


def _split(inputs: Inputs, size: int) -> Iterator[Inputs]:
    # by `split`: the gradients of its parts are put together once, and those of slices added up, each as long as all
    logits, targets = inputs.logits_mV.split(size), inputs.target_m.split(size)
    base = [None] * len(logits) if inputs.base_logits_mV is None else inputs.base_logits_mV.split(size)
    for part, target, base_part in zip(logits, targets, base, strict=True):
        yield replace(inputs, logits_mV=part, target_m=target, base_logits_mV=base_part)
