"""Models of released shapes with random weights, made on the device; their batches, masks and products."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, OlmoeConfig, PretrainedConfig, PreTrainedModel, Qwen3MoeConfig

from dist_moe.data.tokens import TokenBatch
from tools.gpu_check.here import Here, token_batch

SIZES: dict[str, dict[str, int]] = {
    "olmoe": {"hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, "num_experts": 64}
    | {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304},
    "qwen3": {"hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_experts": 128}
    | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936},
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_experts": 8, "vocab_size": 512} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
BATCH = {"olmoe": (16, 512), "qwen3": (4, 4096)}
"""Rows of a batch, and tokens of a row."""


def config_of(name: str, here: Here, layers: int | None = None) -> PretrainedConfig:
    """Of OLMoE-1B-7B or Qwen3-30B-A3B, with fewer layers if asked for."""
    size = SIZES[name] | ({"num_hidden_layers": layers} if layers else {}) | (TINY if here.dry else {})
    inner = {"intermediate_size": 32, "moe_intermediate_size": 32, "head_dim": 32} if here.dry else {}
    kind: Any = OlmoeConfig if name == "olmoe" else Qwen3MoeConfig
    k = 2 if here.dry else 8
    return kind(**size | inner, num_experts_per_tok=k, norm_topk_prob=name == "qwen3", max_position_embeddings=4096)


def build(config: PretrainedConfig, here: Here) -> PreTrainedModel:
    """In bf16; the router's logits are spread as those of a trained one."""
    torch.manual_seed(0)
    with torch.device(here.device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.05 if "mlp.gate.weight" in name else 0.02)
    return module.eval().requires_grad_(False)


def batches(name: str, config: PretrainedConfig, here: Here, rows_at_once: int) -> list[TokenBatch]:
    """The micro-batches of one batch, on the host."""
    rows, length = (4, 16) if here.dry else BATCH[name]
    size = min(rows, rows_at_once)
    return [token_batch(config.vocab_size, rows=size, length=length, seed=i) for i in range(rows // size)]


def masks(config: PretrainedConfig, num: int = 3, per_batch: int = 50) -> torch.Tensor:
    """bool [num, L, E]: each batch has `per_batch` experts of a union of a tenth of all."""
    generator = torch.Generator().manual_seed(1)
    total = config.num_hidden_layers * config.num_experts
    union = torch.randperm(total, generator=generator)[: max(2, total // 10)]
    found = torch.zeros(num, total, dtype=torch.bool)
    for mask in found:
        mask[union[torch.randperm(len(union), generator=generator)[:per_batch]]] = True
    return found.view(num, config.num_hidden_layers, config.num_experts)


def flops(
    config: PretrainedConfig, batches: list[TokenBatch], labelled: int, pairs: float, active: float, first: int
) -> float:
    """Products that one step needs: the forward pass, gradients of inputs from layer `first` on, and weight gradients
    of the trained experts' `active` rows. `pairs` are all (token, expert) pairs of all layers."""
    tokens, length = sum(batch.input_ids.numel() for batch in batches), batches[0].input_ids.shape[1]
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    scores = 2 * tokens * length * q  # two products over half the pairs of positions
    attention = 2 * tokens * hidden * (2 * q + 2 * kv) + scores
    router, expert = 2 * tokens * hidden * config.num_experts, 2 * 3 * hidden * inner
    output = 2 * labelled * hidden * config.vocab_size
    forward = layers * (attention + router) + pairs * expert + output
    share = (layers - first) / layers
    back = (layers - first) * (attention + scores + router) + share * pairs * expert + output
    return forward + back + active * expert
