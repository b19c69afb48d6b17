"""Placement: which rank holds which expert, and which replica keeps its optimizer state."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Placement:
    """`owner_LE[l, e]` is the rank that holds expert e of layer l; `slot_LE[l, e]` is its row in that rank's bank.

    Ranks are those that share the experts of one replica. All replicas have the same placement.
    """

    owner_LE: torch.Tensor
    slot_LE: torch.Tensor
    num_ranks: int

    @classmethod
    def from_owners(cls, owner_LE: torch.Tensor, num_ranks: int) -> Placement:
        """Make a placement from any assignment of experts to ranks; slots follow the order of the experts."""
        one_hot = torch.nn.functional.one_hot(owner_LE, num_ranks)
        slot_LE = (one_hot.cumsum(1) * one_hot).sum(-1) - 1
        return cls(owner_LE, slot_LE, num_ranks)

    @classmethod
    def contiguous(cls, num_layers: int, num_experts: int, num_ranks: int) -> Placement:
        """Contiguous blocks of experts in rank order, with sizes that differ by at most one."""
        owner_E = torch.arange(num_experts) * num_ranks // num_experts
        return cls.from_owners(owner_E.expand(num_layers, num_experts).contiguous(), num_ranks)

    @classmethod
    def balanced(cls, masks_BLE: np.ndarray, num_ranks: int) -> Placement:
        """Placement for training under these masks, bool [B, L, E]: equal optimizer state, equal memory, every batch on
        many ranks.

        The experts of the masks' union are dealt in rounds; in each, every rank gets one, so that the numbers differ by
        at most one. All experts have the same size. Within a round, an expert goes to the rank that has the fewest
        experts of the same layer and batches; among equal ones, of the same batches in all layers so far. The other
        experts then even out each layer's banks.
        """
        num_batches, num_layers, num_experts = masks_BLE.shape
        owner_LE = np.full((num_layers, num_experts), -1)
        owned_R, held_R = np.zeros(num_ranks, int), np.zeros(num_ranks, int)
        overall_BR = np.zeros((num_batches, num_ranks), int)
        for layer in range(num_layers):
            mask_BE = masks_BLE[:, layer]
            times_E = mask_BE.sum(0)
            here_R, active_BR = np.zeros(num_ranks, int), np.zeros((num_batches, num_ranks), int)
            for expert in np.argsort(-times_E, kind="stable")[: np.count_nonzero(times_E)].tolist():
                batches = np.flatnonzero(mask_BE[:, expert])
                together_R = active_BR[batches].sum(0), overall_BR[batches].sum(0)
                rank = _least(*together_R, here_R, among=owned_R == owned_R.min())
                active_BR[batches, rank] += 1
                overall_BR[batches, rank] += 1
                owner_LE[layer, expert] = rank
                owned_R[rank] += 1
                here_R[rank] += 1
            held_R += here_R
            for expert in np.flatnonzero(times_E == 0).tolist():
                rank = _least(here_R, held_R, among=np.ones(num_ranks, bool))
                owner_LE[layer, expert] = rank
                here_R[rank] += 1
                held_R[rank] += 1
        return cls.from_owners(torch.from_numpy(owner_LE), num_ranks)

    @property
    def num_slots(self) -> int:
        """Number of rows of the largest bank: the same on all ranks and in all layers."""
        return int(self.slot_LE.max()) + 1

    def local(self, layer: int, rank: int) -> list[int]:
        """The experts of a layer that a rank holds, in the order of their slots."""
        return torch.nonzero(self.owner_LE[layer] == rank).flatten().tolist()

    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the placement."""
        shape = "x".join(map(str, (*self.owner_LE.shape, self.num_ranks)))
        return sha256(f"{shape}:".encode() + self.owner_LE.numpy().astype("<i8").tobytes()).hexdigest()

    def num_owned(self, union_LE: torch.Tensor, num_replicas: int = 1) -> list[int]:
        """How many experts' optimizer state each rank keeps, if the experts of a set, bool [L, E], are trained.

        In world order: replica by replica.
        """
        held: list[int] = torch.bincount(self.owner_LE[union_LE], minlength=self.num_ranks).tolist()
        kept = [state_replicas(num, num_replicas) for num in held]
        return [replicas.count(replica) for replica in range(num_replicas) for replicas in kept]


def state_replicas(num_experts: int, num_replicas: int) -> list[int]:
    """Which replica keeps the optimizer state of each of a rank's trained experts, in (layer, expert) order.

    Assigned in turn, so that the numbers differ by at most one and the experts of a batch are spread.
    """
    return [i % num_replicas for i in range(num_experts)]


def _least(*numbers_R: np.ndarray, among: np.ndarray) -> int:
    """The rank with the lowest first number; among equal ones the lowest second, and so on, then the lowest rank."""
    return int(next(rank for rank in np.lexsort(numbers_R[::-1]) if among[rank]))
