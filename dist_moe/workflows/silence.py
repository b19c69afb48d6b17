"""Which experts an evaluation silences: those of a mask store's batches, to see what the model does without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.errors import UserError
from dist_moe.evaluation.record import Silenced
from dist_moe.selection.stored import open_masks


@dataclass(frozen=True, slots=True)
class Silence:
    """Experts to which no token is routed."""

    facts: Silenced
    experts_LE: np.ndarray
    """bool [L, E]."""

    def require_fits(self, num_layers: int, num_experts: int) -> None:
        """Raise a `UserError` unless the masks are of a model of these sizes."""
        if self.experts_LE.shape != (num_layers, num_experts):
            layers, experts = self.experts_LE.shape
            raise UserError(
                f"--silence {self.facts.masks}: masks of {layers} x {experts} experts, and the model has "
                f"{num_layers} x {num_experts}: give masks of this model or of its base"
            )


def read_silence(place: str, batches: Sequence[int]) -> Silence:
    """The experts of these batches' masks together; no batches: of all.

    Raises:
        UserError: the store cannot be read, has no such batch, or leaves a layer without an expert.
    """
    store = open_masks(place)
    num_batches = len(store.batch_ids)
    wrong = [batch for batch in batches if batch >= num_batches]
    if wrong:
        raise UserError(f"--batches: {place} has no batch {wrong[0]}: it has batches 0 to {num_batches - 1}")
    chosen = sorted({*batches})
    experts_LE = np.logical_or.reduce([store.masks[batch] for batch in chosen]) if chosen else store.union()
    if not experts_LE.any():
        raise UserError(f"--silence {place}: the masks of these batches have no expert: there is nothing to silence")
    whole = np.flatnonzero(experts_LE.all(1))
    if whole.size:
        raise UserError(
            f"--silence {place}: all {experts_LE.shape[1]} experts of MoE layer {whole[0]} are in these masks, "
            "and none would be left: give fewer batches with --batches"
        )
    facts = Silenced(
        masks=place.rstrip("/").rpartition("/")[2],
        masks_digest=store.digest,
        batches=chosen or None,
        num_experts=int(experts_LE.sum()),
    )
    return Silence(facts, experts_LE)
