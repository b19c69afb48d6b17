"""Describes a checkpoint for `dist-moe inspect-model`, from its configuration and its shards' headers; reads no
weights.

How a family routes is observed, not looked up by name: its MoE block runs once on the meta device, where nothing is
computed, and the functions that it calls between the router's weight and the experts are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import MoELayer, find_moe_layers, moe_shape, require_routers
from dist_moe.moe.internals import is_decoder_layer, must_be_alone
from dist_moe.moe.layout import hub_layout
from dist_moe.moe.load import empty_model
from dist_moe.moe.routing import MATMULS

ROUTE = "train.mode route"
CAPABILITIES = ("analyze", "train.mode update", ROUTE, "evaluate", "export", "verify")
SCORES = ("softmax", "sigmoid", "softplus", "sqrt")
NUM_TOKENS = 5
"""Number of tokens of the run on the meta device: different from any number of experts or groups that matters."""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What `dist-moe inspect-model` prints."""

    model_type: str
    dtype: str
    parameters: int
    moe_layers: int
    dense_layers: int
    experts: int
    """Routed experts in each layer."""
    experts_per_token: int
    routing: str
    """The router's functions in the order in which they are called."""
    groups: int
    """Number of groups of experts in group-limited routing; 1: no groups."""
    expert_biases: bool
    shared_experts: bool
    """Experts that every token uses: never counted, masked or trained."""
    bytes_per_expert: int
    """Bytes of one routed expert in one layer, in the checkpoint's data type."""
    expert_bytes: int
    """Bytes of all routed experts of all layers."""
    other_bytes: int
    rows_per_pass: str
    """Whether rows of different lengths may share a forward pass."""
    on_disk: str
    supported: str
    refused: str
    """What is not supported, and why; "nothing" if everything is."""


def describe(path: Path) -> ModelSummary:
    """Describe a model directory.

    Raises:
        UserError: the model is dense, quantized or unknown.
    """
    model = empty_model(path)
    layers = find_moe_layers(model)
    shape = moe_shape(model, layers)
    weights = [layers[0].experts.get_parameter(name) for name in expert_weights(layers[0].experts)]
    bytes_per_expert = sum(weight[0].nbytes for weight in weights)
    expert_bytes = bytes_per_expert * shape.num_experts * shape.num_layers
    layout = hub_layout(path)
    fused = any(tensor.expert is None for tensor in layout.tensors.values())
    refusal = _refusal(model)
    steps, groups = routing_steps(model, layers)
    return ModelSummary(
        model_type=model.config.model_type,
        dtype=str(weights[0].dtype).removeprefix("torch."),
        parameters=model.num_parameters(),
        moe_layers=shape.num_layers,
        dense_layers=_num_decoder_layers(model, layers[0].name) - shape.num_layers,
        experts=shape.num_experts,
        experts_per_token=shape.top_k,
        routing=", ".join(steps) or "not seen",
        groups=groups,
        expert_biases=any(name.endswith("_bias") for name in expert_weights(layers[0].experts)),
        shared_experts=any("shared" in name for name, _ in layers[-1].block.named_parameters()),
        bytes_per_expert=bytes_per_expert,
        expert_bytes=expert_bytes,
        other_bytes=sum(
            tensor.stop - tensor.start for name, tensor in layout.stored.items() if name not in layout.tensors
        ),
        rows_per_pass="1, as its sparse attention depends on padding" if must_be_alone(model) else "any number",
        on_disk="all experts of a layer in one tensor" if fused else "one tensor an expert and matrix",
        supported=", ".join(name for name in CAPABILITIES if not (name == ROUTE and refusal)),
        refused=refusal or "nothing",
    )


def _num_decoder_layers(model: PreTrainedModel, experts_name: str) -> int:
    """Length of the list of layers that contains an experts module such as `model.layers.3.mlp.experts`."""
    parts = experts_name.split(".")
    position = next(i for i, part in enumerate(parts) if part.isdecimal())
    layers = model.get_submodule(".".join(parts[:position]))
    assert isinstance(layers, nn.ModuleList)
    return len(layers)


def _refusal(model: PreTrainedModel) -> str | None:
    """Why `train.mode: route` is not supported, if it is not."""
    try:
        require_routers(model)
    except UserError as error:
        return f"{ROUTE}: {error}"
    return None


def routing_steps(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> tuple[list[str], int]:
    """What the last MoE layer's router does to its logits, in words, and its number of groups.

    `model` is on the meta device, and must not be used for another forward pass afterwards.
    """
    last = _Recorder(layers[-1])
    layers[-1].block.register_forward_pre_hook(lambda block, args: last.__enter__() and None)
    layers[-1].experts.register_forward_pre_hook(lambda *_: last.__exit__(None, None, None), with_kwargs=True)
    for layer in layers:
        layer.experts.forward = lambda hidden_states, *args, **kwargs: hidden_states  # its work is not of interest
    with torch.no_grad():
        if is_decoder_layer(layers[-1].block):  # it takes more than hidden states: run what calls it
            ids = torch.ones(1, NUM_TOKENS, dtype=torch.int64, device="meta")
            mask = torch.zeros(1, 1, NUM_TOKENS, NUM_TOKENS, device="meta")  # complete, so that nobody looks into it
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        else:
            hidden_size = model.config.get_text_config().hidden_size
            layers[-1].block(torch.empty(1, NUM_TOKENS, hidden_size, dtype=model.dtype, device="meta"))
    return last.steps, last.groups


class _Recorder(TorchFunctionMode):
    """Context manager: records what happens to the logits of one layer's router."""

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.router_shape, self.num_experts = layer.router_shape, layer.num_experts
        self.steps: list[str] = []
        self.groups = 1
        self._seen = self._chosen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if func in MATMULS and tuple(args[1].shape) in (self.router_shape, self.router_shape[::-1]):
            self._seen = True
        elif self._seen and isinstance(args[0], torch.Tensor):
            self._write(name, args[0], result)
        return result

    def _write(self, name: str, given: torch.Tensor, result: Any) -> None:
        widths = (self.num_experts, self.router_shape[0])
        if name in SCORES:
            self.steps.append(name)
        elif name in ("add", "__add__") and given.shape[-1] in widths and prod(given.shape[:-1]) == NUM_TOKENS:
            self.steps.append("+ bias")
        elif name == "topk":
            self.steps.append(self._top_k(given, result[0].shape[-1]))
        elif name == "sum" and self._chosen and result.numel() == NUM_TOKENS:
            self.steps.append("renormalised")

    def _top_k(self, given: torch.Tensor, k: int) -> str:
        width = given.shape[-1]
        if width in (self.num_experts, self.router_shape[0]):
            self._chosen = True
            return f"top-{k}"
        if given.dim() > 2:
            self.groups = given.shape[-2]
            return f"top-{k} of each group"
        self.groups = width
        return f"top-{k} groups"
