"""Tiny configurations, one line for each model type, and models with random weights; nothing is downloaded.

They cover what loading, counting and masking must cope with: experts with and without gate or bias, transposed weights,
dense layers before the first MoE layer, grouped top-k, correction biases, shared experts, and checkpoints with one
tensor per expert or with fused ones. Every part of a family that may look at padding is included: sliding windows,
chunks, sparse attention, convolutions, recurrent states. All of these see fewer than `SPAN` tokens, so that a longer
row makes them choose or forget.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dist_moe.moe.discover import HASH_TABLE
from dist_moe.tested import minor

L, E, K, VOCAB = 3, 8, 4, 128
SPAN = 16
"""Maximum number of tokens that a window, a chunk or a sparse attention sees at once."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# how a family names its experts
NUM = {"num_experts": E, "num_experts_per_tok": K}
LOCAL = {"num_local_experts": E, "num_experts_per_tok": K}
ROUTED = {"n_routed_experts": E, "num_experts_per_tok": K}
MOE_NUM = {"moe_num_experts": E, "moe_num_shared_experts": 1}
SHARED = {"n_shared_experts": 1}
SHARED_SIZE = {"shared_expert_intermediate_size": 32}
GROUPS = {"n_group": 2, "topk_group": 1}
FIRST_DENSE = {"first_k_dense_replace": 1}

# sizes of dense MLPs and experts
MLP = {"intermediate_size": 48}
MOE = {"moe_intermediate_size": 32}
BOTH = MLP | MOE

# attention
HEAD = {"head_dim": 16}
WINDOW = {"sliding_window": SPAN}


def _layers(first: str, second: str, third: str) -> dict[str, Any]:
    return {"layer_types": [first, second, third]}


SLIDING = WINDOW | _layers("sliding_attention", "full_attention", "sliding_attention")
SHORT_CONV = {"sliding_window_size": SPAN} | _layers("hybrid_sliding", "hybrid", "hybrid_sliding")
HYBRID = _layers("linear_attention", "full_attention", "linear_attention")
MAMBA = _layers("mamba", "attention", "mamba")
MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
Q_LORA = {"q_lora_rank": 32}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": SPAN // 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 2,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "afmoe": BOTH | HEAD | SLIDING | NUM | {"num_shared_experts": 1, "num_dense_layers": 1},
    "aria_text": MLP | HEAD | MOE_NUM | {"moe_topk": K},
    "axk1": BOTH | MLA | Q_LORA | ROUTED | SHARED | GROUPS,
    "axk2": BOTH | MLA | Q_LORA | INDEX | ROUTED | SHARED | GROUPS,
    "bailing_hybrid": BOTH | MLA | HYBRID | LOCAL | SHARED | GROUPS | FIRST_DENSE,
    "beam": BOTH | HEAD | WINDOW | NUM | GROUPS | {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "cohere2_moe": MLP | HEAD | SLIDING | NUM | {"num_shared_experts": 1},
    "dbrx": {
        "d_model": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": E, "moe_top_k": K},
    },
    "deepseek_v2": BOTH | MLA | Q_LORA | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "deepseek_v3": BOTH | MLA | Q_LORA | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "deepseek_v32": BOTH | MLA | Q_LORA | INDEX | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "deepseek_v4": MOE
    | HEAD
    | WINDOW
    | Q_LORA
    | INDEX
    | ROUTED
    | SHARED
    | {"mlp_layer_types": ["hash_moe", "moe", "moe"], "num_nextn_predict_layers": 0}
    | _layers("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
    | {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 8}},
    "dots1": BOTH | SLIDING | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "dots3_note_text": BOTH
    | MLA
    | Q_LORA
    | INDEX
    | WINDOW
    | ROUTED
    | SHARED
    | GROUPS
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 32, "swa_kv_lora_rank": 32},
    "ernie4_5_moe": BOTH | MOE_NUM | {"moe_k": K, "moe_layer_start_index": 1},
    "exaone_moe": BOTH | SLIDING | NUM | GROUPS | FIRST_DENSE | {"num_shared_experts": 1},
    "flex_olmo": MLP | NUM,
    "flint": BOTH | HEAD | SLIDING | NUM | SHARED_SIZE | {"decoder_sparse_step": 1},
    "gemma4_text": BOTH
    | HEAD
    | WINDOW
    | {"num_experts": E, "top_k_experts": K, "enable_moe_block": True}
    | {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB},
    "glm4_moe": BOTH | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "glm4_moe_lite": BOTH | MLA | Q_LORA | ROUTED | SHARED | GROUPS,
    "glm_moe_dsa": BOTH | MLA | Q_LORA | INDEX | ROUTED | SHARED | GROUPS | FIRST_DENSE,
    "gpt_oss": MLP | HEAD | WINDOW | LOCAL,
    "granitemoe": MLP | LOCAL,
    "granitemoe_swa": MLP | SLIDING | LOCAL | {"shared_intermediate_size": 32},
    "granitemoehybrid": MLP
    | MAMBA
    | LOCAL
    | {"shared_intermediate_size": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": SPAN},
    "granitemoeshared": MLP | LOCAL | {"shared_intermediate_size": 32},
    "hunyuan_v1_moe": MLP | HEAD | {"num_experts": E, "moe_topk": K},
    "hy_v3": BOTH | HEAD | NUM | {"num_shared_experts": 1},
    "hy_v4": BOTH | MLA | Q_LORA | INDEX | ROUTED | SHARED | GROUPS,
    "inkling2_text": MOE | HEAD | SHORT_CONV | ROUTED,
    "inkling_text": BOTH | HEAD | SHORT_CONV | ROUTED | SHARED,
    "jamba": MLP
    | NUM
    | {"mamba_d_state": 8, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 0}
    | {"expert_layer_period": 1, "expert_layer_offset": 0},
    "jetmoe": MLP | LOCAL | {"kv_channels": 16},
    "kimi_linear": BOTH
    | MLA
    | Q_LORA
    | LOCAL
    | SHARED
    | GROUPS
    | HYBRID
    | {"linear_conv_kernel_dim": 2, "linear_head_dim": 16, "linear_num_heads": 2},
    "kolibri1": MOE | HEAD | SLIDING | NUM | SHARED_SIZE,
    "laguna": BOTH | HEAD | SLIDING | NUM | SHARED_SIZE,
    "lfm2_moe": BOTH | NUM | {"num_dense_layers": 1} | _layers("conv", "full_attention", "conv"),
    "llama4_text": MLP
    | HEAD
    | LOCAL
    | {"intermediate_size_mlp": 48, "moe_layers": [1, 2], "attention_chunk_size": SPAN}
    | _layers("chunked_attention", "full_attention", "chunked_attention"),
    "longcat_flash": MLA
    | HEAD
    | Q_LORA
    | ROUTED
    | {
        "num_hidden_layers": 2 * L,
        "num_layers": L,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 4,
    },
    "mellum": BOTH | HEAD | SLIDING | NUM,
    "mimo_v2_flash": BOTH | HEAD | SLIDING | ROUTED | GROUPS | {"v_head_dim": 16},
    "minimax": MLP | HEAD | WINDOW | LOCAL | {"block_size": SPAN},
    "minimax_m2": MLP | HEAD | LOCAL,
    "minimax_m3_vl_text": MLP
    | HEAD
    | LOCAL
    | {"index_n_heads": 2, "index_head_dim": 16, "shared_intermediate_size": 32}
    | {"index_block_size": SPAN // 4, "index_topk_blocks": 2}
    | _layers("minimax_m3_sparse", "full_attention", "minimax_m3_sparse"),
    "mixtral": MLP | HEAD | LOCAL,
    "nemotron_h": BOTH
    | HEAD
    | ROUTED
    | SHARED
    | GROUPS
    | {"layers_block_type": ["mamba", "moe", "attention", "moe"], "num_nextn_predict_layers": 0}
    | {"use_mamba_kernels": False, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8}
    | {"n_groups": 2, "chunk_size": SPAN},
    "olmoe": MLP | NUM,
    "phimoe": MLP | LOCAL,
    "qwen2_moe": BOTH | NUM | SHARED_SIZE,
    "qwen3_5_moe_text": MOE | HEAD | NUM | SHARED_SIZE | HYBRID | LINEAR,
    "qwen3_moe": BOTH | HEAD | NUM,
    "qwen3_next": BOTH | HEAD | NUM | SHARED_SIZE | HYBRID | LINEAR,
    "qwen4_exp_text": MOE
    | HEAD
    | NUM
    | SHARED_SIZE
    | LINEAR
    | HYBRID
    | {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_budget": SPAN // 2, "indexer_compress_ratio": 2},
    "solar_open": MOE | HEAD | ROUTED | SHARED | GROUPS,
    "zaya": MOE
    | HEAD
    | WINDOW
    | {"num_experts": E, "num_experts_per_tok": 1}
    | _layers("hybrid", "hybrid_sliding", "hybrid"),
}

# what a configuration holds beside a text model
ONE_LAYER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN_VISION = ONE_LAYER | {"depth": 1, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 16}
COMPOSITES: dict[str, dict[str, Any]] = {
    "dots3_note": {
        "vision_config": ONE_LAYER
        | {"moe_intermediate_size": 32, "pyramid_num_routed": [4], "adapter_in_dim": 32, "adapter_out_dim": 64},
        "audio_config": ONE_LAYER | {"adapter_input_size": 32, "adapter_out_dim": 64},
    },
    "gemma4": {"vision_config": ONE_LAYER | {"num_key_value_heads": 2, "head_dim": 16}, "audio_config": None},
    "llama4": {
        "vision_config": ONE_LAYER
        | {"intermediate_size": 64, "image_size": 28, "patch_size": 14, "vision_output_dim": 32}
        | {"projector_input_dim": 32, "projector_output_dim": 32}
    },
    "qwen3_5_moe": {"vision_config": QWEN_VISION},
    "qwen4_exp": {"vision_config": QWEN_VISION},
}
"""Model types whose text model is `<type>_text`, with their other parts."""
REFUSED: dict[str, dict[str, Any]] = {"doge": MLP | NUM | {"is_moe": True, "num_experts": 64}}
"""Model types that are not supported."""
SUPPORTED_FROM = {"aria_text": (5, 18)}
"""Model types without the experts interface in earlier versions of transformers -> the first version with it."""


def _config(family: str, **changes: Any) -> PreTrainedConfig:
    settings = COMMON | (SETTINGS | REFUSED)[family] | changes
    if "layers_block_type" in settings:  # says how many layers there are
        del settings["num_hidden_layers"]
    return CONFIG_MAPPING[family](**settings)


FAMILY_CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    family: partial(_config, family)
    for family in SETTINGS
    if family in CONFIG_MAPPING  # an older transformers has fewer
    and minor(transformers.__version__) >= SUPPORTED_FROM.get(family, (0, 0))
}
"""Family -> function that makes its tiny configuration; keyword arguments change single settings."""


def _composite(model_type: str) -> PreTrainedConfig:
    text = COMMON | SETTINGS[f"{model_type}_text"]
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**COMPOSITES[model_type], text_config=text)  # type: ignore[call-arg]
    return config


ALL_CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = (
    FAMILY_CONFIGS
    | {name: partial(_composite, name) for name in COMPOSITES if name in CONFIG_MAPPING}
    | {name: partial(_config, name) for name in (*REFUSED, *SUPPORTED_FROM) if name in CONFIG_MAPPING}
)
"""The same, with composite and unsupported types."""
EVERY_TYPE = frozenset({*SETTINGS, *COMPOSITES, *REFUSED})
"""Those and the types that only a later transformers has."""


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fill all weights, correction biases and hash tables with random values, so that misplaced ones show and
    routing varies."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08, generator=generator)
            elif "norm" not in name and "A_log" not in name and "dt" not in name:
                parameter.normal_(0, 0.05, generator=generator)
        for name, buffer in model.named_buffers():
            if "bias" in name and buffer.is_floating_point():
                buffer.normal_(0, 0.3, generator=generator)
            elif name.endswith(HASH_TABLE):  # of each token some experts, none of them twice
                buffer.copy_(torch.rand(len(buffer), E, generator=generator).argsort(1)[:, : buffer.shape[1]])
    return model


def build(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, *, attention: str = "auto", **changes: Any
) -> PreTrainedModel:
    """A model of this family with random weights, eager experts, in eval mode. `attention` is as in `ModelConfig`."""
    torch.manual_seed(seed)
    asked = None if attention == "auto" else attention
    model = AutoModelForCausalLM.from_config(ALL_CONFIGS[family](**changes), dtype=dtype, attn_implementation=asked)
    model.set_experts_implementation("eager")
    return randomize(model, seed).eval()
