"""Norms and rotary embeddings by Liger Kernel (github.com/linkedin/Liger-Kernel), for the families that it knows."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dist_moe.errors import UserError

OURS = dict.fromkeys(("swiglu", "cross_entropy", "fused_linear_cross_entropy"), False)
"""What it has too, and this package computes in its own way."""


def use_liger(module: PreTrainedModel, device: torch.device) -> None:
    """Let a model on a GPU compute them so. Rotary embeddings change for all models of its type in this process.

    Raises:
        UserError: there is no GPU, no Liger Kernel, or none for this model type.
    """
    instead = "set model.kernels to torch"
    if device.type != "cuda":
        raise UserError(f"model.kernels: liger needs a GPU, and this runs on {device.type}: {instead}")
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        raise UserError(f"model.kernels: liger: {error}: pip install liger-kernel, or {instead}") from None
    kind = module.config.model_type
    if kind not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"model.kernels: Liger Kernel has none for model type '{kind}': {instead}")
    monkey_patch._apply_liger_kernel_to_instance(model=module, rope=True, rms_norm=True, **OURS)
