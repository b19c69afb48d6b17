"""What inspect-model says, against what is known of the families."""

from pathlib import Path

import pytest
import torch

from dist_moe.conformance.sizes import FAMILY_CONFIGS, E, K, build
from dist_moe.moe.adapters.adapt import adapt
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.load import empty_model
from dist_moe.moe.summary import describe, routing_steps
from dist_moe.report.model import table
from tests.tiers import by_family

SOFTMAX, NORMALISED = f"softmax, top-{K}", f"softmax, top-{K}, renormalised"
DEEPSEEK = "sigmoid, + bias, top-2 of each group"
KNOWN = {
    "olmoe": (SOFTMAX, 1, False, False, 0),
    "mixtral": (NORMALISED, 1, False, False, 0),
    "qwen2_moe": (SOFTMAX, 1, False, True, 0),
    "deepseek_v3": (f"{DEEPSEEK}, top-1 groups, top-{K}, renormalised", 2, False, True, 1),
    "deepseek_v4": (f"softplus, sqrt, + bias, top-{K}, renormalised", 1, False, True, 0),
    "gpt_oss": (f"top-{K}, softmax", 1, True, False, 0),
    "granitemoe": (f"top-{K}, softmax", 1, False, False, 0),
    "phimoe": ("softmax, softmax", 1, False, False, 0),
    "nemotron_h": (f"{DEEPSEEK}, top-1 groups, top-{K}, renormalised", 2, False, True, 2),
}
"""Family -> routing, groups, expert biases, shared experts, layers without routed experts."""


@pytest.mark.parametrize("family", KNOWN)
def test_summary(family: str, tmp_path: Path) -> None:
    model = build(family, torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    found = describe(tmp_path)
    known = (found.routing, found.groups, found.expert_biases, found.shared_experts, found.dense_layers)
    assert known == KNOWN[family]
    assert (found.experts, found.experts_per_token) == (E, K)
    experts = [weight for layer in find_moe_layers(model) for weight in layer.experts.parameters()]
    assert found.expert_bytes == sum(weight.nbytes for weight in experts)
    assert found.bytes_per_expert * E * found.moe_layers == found.expert_bytes
    assert found.parameters == model.num_parameters()
    assert found.other_bytes + found.expert_bytes <= sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    refused = "hash-routed" in found.refused
    assert refused == ("train.mode route" not in found.supported) == (family == "deepseek_v4")
    assert len(list(table(found))) == len(found.__slots__)


@pytest.mark.parametrize("family", by_family(sorted(FAMILY_CONFIGS)))
def test_every_familys_routing_is_seen(family: str) -> None:
    with torch.device("meta"):
        model = build(family)
    adapt(model)
    steps, _ = routing_steps(model, find_moe_layers(model))
    assert any("top-" in step for step in steps) or family == "phimoe"
    assert any(step in ("softmax", "sigmoid", "softplus") for step in steps)


@pytest.mark.parametrize(("family", "fused"), [("gpt_oss", True), ("mixtral", False)])
def test_layout_on_disk(family: str, fused: bool, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    assert ("in one tensor" in describe(tmp_path).on_disk) == fused
    assert empty_model(tmp_path).config.model_type == family
