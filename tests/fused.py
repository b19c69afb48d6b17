"""The experts of a plain transformers model as fused tensors [E, ...], from each family's own definition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Values = dict[str, torch.Tensor]


def itself(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.detach()


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def fused_experts(model: PreTrainedModel, name: str, of: Callable[[nn.Parameter], torch.Tensor] = itself) -> Values:
    """`name`: the experts module in our model; `of` selects what is wanted of each parameter."""
    block = model.get_submodule(name.rpartition(".")[0])
    layout: Any = OWN_LAYOUTS.get(model.config.model_type, _interface)
    values: Values = layout(block, of)
    return values


def _interface(block: Any, of: Any) -> Values:
    return {key: of(parameter) for key, parameter in block.experts.named_parameters(recurse=False)}


def _dbrx(block: Any, of: Any) -> Values:
    experts = block.experts
    shape = (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)
    gate, up, down = (of(weight).reshape(shape) for weight in (experts.mlp.w1, experts.mlp.v1, experts.mlp.w2))
    # x @ w1[e].T is the gate, y @ w2[e] the output
    return {
        "gate_up_proj": torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)]),
        "down_proj": torch.stack([matrix.t() for matrix in down]),
    }


def _jetmoe(block: Any, of: Any) -> Values:
    return {"gate_up_proj": of(block.input_linear.weight), "down_proj": of(block.output_linear.weight)}


def _longcat_flash(block: Any, of: Any) -> Values:
    num_experts = block.experts.num_routed_experts  # past them: gate and up of the zero experts, which nothing uses
    return {
        "gate_up_proj": of(block.experts.gate_up_proj)[:num_experts],
        "down_proj": of(block.experts.down_proj),
    }


def unfused(model: PreTrainedModel) -> set[str]:
    """The plain model's expert tensors that our model has under other names."""
    parts = OWN_NAMES.get(model.config.model_type, ())
    return {name for name in model.state_dict() if name.endswith(parts)} if parts else set()


OWN_LAYOUTS = {"dbrx": _dbrx, "jetmoe": _jetmoe, "longcat_flash": _longcat_flash}
OWN_NAMES = {
    "dbrx": ("experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"),
    "jetmoe": ("mlp.input_linear.weight", "mlp.output_linear.weight"),
}
