"""Which part of the model a weight belongs to, in the words that people use of all families."""

from __future__ import annotations

import re

from transformers import PreTrainedModel

from dist_moe.moe.discover import MoELayer

ATTENTION = re.compile(r"(^|[._])(attn|attention|self_attn|mixer|mamba|ssm|conv|recurrent)([._]|$)")
NORM = re.compile(r"norm|(^|[._])ln(_|\d|[._]|$)")
DENSE = re.compile(r"(^|\.)(mlp|ffn|feed_forward|block_sparse_moe|moe)\.")
ROUTER = re.compile(r"gate|router|correction_bias")


def parts_of(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> dict[str, str]:
    """Each weight and buffer of a model -> its part, by where it is and how it is called.

    Parts: router, shared expert, attention (and what a family has in its place), embedding, output layer, norm, dense
    layer, other. A router's bias is of the router.
    """
    prefix_of = {id(module): f"{name}." for name, module in model.named_modules()}
    ends = {
        prefix_of[id(module)]: part
        for part, module in (
            ("embedding", model.get_input_embeddings()),
            ("output layer", model.get_output_embeddings()),
        )
        if module is not None
    }
    blocks = tuple(prefix_of[id(layer.block)] for layer in layers)
    return {name: _part(name, ends, blocks) for name in model.state_dict()}


def _part(name: str, ends: dict[str, str], blocks: tuple[str, ...]) -> str:
    at_end = next((part for prefix, part in ends.items() if name.startswith(prefix)), None)
    if at_end is not None:
        return at_end
    block = next((prefix for prefix in blocks if name.startswith(prefix)), None)
    inside = name.removeprefix(block or "")
    if "shared" in inside and block is not None:
        return "shared expert"
    if ATTENTION.search(inside):
        return "attention"
    if block is not None and ROUTER.search(inside) and "gate_proj" not in inside:
        return "router"
    if NORM.search(inside):
        return "norm"
    return "dense layer" if DENSE.search(name) else "other"
