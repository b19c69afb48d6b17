"""Says which cases are the long tail: `make test` runs one family of each kind, `make test-all` all families."""

from collections.abc import Iterable

import pytest

EVERYDAY = {
    *("olmoe", "qwen3_moe", "mixtral", "gpt_oss"),  # what most people have; fused and split, with biases
    *("deepseek_v3", "glm4_moe", "ernie4_5_moe"),  # groups, correction biases, dense layers first
    *("llama4_text", "dbrx", "jetmoe", "longcat_flash"),  # adapted
    *("deepseek_v4", "minimax_m3_vl_text", "glm_moe_dsa"),  # hash-routed, rows that run alone
    *("qwen3_next", "granitemoehybrid", "zaya", "doge"),  # states, null experts, refused
}
"""One model type for each mechanism."""


def by_family(families: Iterable[str]) -> list[object]:
    """Parameters of a test that tries every family; all but the everyday families are marked `long`."""
    return [each if each in EVERYDAY else pytest.param(each, marks=pytest.mark.long) for each in families]
