"""The weights that experts, and trained dense weights, had before training, and contexts in which the model has them
again, or a part of what training has changed: a base model without a second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from dist_moe.moe.bank import ExpertLayer
from dist_moe.weights.scale import scaled


class Originals:
    """Frozen copies of some experts of this rank, and of dense weights, in their dtype and place."""

    def __init__(
        self, layers: tuple[ExpertLayer, ...], chosen_LE: torch.Tensor, dense: Mapping[str, torch.Tensor]
    ) -> None:
        """Copy the experts of `chosen_LE`, bool [L, E], that this rank holds, and these dense weights."""
        self._kept = [
            _Kept(layer, name, slots, bank[slots])
            for layer in layers
            for slots in [[slot for slot, expert in enumerate(layer.local) if chosen_LE[layer.index, expert]]]
            for name, bank in layer.bank.items()
        ]
        self._dense = [_KeptDense(name, weight, weight.detach().clone()) for name, weight in dense.items()]

    def include(self, layers: tuple[ExpertLayer, ...], chosen_LE: torch.Tensor) -> None:
        """Copy further experts, which have not been trained yet; copies that are there stay as they are."""
        held = {(kept.layer.index, kept.layer.local[slot]) for kept in self._kept for slot in kept.slots}
        more_LE = chosen_LE.clone()
        for key in held:
            more_LE[key] = False
        self._kept += Originals(layers, more_LE, {})._kept

    @property
    def num_bytes(self) -> int:
        """On this rank."""
        return sum(kept.rows.nbytes for kept in self._kept) + sum(kept.copy.nbytes for kept in self._dense)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While entered, forward passes use the copies; afterwards everything has its own bits again, also after an
        exception. Meanwhile the copies' place holds what was there: no more memory is taken than a layer's.
        """
        with torch.no_grad(), ExitStack() as stack:
            for kept in self._every():
                kept.swap()
                stack.callback(kept.swap)
            yield

    @contextmanager
    def scaled(self, alpha: float, stored: torch.dtype) -> Iterator[None]:
        """While entered, weights are base + alpha * (trained - base), rounded as an export in the type `stored` has
        them; afterwards everything has its own bits again. Meanwhile what was there takes as much memory as the copies.
        """
        with torch.no_grad(), ExitStack() as stack:
            for kept in self._every():
                stack.callback(kept.put, kept.scale(alpha, stored))
            yield

    def _every(self) -> list[_Kept | _KeptDense]:
        return [*self._kept, *self._dense]

    def weights(self) -> Iterator[tuple[tuple[int, int], str, torch.Tensor]]:
        """((layer, expert), name of the weight, copy) of all."""
        for kept in self._kept:
            for slot, row in zip(kept.slots, kept.rows, strict=True):
                yield (kept.layer.index, kept.layer.local[slot]), kept.name, row

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, copy) of the dense weights."""
        for kept in self._dense:
            yield kept.name, kept.copy


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


@dataclass(frozen=True, slots=True)
class _KeptDense:
    """A dense weight, and a copy of it."""

    name: str
    weight: torch.Tensor
    copy: torch.Tensor

    def swap(self) -> None:
        """The weight and the copy change places."""
        held = self.weight.detach().clone()
        self.weight.copy_(self.copy)
        self.copy.copy_(held)

    def scale(self, alpha: float, stored: torch.dtype) -> torch.Tensor:
        """Put what lies between the copy and the weight in its place; returns the weight."""
        held = self.weight.detach().clone()
        self.weight.copy_(scaled(self.copy, held, alpha, stored))
        return held

    def put(self, values: torch.Tensor) -> None:
        """Give the weight these values."""
        self.weight.copy_(values)
