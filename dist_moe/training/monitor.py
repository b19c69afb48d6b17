"""The promise of masked training, checked at every step on every rank from what is really in force.

Three facts are summed over ranks in one collective and compared with the batch's own mask:

- the experts whose rows would move (each on exactly one rank) are the mask;
- the routers of every rank have applied the mask (`route`), or none (`update`);
- no token was sent to an expert that the mask forbids (`fill: shrink`; the others forbid none outright). With `scope:
  unsafe` only the tokens of unsafe rows are counted, and some must have been.

A violation is a bug of this package, so it is an `AssertionError`, raised before any weight has changed.
"""

from __future__ import annotations

import torch

from dist_moe.moe.model import MoEModel
from dist_moe.moe.route_mask import RoutePlan
from dist_moe.parallel.comm import Comm
from dist_moe.risk.masks import mask_hash
from dist_moe.training.optimizer import SelectiveAdamW


class MaskMonitor:
    """Looks at the model and the optimizer between backward and the optimizer's step."""

    def __init__(self, model: MoEModel, optimizer: SelectiveAdamW, comm: Comm) -> None:
        self.model, self.optimizer, self.comm = model, optimizer, comm

    def start(self) -> None:
        """Before a step's first forward pass."""
        for layer in self.model.layers:
            layer.dispatched_E.zero_()

    def check(self, expected_hash: str, plan: RoutePlan | None) -> str:
        """Assert that what is in force is the mask with `expected_hash`; return the hash of what was seen.

        `plan` is what the routers must have applied; None: nothing.
        """
        applied_LE = self.model.route_mask.applied_LE
        movable_LE = torch.zeros_like(applied_LE)
        for key in self.optimizer.owned_active:
            movable_LE[key] = True
        dispatched_LE = torch.stack([layer.dispatched_E for layer in self.model.layers])
        seen = self.comm.sum_(torch.stack([movable_LE.long(), applied_LE.long(), dispatched_LE]))
        movable, applied, dispatched = seen.cpu()
        expected = torch.ones_like(applied) if plan is None else plan.allowed_LE.cpu().long()
        assert movable.max() <= 1, "an expert would be updated on two ranks"
        assert torch.equal(applied, expected * self.comm.size), "a router did not apply the batch's mask"
        if plan is not None and plan.fill == "shrink":
            assert not dispatched[expected == 0].any(), "a token was sent to an expert outside the batch's mask"
        if plan is not None and plan.scope == "unsafe":
            assert dispatched.any(), "no token of an unsafe row was seen: the batch's rows have lost their labels"
        seen_hash = mask_hash(movable.bool().numpy())
        assert seen_hash == expected_hash, f"mask in force {seen_hash}, but the batch's is {expected_hash}"
        return seen_hash
