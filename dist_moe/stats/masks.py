"""ExpertMasks: the experts that each batch may update (and, in mode `route`, route to)."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ExpertMasks:
    """One mask over all routed experts for each batch."""

    masks_BLE: np.ndarray
    """bool [B, L, E]: true where expert e of MoE layer l is unsafe for batch b."""

    def __post_init__(self) -> None:
        assert self.masks_BLE.dtype == np.bool_
        assert self.masks_BLE.ndim == 3

    @property
    def num_experts_B(self) -> np.ndarray:
        """int64 [B]: unsafe experts of each batch."""
        return self.masks_BLE.sum(axis=(1, 2))

    def union(self) -> np.ndarray:
        """bool [L, E]: experts that are unsafe for at least one batch."""
        return np.logical_or.reduce(self.masks_BLE, axis=0)

    def hash(self, batch: int) -> str:
        """Identity of one batch's mask, see `mask_hash`."""
        return mask_hash(self.masks_BLE[batch])


def mask_hash(mask_LE: np.ndarray) -> str:
    """SHA-256 (64 hex digits) over a mask's shape and its bits, eight to a byte, last axis fastest.

    Equal masks have equal hashes whatever their memory order, machine or version of NumPy.
    """
    assert mask_LE.dtype == np.bool_
    shape = "x".join(str(size) for size in mask_LE.shape)
    return hashlib.sha256(f"{shape}:".encode() + np.packbits(mask_LE.ravel(order="C")).tobytes()).hexdigest()
