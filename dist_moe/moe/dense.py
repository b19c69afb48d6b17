"""Dense weights that a run trains: routers, or everything that is no expert's.

A router becomes a plain tensor in its module's place for a parameter, so that no engine finds, reduces, casts or shards
it, as with experts. The module computes with it as before. Other dense weights remain parameters; only an engine that
leaves parameters alone can train them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


def take_dense(module: nn.Module, names: Iterable[str], routers: Iterable[str]) -> dict[str, torch.Tensor]:
    """The named parameters of a module as tensors that can be written, which the module goes on computing with.

    Args:
        module: the model.
        names: of parameters.
        routers: which of these (or other) names become plain tensors.
    """
    outside, taken = set(routers), {}
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = module.get_submodule(parent)
        parameter = owner.get_parameter(last)
        weight = parameter.detach().clone()  # loaded weights are memory-mapped to their files
        if name in outside:
            del owner._parameters[last]
            setattr(owner, last, weight)
            taken[name] = weight
        else:
            parameter.data = weight
            taken[name] = parameter
    return taken


def in_use(module: nn.Module, name: str) -> torch.Tensor:
    """The tensor that a module computes with under this name."""
    parent, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(parent), last)
    assert isinstance(found, torch.Tensor)
    return found


@contextmanager
def requiring_gradients(weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While entered, autograd gives these tensors gradients; afterwards they have none."""
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
