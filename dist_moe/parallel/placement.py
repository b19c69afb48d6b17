"""Which rank holds which expert, and which replica keeps its optimizer state: values."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Placement:
    """`owner_LE[l, e]` is the rank that holds expert e of layer l, `slot_LE[l, e]` its row in that rank's bank.

    Ranks are those that share one replica's experts; all replicas have the same placement.
    """

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

    @classmethod
    def balanced(cls, masks_BLE: np.ndarray, num_ranks: int) -> Placement:
        """For training under these masks, bool [B, L, E]: even optimizer state, even memory, every batch on many ranks.

        Experts of the masks' union are dealt in rounds, in each of which every rank gets one, so the numbers that ranks
        own differ by at most one; all experts have the same size. Within a round an expert goes where its batches have
        the fewest experts of its layer yet. The others then fill each layer's banks evenly.
        """
        _, num_layers, num_experts = masks_BLE.shape
        owner_LE = np.full((num_layers, num_experts), -1)
        owned_R, held_R = np.zeros(num_ranks, int), np.zeros(num_ranks, int)
        for layer in range(num_layers):
            mask_BE = masks_BLE[:, layer]
            times_E = mask_BE.sum(0)
            here_R, active_BR = np.zeros(num_ranks, int), np.zeros((len(mask_BE), num_ranks), int)
            for expert in np.argsort(-times_E, kind="stable")[: np.count_nonzero(times_E)].tolist():
                batches = mask_BE[:, expert]
                together_R = active_BR[batches].sum(0)
                rank = _least(together_R, here_R, among=owned_R == owned_R.min())
                active_BR[batches, rank] += 1
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
        """Rows of the largest bank: the same on all ranks and in all layers."""
        return int(self.slot_LE.max()) + 1

    def local(self, layer: int, rank: int) -> list[int]:
        """The experts of a layer that a rank holds, in the order of their slots."""
        return torch.nonzero(self.owner_LE[layer] == rank).flatten().tolist()

    def hash(self) -> str:
        """SHA-256 (64 hex digits) of who holds what."""
        shape = "x".join(map(str, (*self.owner_LE.shape, self.num_ranks)))
        return sha256(f"{shape}:".encode() + self.owner_LE.numpy().astype("<i8").tobytes()).hexdigest()

    def num_owned(self, union_LE: torch.Tensor, num_replicas: int = 1) -> list[int]:
        """How many experts' optimizer state each rank keeps if those of a set, bool [L, E], are trained.

        In world order: replica by replica.
        """
        held: list[int] = torch.bincount(self.owner_LE[union_LE], minlength=self.num_ranks).tolist()
        kept = [state_replicas(num, num_replicas) for num in held]
        return [replicas.count(replica) for replica in range(num_replicas) for replicas in kept]


def state_replicas(num_experts: int, num_replicas: int) -> list[int]:
    """Which replica keeps the state of each of the trained experts that a rank holds, in (layer, expert) order.

    In turn, so that replicas keep numbers that differ by one at most, and that a batch's experts are spread.
    """
    return [i % num_replicas for i in range(num_experts)]


def _least(first_R: np.ndarray, then_R: np.ndarray, *, among: np.ndarray) -> int:
    """The rank with the lowest `first_R`, among equals the lowest `then_R`, then the lowest number."""
    return int(next(rank for rank in np.lexsort((then_R, first_R)) if among[rank]))
