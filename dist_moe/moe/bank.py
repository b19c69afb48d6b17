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
import torch.nn.functional as F
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


class Numbers:
    """0, 1, 2, ... on a device, made once for all layers and passes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[torch.dtype, torch.Tensor] = {}

    def __call__(self, num: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The first `num` of them; to be read only."""
        made = self._made.get(dtype)
        if made is None or len(made) < num:
            self._made[dtype] = made = torch.arange(num, dtype=dtype, device=self._device)
        return made[:num]


@dataclass(slots=True)
class ExpertLayer:
    """One layer's experts on this rank."""

    index: int
    module: nn.Module
    comm: Comm
    local: list[int]
    """This rank's experts, in the order of their slots."""
    keys: torch.Tensor
    """int32 [E + 1]: rank * num_slots + slot of each expert, and for what is nobody's the first key past all of these.
    Sorting by it groups tokens by rank, then by expert."""
    scores_others: bool
    """Whether routers may choose what is no expert of the E: null experts, with numbers from E on."""
    num_slots: int
    flat_SN: torch.Tensor
    """Of each slot, all weights."""
    bank: dict[str, torch.Tensor]
    """The same by name: views [slots, ...] of `flat_SN`."""
    layout: FlatLayout
    transposed: bool
    """Weights are [in, out] instead of [out, in]."""
    numbers: Numbers
    ended_S: torch.Tensor
    """int64: where each slot's rows ended, summed over all passes since this was last zeroed."""
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
    unwritten: set[str] = field(default_factory=set)
    """Names of weights whose views in `grads` have no values yet: the first gradient is written there, not added."""

    @property
    def key_E(self) -> torch.Tensor:
        """A view of the experts' keys."""
        return self.keys[:-1]

    @property
    def received_S(self) -> torch.Tensor:
        """int64: how many rows each slot's expert has received, from all ranks, since `ended_S` was last zeroed."""
        return torch.diff(self.ended_S, prepend=self.ended_S.new_zeros(1))

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
        before = self.live_T, self.num_live, self.most_active, self.anchor, self.grads, self.unwritten
        try:
            yield
        finally:
            self.live_T, self.num_live, self.most_active, self.anchor, self.grads, self.unwritten = before


def expert_weights(experts: nn.Module) -> list[str]:
    """Names of the weights of an experts module, in their order in a flat vector."""
    return [name for name in EXPERT_WEIGHTS if getattr(experts, name, None) is not None]


def train_from(layers: tuple[ExpertLayer, ...], first_layer: int) -> None:
    """Make autograd run from this MoE layer on: no activations are kept below it. Must be the same on all ranks."""
    anchor = torch.zeros((), device=layers[0].comm.device, requires_grad=True)
    for layer in layers:
        layer.anchor = anchor if layer.index >= first_layer else None


def take_experts(layers: tuple[MoELayer, ...], placement: Placement, comm: Comm) -> tuple[ExpertLayer, ...]:
    """Move expert weights, already reduced to this rank's experts, from their modules to banks.

    Afterwards the modules have no expert parameters; their forward uses the "dist_moe" experts implementation.
    """
    taken, numbers = [], Numbers(comm.device)
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
        keys = F.pad(key_E, (0, 1), value=comm.size * num_slots).to(torch.int32)
        taken.append(
            ExpertLayer(
                index=layer.index,
                module=layer.experts,
                comm=comm,
                local=placement.local(layer.index, comm.rank),
                keys=keys.to(comm.device),
                scores_others=layer.router_shape[0] > layer.num_experts or layer.num_null_experts > 0,
                num_slots=num_slots,
                flat_SN=flat_SN,
                bank=bank,
                layout=layout,
                transposed=bool(layer.experts.is_transposed),
                numbers=numbers,
                ended_S=torch.zeros(num_slots, dtype=torch.int64, device=comm.device),
            )
        )
        setattr(layer.experts, ATTRIBUTE, taken[-1])
    return tuple(taken)
