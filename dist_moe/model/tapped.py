"""A model in anybody's training, as counting uses one: its routing is read, and nothing in it is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from dist_moe.moe.discover import MoEShape, find_moe_layers, moe_shape
from dist_moe.moe.internals import must_be_alone
from dist_moe.moe.tap import RoutingTap
from dist_moe.parallel.comm import Comm

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tapped:
    """What `count_rows` needs of a model, in the words of `MoEModel`."""

    module: PreTrainedModel
    shape: MoEShape
    tap: RoutingTap
    in_step: Comm
    """All ranks run their passes together, as weights may be sharded over them."""
    rows_alone: bool
    packed: bool = False
    """Nobody has asked anybody's training whether its model can."""

    def at_once(self, limit: T) -> T | int:
        return 1 if self.rows_alone else limit

    def batch(self, live_RS: torch.Tensor | None = None) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def tapped(module: PreTrainedModel, comm: Comm) -> Iterator[Tapped]:
    """Context manager: the model in evaluation mode, with hooks that count. On leaving, also by an exception, the hooks
    are gone and every module is in the mode that it was in.

    Raises:
        UserError: the model is dense, or its experts do not have transformers' interface.
    """
    layers = find_moe_layers(module)
    shape, modes = moe_shape(module, layers), {each: each.training for each in module.modules()}
    tap = RoutingTap(layers, shape.num_experts)
    try:
        module.eval()
        yield Tapped(module, shape, tap, comm, must_be_alone(module))
    finally:
        tap.remove()
        for each, mode in modes.items():
            each.training = mode
