"""Finds the MoE layers of a transformers model.

An experts module is recognised by transformers' experts interface (see internals.py). Routers differ between families,
so a router is recognised only by its weight: a matrix beside the experts module with E rows, or a few more in families
with null or always-on experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dist_moe.errors import UserError
from dist_moe.moe.internals import is_experts

EXPERT_WEIGHTS = (
    "gate_up_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj_bias",
    "up_proj_bias",
    "down_proj_bias",
)
"""Possible names of an experts module's parameters, each `[E, ...]`."""
TOP_K_NAMES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k",
)
UNMASKABLE = "train.mode route cannot mask: set train.mode to update"
HASH_TABLE = "tid2eid"
"""Buffer of a router that maps token ids to experts (deepseek_v4)."""
EXTRA_ROUTER_ROWS = 16
"""A router may score at most this many null or always-on experts in addition to the E routed ones."""


@dataclass(frozen=True, slots=True)
class MoELayer:
    """One MoE layer. `index` counts MoE layers only, not dense ones."""

    index: int
    name: str
    """Name of the experts module."""
    block: nn.Module
    """The module whose forward routes and then calls the experts."""
    experts: nn.Module
    num_experts: int
    router: nn.Module
    """Child of the block that has the router's weight and applies it in its forward."""
    router_shape: tuple[int, ...]
    """Shape of the router's weight: E rows, or a few more."""
    router_names: tuple[str, ...]
    """Names in the model of that weight, and of the bias beside it if it has one: what a router that is trained learns.
    Correction biases, which balance the use of experts, are not part of it: they only choose, so they get no gradient.
    """
    num_null_experts: int
    """Number of experts without weights, which have numbers from E on. A checkpoint may have unused tensors for
    them."""


@dataclass(frozen=True, slots=True)
class MoEShape:
    """L layers, E routed experts in each, k experts per token, and the module names of the layers."""

    num_layers: int
    num_experts: int
    top_k: int
    layer_names: tuple[str, ...]


def find_moe_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """The MoE layers in forward order.

    Raises:
        UserError: the model is dense, or its experts do not have the interface.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if is_experts(module)]
    family = model.config.model_type
    if not names:
        raise UserError(
            f"model type '{family}' has no mixture-of-experts layer that transformers' experts interface covers: "
            "point model.path at an MoE checkpoint (Mixtral, OLMoE, Qwen3-MoE, DeepSeek, gpt-oss, ...)"
        )
    layers = []
    for index, name in enumerate(names):
        if getattr(modules[name], "has_post_expert_norm", False):
            raise UserError(f"{name}: model type '{family}' is not supported: it normalises each expert's output")
        block_name = name.rpartition(".")[0]
        block, experts = modules[block_name], modules[name]
        num_experts = experts.get_parameter("down_proj").shape[0]
        if num_experts < 1:
            raise UserError(f"{name}: config.json says that a layer has {num_experts} experts, expected at least 1")
        num_null = getattr(experts, "num_null_experts", 0)
        router, shape, key = _router(block, num_experts, num_experts + max(num_null, EXTRA_ROUTER_ROWS), name)
        of_router = tuple(f"{block_name}.{each}" for each in (key, *_bias_beside(block, key)))
        layers.append(MoELayer(index, name, block, experts, num_experts, router, shape, of_router, num_null))
    return tuple(layers)


def moe_shape(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> MoEShape:
    """The shape of masks and counts for this model."""
    sizes = sorted({layer.num_experts for layer in layers})
    if len(sizes) > 1:
        raise UserError(f"model type '{model.config.model_type}': layers differ in their number of experts: {sizes}")
    top_k, most = _top_k(model.config), min(layer.num_experts + layer.num_null_experts for layer in layers)
    if not 1 <= top_k <= most:
        raise UserError(f"config.json says that a token goes to {top_k} experts, expected 1 to {most}, as a layer has")
    return MoEShape(len(layers), sizes[0], top_k, tuple(layer.name for layer in layers))


def require_routers(model: PreTrainedModel, why: str = UNMASKABLE) -> None:
    """Raise a `UserError` if some layers choose experts by a hash of the token, without router logits.

    `why` ends the message: why logits are needed, and what to do.
    """
    hashed = [name for name, _ in model.named_buffers() if name.endswith(HASH_TABLE)]
    if hashed:
        raise UserError(f"{hashed[0]}: model type '{model.config.model_type}' has hash-routed layers, which {why}")


def _router(block: nn.Module, num_experts: int, max_rows: int, name: str) -> tuple[nn.Module, tuple[int, ...], str]:
    """Module of the router, and its weight's shape and name in the block: the narrowest matrix beside the experts that
    has a row for each of them and a router's name."""
    found = [
        (tuple(parameter.shape), key)
        for key, parameter in block.named_parameters()
        if parameter.dim() == 2
        and "expert" not in key
        and "gate_proj" not in key  # a dense MLP's
        and ("gate" in key or "router" in key)
        and num_experts <= parameter.shape[0] <= max_rows
    ]
    if not found:
        raise UserError(f"{name}: no router found: expected a weight of {num_experts} rows beside the experts")
    shape, key = min(found)
    child, dot, _ = key.partition(".")
    return block.get_submodule(child) if dot else block, shape, key


def _bias_beside(block: nn.Module, key: str) -> list[str]:
    """Name in the block of the bias of a router's weight, if it has one."""
    owner, dot, last = key.rpartition(".")
    name = f"{owner}{dot}{last.replace('weight', 'bias')}"
    return [name] if name != key and name in dict(block.named_parameters()) else []


def _top_k(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    for part in (text, *(getattr(text, name) for name in text.sub_configs)):
        for name in TOP_K_NAMES:
            value = getattr(part, name, None)
            if type(value) is int:
                return value
    raise UserError(f"model type '{config.model_type}': its configuration has no number of experts per token")
