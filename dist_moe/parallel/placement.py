"""Which rank holds which expert: a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Placement:
    """`owner_LE[l, e]` is the rank that holds expert e of layer l, `slot_LE[l, e]` its row in that rank's bank."""

    owner_LE: torch.Tensor
    slot_LE: torch.Tensor
    num_ranks: int

    @classmethod
    def from_owners(cls, owner_LE: torch.Tensor, num_ranks: int) -> Placement:
        """Any split, even or not: slots count up within a layer and rank, in the order of the experts."""
        one_hot = torch.nn.functional.one_hot(owner_LE, num_ranks)
        slot_LE = (one_hot.cumsum(1) * one_hot).sum(-1) - 1
        return cls(owner_LE, slot_LE, num_ranks)

    @classmethod
    def contiguous(cls, num_layers: int, num_experts: int, num_ranks: int) -> Placement:
        """Equal runs of experts in rank order; runs differ by one where the division leaves a rest."""
        owner_E = torch.arange(num_experts) * num_ranks // num_experts
        return cls.from_owners(owner_E.expand(num_layers, num_experts).contiguous(), num_ranks)

    @property
    def num_slots(self) -> int:
        """Rows of the largest bank: the same on all ranks and in all layers."""
        return int(self.slot_LE.max()) + 1

    def local(self, layer: int, rank: int) -> list[int]:
        """The experts of a layer that a rank holds, in the order of their slots."""
        return torch.nonzero(self.owner_LE[layer] == rank).flatten().tolist()
