"""What a rank exchanges with others in a step: how often, and how many bytes it sends."""

from __future__ import annotations

from dataclasses import dataclass

from dist_moe.planning.memory import GRADIENT_BYTES, Setup, ranks_of_token
from dist_moe.planning.outline import Outline
from dist_moe.planning.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Of one rank in one step. Bytes that it sends to others."""

    exchanges: int
    """How often ranks that share experts exchange tokens, or their numbers, whatever the mask."""
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
    """That of a rank with this share, if its rows are as long as they can be and tokens choose all ranks alike."""
    top_k, row = outline.top_k, outline.hidden_size * outline.item_bytes
    forward = 2 if setup.checkpointing else 1  # once again in the backward pass
    away = ranks_of_token(top_k, setup.ep_size) * (1 - 1 / setup.ep_size)
    sent = setup.rows * setup.row_tokens * outline.num_layers * away
    columns = top_k * outline.item_bytes  # routing weights and places go along, and gradients of weights come back
    numbers, others = share.num_active * outline.expert_parameters, setup.num_replicas - 1
    dense = outline.dense_bytes / setup.num_ranks * (setup.num_ranks - 1)
    return Traffic(
        exchanges=0 if setup.ep_size == 1 else setup.num_passes * _exchanges(outline, setup, share),
        tokens=round(sent * (forward * (2 * row + 2 * columns) + 2 * row + columns)),
        experts=round(numbers / setup.num_replicas * others * (GRADIENT_BYTES + outline.item_bytes)),
        dense=round(2 * setup.num_passes * dense) if setup.shards_dense else 0,
    )


def _exchanges(outline: Outline, setup: Setup, share: Share) -> int:
    """Of one pass: counts, tokens there and results back; then, from the first trained layer on, gradients there, and
    back but in that layer. Computing again repeats the first three of these layers."""
    trained = outline.num_layers - share.first_layer
    again = 3 * trained if setup.checkpointing else 0
    return 3 * outline.num_layers + again + 2 * trained - (0 if setup.dense_parameters else 1)
