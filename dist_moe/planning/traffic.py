"""What a rank exchanges with others in a step: how often, and how many bytes it sends."""

from __future__ import annotations

from dataclasses import dataclass

from dist_moe.planning.memory import GRADIENT_BYTES, Setup
from dist_moe.planning.outline import Outline
from dist_moe.planning.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of one rank in one step. Bytes that it sends to others."""

    tokens: int
    """Rows of tokens, and their gradients, to and from the experts."""
    experts: int
    """Gradients of experts to their owners, and new weights to the other replicas."""
    dense: int
    """Sharded weights, to whoever uses them."""

    @property
    def total(self) -> int:
        return self.tokens + self.experts + self.dense


def traffic(outline: Outline, setup: Setup, share: Share) -> Traffic:
    """That of a rank with this share, if its rows are as long as they can be and go to all ranks alike."""
    passes = setup.num_passes
    away = 1 - 1 / setup.ep_size
    pairs = setup.rows * setup.row_tokens * outline.top_k * outline.num_layers
    times = 6 if setup.checkpointing else 4  # there and back, and so the gradients
    numbers, others = share.num_active * outline.expert_parameters, setup.num_replicas - 1
    owned = numbers / setup.num_replicas
    dense = outline.dense_bytes / setup.num_ranks * (setup.num_ranks - 1)
    return Traffic(
        tokens=round(times * pairs * away * outline.hidden_size * outline.item_bytes),
        experts=round(owned * others * (GRADIENT_BYTES + outline.item_bytes)),
        dense=round(2 * passes * dense) if setup.shards_dense else 0,
    )
