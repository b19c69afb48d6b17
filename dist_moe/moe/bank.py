"""Holds expert weights outside `nn.Module`, so that no engine can find, reduce, cast, partition or save them.

An `ExpertLayer` takes the fused weights of one experts module and keeps this rank's experts as rows of one bank
`[num_local, ...]` per weight. All banks of a layer are views of one tensor, in which an expert is one row: so all its
weights are one vector, and in fp32 the optimizer updates them where they are. It also has what the experts function
needs to know: on which rank each expert is, which local experts this batch trains, and where their gradients go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from dist_moe.moe.discover import EXPERT_WEIGHTS, MoELayer
from dist_moe.moe.internals import apply_gate, is_swiglu
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.placement import Placement

ATTRIBUTE = "dist_moe_layer"
"""Attribute of an experts module that holds its `ExpertLayer`: a plain object, which no engine looks at."""


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """How one expert's weights are placed in a flat vector of `size` values: (name, shape, start, stop)."""

    parts: tuple[tuple[str, torch.Size, int, int], ...]
    size: int

    @classmethod
    def of(cls, bank: dict[str, torch.Tensor]) -> FlatLayout:
        parts, at = [], 0
        for name, weight in bank.items():
            shape = weight.shape[1:]
            parts.append((name, shape, at, at + shape.numel()))
            at += shape.numel()
        return cls(tuple(parts), at)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Flat vectors [..., size] as one view per weight."""
        return {name: flat[..., start:stop].unflatten(-1, shape) for name, shape, start, stop in self.parts}


@dataclass(slots=True)
class ExpertLayer:
    """One layer's experts on this rank."""

    index: int
    module: nn.Module
    comm: Comm
    local: list[int]
    """This rank's experts, in the order of their slots."""
    key_E: torch.Tensor
    """rank * num_slots + slot of each expert. Sorting by it groups tokens by rank, then by expert."""
    num_slots: int
    flat_SN: torch.Tensor
    """Of each slot, all weights."""
    bank: dict[str, torch.Tensor]
    """The same by name: views [slots, ...] of `flat_SN`."""
    layout: FlatLayout
    transposed: bool
    """Weights are [in, out] instead of [out, in]."""
    received_S: torch.Tensor
    """int64: how many rows each slot's expert has received, from all ranks, since this was last zeroed."""
    live_T: torch.Tensor | None = None
    """bool [T]: the real tokens; others (padding) are not sent to any expert. None: all are real."""
    num_live: int | None = None
    """How many these are, if the host knows it without asking the device."""
    most_active: int | None = None
    """Under the batch's mask no token has more experts than this; None: than the family's k."""
    anchor: torch.Tensor | None = None
    """A scalar that requires gradients in every layer from the batch's first trained one on, on all ranks alike."""
    grads: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Slot -> weight name -> fp32 view in which the gradient is summed. Contains only the batch's trained experts.
    Which these are must be known before the forward pass."""

    @property
    def up_name(self) -> str:
        """Name of the first linear map: gate and up fused, or up alone in families without a gate."""
        return "gate_up_proj" if "gate_up_proj" in self.bank else "up_proj"

    def activation(self, pre: torch.Tensor) -> torch.Tensor:
        """What the family computes between the two linear maps, row by row."""
        return apply_gate(self.module, pre)

    @property
    def is_swiglu(self) -> bool:
        """Whether that is silu(gate) * up, for which there are kernels."""
        return is_swiglu(self.module)

    def most_tokens(self, num_tokens: int) -> int:
        """Of so many tokens no more are real, as far as the host knows."""
        return num_tokens if self.num_live is None else self.num_live

    def most_pairs(self, num_tokens: int, k: int) -> int:
        """So many tokens with k experts each are no more (token, expert) pairs than this, as far as the host knows."""
        return self.most_tokens(num_tokens) * min(k, self.most_active or k)

    def flat(self, expert: int) -> torch.Tensor:
        """All weights of one local expert in the bank, as a view."""
        return self.flat_SN[self.local.index(expert)]

    def row(self, expert: int) -> dict[str, torch.Tensor]:
        """The same by name."""
        return self.layout.views(self.flat(expert))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Context manager: on leaving, what was set for a batch before entering is set again, also after an
        exception."""
        before = self.live_T, self.num_live, self.most_active, self.anchor, self.grads
        try:
            yield
        finally:
            self.live_T, self.num_live, self.most_active, self.anchor, self.grads = before


def expert_weights(experts: nn.Module) -> list[str]:
    """Names of the weights of an experts module, in their order in a flat vector."""
    return [name for name in EXPERT_WEIGHTS if getattr(experts, name, None) is not None]


def train_from(layers: tuple[ExpertLayer, ...], first_layer: int) -> None:
    """Make autograd run from this MoE layer on: no activations are kept below it. Must be the same on all ranks."""
    for layer in layers:
        anchored = layer.index >= first_layer
        layer.anchor = torch.zeros((), device=layer.comm.device, requires_grad=True) if anchored else None


def take_experts(layers: tuple[MoELayer, ...], placement: Placement, comm: Comm) -> tuple[ExpertLayer, ...]:
    """Move expert weights, already reduced to this rank's experts, from their modules to banks.

    Afterwards the modules have no expert parameters; their forward uses the "dist_moe" experts implementation.
    """
    taken = []
    for layer in layers:
        weights = {name: layer.experts.get_parameter(name).detach() for name in expert_weights(layer.experts)}
        layout = FlatLayout.of(weights)
        ((num_rows, dtype),) = {(len(weight), weight.dtype) for weight in weights.values()}
        flat_SN = torch.empty(num_rows, layout.size, dtype=dtype, device=comm.device)
        bank = layout.views(flat_SN)
        for name in bank:
            bank[name].copy_(weights.pop(name))
            del layer.experts._parameters[name]
        num_slots = placement.num_slots
        key_E = placement.owner_LE[layer.index] * num_slots + placement.slot_LE[layer.index]
        taken.append(
            ExpertLayer(
                index=layer.index,
                module=layer.experts,
                comm=comm,
                local=placement.local(layer.index, comm.rank),
                key_E=key_E.to(comm.device),
                num_slots=num_slots,
                flat_SN=flat_SN,
                bank=bank,
                layout=layout,
                transposed=bool(layer.experts.is_transposed),
                received_S=torch.zeros(num_slots, dtype=torch.int64, device=comm.device),
            )
        )
        setattr(layer.experts, ATTRIBUTE, taken[-1])
    return tuple(taken)
