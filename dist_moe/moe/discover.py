"""Find the MoE layers of a transformers model.

transformers 5 marks every experts module that can be handed to another implementation with the attributes that its
`use_experts_implementation` decorator sets; those attributes are the interface that this room builds on.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from dist_moe.errors import UserError

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Model types whose router is linear, softmax, top-k, and whose experts have a gate and no bias: what is tested today."""


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One MoE layer; `index` counts MoE layers only, dense layers have none."""

    index: int
    name: str
    experts: nn.Module
    router: nn.Module


@dataclass(frozen=True, slots=True)
class MoEShape:
    """L layers, E routed experts in each, k experts a token, and the layers' module names."""

    num_layers: int
    num_experts: int
    top_k: int
    layer_names: tuple[str, ...]


def is_experts(module: nn.Module) -> bool:
    """Whether a module was made by transformers' experts interface."""
    return all(hasattr(module, name) for name in ("_is_expert_parallel", "is_transposed", "has_gate", "has_bias"))


def find_moe_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """The MoE layers in forward order. A dense model or an untested family is a `UserError`."""
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if is_experts(module)]
    family = model.config.model_type
    if not names:
        raise UserError(
            f"model type '{family}' has no mixture-of-experts layer: expected one of {', '.join(FAMILIES)}; "
            "point model.path at an MoE checkpoint"
        )
    if family not in FAMILIES:
        raise UserError(f"model type '{family}' is not supported: expected one of {', '.join(FAMILIES)}")
    routers = [modules[name.rpartition(".")[0]].get_submodule("gate") for name in names]
    return tuple(MoELayer(i, n, modules[n], r) for i, (n, r) in enumerate(zip(names, routers, strict=True)))


def moe_shape(layers: tuple[MoELayer, ...]) -> MoEShape:
    """The shape that masks and counts have for this model. Call it before the experts are taken into banks."""
    sizes = {(layer.router.weight.shape[0], layer.router.top_k) for layer in layers}
    assert len(sizes) == 1, f"layers differ in experts or k: {sizes}"
    ((num_experts, top_k),) = sizes
    return MoEShape(len(layers), num_experts, top_k, tuple(layer.name for layer in layers))
