"""Which part of the experts a rank has: of the model's, of those that some batch trains, of those of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One rank's."""

    held: int
    """Experts whose weights it has, of all layers together."""
    trained: int
    """Those of them that some batch trains."""
    owned: int
    """Those of them whose optimizer state it keeps: each expert's is on one rank of the job."""
    active: tuple[int, ...]
    """By MoE layer, those that one batch trains; of the batch that trains most here."""
    first_layer: int = 0
    """The first MoE layer in which some batch trains an expert, on any rank: none below keeps activations."""

    @property
    def num_active(self) -> int:
        return sum(self.active)


def assumed(
    num_layers: int, num_experts: int, num_trained: int, num_active: int, num_ranks: int, ep_size: int
) -> Share:
    """That of the rank with most, where so many experts are trained in all and by one batch, spread evenly."""
    held_trained = _up(num_trained, ep_size)
    here, more = divmod(min(held_trained, _up(num_active, ep_size)), num_layers)
    return Share(
        held=_up(num_layers * num_experts, ep_size),
        trained=held_trained,
        owned=_up(held_trained, num_ranks // ep_size),
        active=tuple(here + (layer < more) for layer in range(num_layers)),
    )


def of_masks(masks_BLE: np.ndarray, owner_LE: np.ndarray, num_ranks: int, ep_size: int) -> list[Share]:
    """Those of all ranks, in world order, under these masks (bool) and an owner of each expert (int, the rank of a
    replica's `ep_size`)."""
    union_LE = np.logical_or.reduce(masks_BLE)
    replicas, first = num_ranks // ep_size, int(union_LE.any(1).argmax())
    shares = []
    for rank in range(ep_size):
        mine_LE = owner_LE == rank
        active_BL = (masks_BLE & mine_LE).sum(2)
        shares.append(
            (int(mine_LE.sum()), int((union_LE & mine_LE).sum()), active_BL[active_BL.sum(1).argmax()].tolist())
        )
    return [
        Share(
            held=held,
            trained=trained,
            owned=len(range(replica, trained, replicas)),
            active=tuple(active),
            first_layer=first,
        )
        for replica in range(replicas)
        for held, trained, active in shares
    ]


def _up(number: int, parts: int) -> int:
    return -(-number // parts)
