"""Names of tensors tell the same experts as a model's modules, or nothing."""

import dataclasses

import pytest

from dist_moe.conformance.sizes import FAMILY_CONFIGS, build
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.layout import hub_layout
from dist_moe.moe.load import empty_model
from dist_moe.weights.expert_tensors import named_experts
from tests.checkpoint import save_checkpoint
from tests.tiers import by_family

TELL = {"olmoe", "qwen3_moe", "deepseek_v3", "glm4_moe", "ernie4_5_moe"}
"""Everyday families with a tensor for each expert, whose name begins with that of its module."""
NAME = "model.layers.1.mlp.experts.5.up_proj.weight"


@pytest.mark.parametrize("family", by_family(sorted(FAMILY_CONFIGS)))
def test_experts_of_names_are_those_of_modules(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    of_modules = hub_layout(tmp_path)
    layers = [layer.name for layer in find_moe_layers(empty_model(tmp_path))]
    of_names = named_experts(tmp_path, of_modules.stored, layers, of_modules.num_experts)
    if family in TELL:
        assert of_names is not None
    if of_names is not None:
        assert of_names.tensors == of_modules.tensors
        assert (of_names.path, of_names.num_experts) == (tmp_path, of_modules.num_experts)


@pytest.fixture
def given(tmp_path):
    layout = hub_layout(save_checkpoint(tmp_path / "base"))
    layers = [f"model.layers.{layer}.mlp.experts" for layer in range(layout.num_layers)]
    return layout.stored, layers, layout.num_experts


def test_each_tensor_is_of_its_layer_and_expert(tmp_path, given):
    found = named_experts(tmp_path, *given)
    assert found is not None
    assert (found.tensors[NAME].layer, found.tensors[NAME].expert) == (1, 5)
    assert found.tensors.keys() == {name for name in given[0] if ".experts." in name}


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop(NAME),
        lambda stored: stored.update({NAME: dataclasses.replace(stored[NAME], shape=(1, *stored[NAME].shape))}),
        lambda stored: stored.update({"model.layers.1.mlp.experts.scale": stored[NAME]}),
        lambda stored: stored.update({"model.layers.1.mlp.experts.99.up_proj.weight": stored[NAME]}),
        lambda stored: stored.update({"model.layers.1.mlp.experts.5.up_proj.bias": stored[NAME]}),
    ],
    ids=["one is missing", "another shape", "one of all experts", "one expert more", "one of one expert only"],
)
def test_names_that_do_not_tell(tmp_path, given, change):
    stored, layers, num_experts = given
    change(stored)
    assert named_experts(tmp_path, stored, layers, num_experts) is None


def test_a_layer_of_another_name_or_number_of_experts(tmp_path, given):
    stored, layers, num_experts = given
    assert named_experts(tmp_path, stored, [*layers[:-1], "model.layers.9.mlp.experts"], num_experts) is None
    assert named_experts(tmp_path, stored, layers, num_experts - 1) is None
