"""Copies tensors from a device into the host's memory: so many bytes a wait, however many tensors they are.

For a copy into pageable memory the driver waits, and copies once more into its own pinned memory. So tensors gather in
one pinned buffer, whose last copy is the one that is waited for, and go from there to where they stay. What stays is
pageable: pinned memory of this size takes long to get, and is rounded up to a power of two.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

STAGE_BYTES = 1 << 28


def on_host(tensors: Iterable[torch.Tensor], *, copy: bool = False) -> list[torch.Tensor]:
    """The tensors in the host's memory, in order. With `copy` none shares memory with what was given, also where that
    was in the host's memory already."""
    found, stage = [], _Stage()
    for tensor in tensors:
        if tensor.device.type == "cpu":
            found.append(tensor.clone() if copy else tensor)
        else:
            found.append(torch.empty(tensor.shape, dtype=tensor.dtype))
            stage.add(tensor, found[-1])
    stage.flush()
    return found


class _Stage:
    """The pinned buffer, and what it is to take."""

    def __init__(self) -> None:
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._room = STAGE_BYTES

    def add(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a tensor, at the latest at the next `flush`."""
        source_bytes, target_bytes = _bytes(source), _bytes(target)
        while len(source_bytes):
            self._copies.append((source_bytes[: self._room], target_bytes[: self._room]))
            source_bytes, target_bytes = source_bytes[self._room :], target_bytes[self._room :]
            self._room -= len(self._copies[-1][0])
            if not self._room:
                self.flush()

    def flush(self) -> None:
        """Make the copies of all that was added, with one wait."""
        if not self._copies:
            return
        if not len(self._pinned):
            self._pinned = torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True)
        parts = self._pinned[: STAGE_BYTES - self._room].split([len(source) for source, _ in self._copies])
        for number, (part, (source, _)) in enumerate(zip(parts, self._copies, strict=True), start=1):
            part.copy_(source, non_blocking=number < len(parts))  # the last one is done when all before it are
        for part, (_, target) in zip(parts, self._copies, strict=True):
            target.copy_(part)
        self._copies, self._room = [], STAGE_BYTES


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [n], in the tensor's memory where that has no gaps."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
