"""Tiny models of every supported family, built from configs; nothing is fetched."""

import torch
import transformers
from transformers import PreTrainedModel

L, E, K, VOCAB = 3, 8, 2, 128

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": K,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

CONFIGS = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, intermediate_size=64, moe_intermediate_size=48, num_experts=E, norm_topk_prob=True, head_dim=8
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **COMMON,
        intermediate_size=64,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=40,
        num_experts=E,
        norm_topk_prob=False,
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**COMMON, intermediate_size=48, num_experts=E, norm_topk_prob=False),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, intermediate_size=48, num_local_experts=E),
}
FAMILIES = tuple(CONFIGS)
"""Families with softmax scores; CONFIGS has others."""
CONFIGS |= {
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **COMMON | {"num_hidden_layers": L + 1, "num_key_value_heads": 4},
        intermediate_size=64,
        moe_intermediate_size=48,
        n_routed_experts=E,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON, intermediate_size=48, num_local_experts=E, head_dim=8, sliding_window=8
    ),
    "deepseek_v32": lambda: transformers.DeepseekV32Config(
        **COMMON | {"num_key_value_heads": 4},
        intermediate_size=64,
        moe_intermediate_size=48,
        n_routed_experts=E,
        n_shared_experts=1,
        first_k_dense_replace=0,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=4,
    ),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, large enough that routing varies; eager experts, eval mode."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype)
    model.set_experts_implementation("eager")
    if dtype != torch.float32:  # the same weights, rounded: torch 2.11 draws other numbers in 16 bits
        model.load_state_dict(tiny_model(family, seed=seed).state_dict())
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    return model.eval()


def token_ids(seed: int, rows: int = 4, length: int = 12) -> torch.Tensor:
    """[rows, length] token numbers without special tokens."""
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_masks(num: int, seed: int = 3, share: float = 0.3) -> torch.Tensor:
    """bool [num, L, E]; the second mask leaves the first layer without an expert."""
    masks = torch.rand(num, L, E, generator=torch.Generator().manual_seed(seed)) < share
    masks[1 % num, 0] = False
    return masks
