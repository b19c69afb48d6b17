"""The weights that experts had before training, and contexts in which the banks have them again, or a part of what
training has changed: a base model without a second model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from dist_moe.moe.bank import ExpertLayer
from dist_moe.weights.scale import scaled


class Originals:
    """Frozen copies of some experts of this rank, in the banks' dtype and place."""

    def __init__(self, layers: tuple[ExpertLayer, ...], chosen_LE: torch.Tensor) -> None:
        """Copy the experts of `chosen_LE`, bool [L, E], that this rank holds, as their banks have them now."""
        self._kept = [
            _Kept(layer, name, slots, bank[slots])
            for layer in layers
            for slots in [[slot for slot, expert in enumerate(layer.local) if chosen_LE[layer.index, expert]]]
            for name, bank in layer.bank.items()
        ]

    @property
    def num_bytes(self) -> int:
        """On this rank."""
        return sum(kept.rows.nbytes for kept in self._kept)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While entered, forward passes use the copies; afterwards every bank has its own bits again, also after an
        exception. Meanwhile the copies' place holds what the banks had: no more memory is taken than a layer's.
        """
        with torch.no_grad(), ExitStack() as stack:
            for kept in self._kept:
                kept.swap()
                stack.callback(kept.swap)
            yield

    @contextmanager
    def scaled(self, alpha: float, stored: torch.dtype) -> Iterator[None]:
        """While entered, the experts are base + alpha * (trained - base), rounded as an export in the type `stored` has
        them; afterwards every bank has its own bits again. Meanwhile what the banks had takes as much memory as the
        copies.
        """
        with torch.no_grad(), ExitStack() as stack:
            for kept in self._kept:
                stack.callback(kept.put, kept.scale(alpha, stored))
            yield

    def weights(self) -> Iterator[tuple[tuple[int, int], str, torch.Tensor]]:
        """((layer, expert), name of the weight, copy) of all."""
        for kept in self._kept:
            for slot, row in zip(kept.slots, kept.rows, strict=True):
                yield (kept.layer.index, kept.layer.local[slot]), kept.name, row


@dataclass(frozen=True, slots=True)
class _Kept:
    """One weight of a layer's experts: `rows` [len(slots), ...] are copies of the bank's rows `slots`."""

    layer: ExpertLayer
    name: str
    slots: list[int]
    rows: torch.Tensor

    def swap(self) -> None:
        """The bank's rows and the copies change places."""
        bank = self.layer.bank[self.name]
        held = bank[self.slots]
        bank[self.slots] = self.rows
        self.rows.copy_(held)

    def scale(self, alpha: float, stored: torch.dtype) -> torch.Tensor:
        """Put what lies between the copies and the bank's rows in their place; returns the bank's rows."""
        bank = self.layer.bank[self.name]
        held = bank[self.slots]
        for slot, base, trained in zip(self.slots, self.rows, held, strict=True):  # one at a time: they are in float64
            bank[slot] = scaled(base, trained, alpha, stored)
        return held

    def put(self, rows: torch.Tensor) -> None:
        """Give the bank these rows."""
        self.layer.bank[self.name][self.slots] = rows
