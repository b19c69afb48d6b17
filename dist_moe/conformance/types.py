"""Lists the MoE causal language model types of the installed transformers, from their configuration classes alone."""

from __future__ import annotations

import inspect
import re

from transformers import CONFIG_MAPPING, PreTrainedConfig

from dist_moe.moe.internals import causal_lm_types

NUM_EXPERTS = re.compile(r"(moe_)?num_(local_)?experts|n_routed_experts")
"""Names under which configurations have the number of experts."""


def moe_model_types() -> list[str]:
    """Model types that `AutoModelForCausalLM` supports and whose configuration, or a part of it, has a number of
    experts; sorted."""
    return [name for name in causal_lm_types() if _names_experts(CONFIG_MAPPING[name])]


def _names_experts(config: type[PreTrainedConfig]) -> bool:
    names = {*inspect.signature(config.__init__).parameters, *config.attribute_map}
    names.update(name for base in config.__mro__ for name in getattr(base, "__annotations__", {}))
    parts = [part for part in config.sub_configs.values() if isinstance(part, type)]
    return any(map(NUM_EXPERTS.fullmatch, names)) or any(
        _names_experts(part) for part in parts if issubclass(part, PreTrainedConfig)
    )
