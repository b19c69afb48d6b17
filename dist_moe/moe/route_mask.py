"""Make experts unroutable: `route` mode with `fill: shrink`.

Inside a router's forward, and only there, the logits that its own weight gives are set to the lowest finite value
outside the allowed experts; softmax then gives them exactly 0, and everything after it (top-k, renormalisation where
the family has one) is the model's own code. With an all-true mask the result is the unmasked one, bit for bit. With
fewer allowed experts than k, top-k is filled up with experts of weight 0, which the experts function drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from dist_moe.moe.discover import MoELayer


def routable(mask_LE: torch.Tensor) -> torch.Tensor:
    """The experts that a batch's mask leaves routable: bool [L, E]. A layer without any is left as it is."""
    return mask_LE | ~mask_LE.any(dim=1, keepdim=True)


def surviving_slots(mask_LE: torch.Tensor, top_k: int) -> float:
    """Share of the L * k routing slots of a token that `fill: shrink` leaves under this mask."""
    num_allowed_L = routable(mask_LE).sum(1)
    return float(num_allowed_L.clamp(max=top_k).sum()) / (len(mask_LE) * top_k)


class _MaskedLogits(TorchFunctionMode):
    """While entered, masks the output of `F.linear` by the router's own weight."""

    def __init__(self, router: nn.Module, allowed_E: torch.Tensor) -> None:
        super().__init__()
        self.router, self.allowed_E, self.num_applied = router, allowed_E, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear and args[1] is self.router.weight:
            self.num_applied += 1
            return out.masked_fill(~self.allowed_E, torch.finfo(out.dtype).min)
        return out


class RouteMask:
    """Hooks on all routers of a model; `set` puts a mask in force until the next one.

    `applied_LE` is what the routers have really applied since then, which is what a monitor should look at.
    """

    def __init__(self, layers: tuple[MoELayer, ...], num_experts: int, device: torch.device) -> None:
        self.allowed_LE: torch.Tensor | None = None
        self.applied_LE = torch.ones(len(layers), num_experts, dtype=torch.bool, device=device)
        self._entered: dict[int, _MaskedLogits] = {}
        for layer in layers:
            layer.router.register_forward_pre_hook(self._enter(layer.index))
            layer.router.register_forward_hook(self._leave(layer.index), always_call=True)

    def set(self, allowed_LE: torch.Tensor | None) -> None:
        """Allow only these experts, bool [L, E]; None: no mask."""
        self.allowed_LE = None if allowed_LE is None else allowed_LE.to(self.applied_LE.device)
        self.applied_LE.fill_(True)

    def _enter(self, index: int) -> Any:
        def hook(router: nn.Module, args: tuple[Any, ...]) -> None:
            if self.allowed_LE is not None:
                self._entered[index] = _MaskedLogits(router, self.allowed_LE[index])
                self._entered[index].__enter__()

        return hook

    def _leave(self, index: int) -> Any:
        def hook(router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            mode = self._entered.pop(index, None)
            if mode is not None:
                mode.__exit__(None, None, None)
                self.applied_LE[index] = mode.allowed_E | (mode.num_applied == 0)

        return hook
