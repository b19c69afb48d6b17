"""A rank's own experts, read from the shards: bit-equal to from_pretrained, whatever the set of owned experts."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dist_moe.conformance.sizes import E, build
from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.load import empty_model, fill
from tests.fused import fused_experts, unfused

OWNED = ([1, 4, 6], [0, 7], [])
"""Uneven, not contiguous, different in each layer, one without any."""

FAMILIES = ("deepseek_v3", "gpt_oss", "granitemoe", "nemotron_h", "dbrx", "jetmoe", "llama4_text", "longcat_flash")
"""Every layout on disk; the sweep of dist_moe/conformance loads all types."""


def load(path, dtype=None):
    model = empty_model(path, dtype)
    layers = find_moe_layers(model)
    owned = [OWNED[layer.index % 3] for layer in layers]
    fill(model, layers, path, owned)
    return model, layers, owned


@pytest.mark.parametrize("family", FAMILIES)
def test_bit_equal_to_from_pretrained(family, tmp_path):
    build(family).save_pretrained(tmp_path, max_shard_size="100KB")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model, layers, owned = load(tmp_path, torch.float32)
    weights = expected.state_dict()
    for layer, experts in zip(layers, owned, strict=True):
        fused = fused_experts(expected, layer.name)
        weights |= {f"{layer.name}.{name}": fused[name][experts] for name in expert_weights(layer.experts)}
    assert expected.state_dict().keys() - model.state_dict().keys() == unfused(expected)
    for name, found in model.state_dict().items():
        assert torch.equal(found, weights[name]), name
    buffers = dict(expected.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    for name, found in model.named_buffers():
        assert torch.equal(found, buffers[name]), name


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe"])
def test_dtype_as_asked(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    model, _, _ = load(tmp_path, torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for (name, found), (_, weight) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert found.dtype == weight.dtype, name


def damage(path, change):
    """Rewrite the one shard that holds an expert's tensor; returns the tensor's name and its file."""
    for file in sorted(path.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors:
            if "experts.3." in name:
                change(tensors, name)
                save_file(tensors, file, metadata={"format": "pt"})
                return name, file.name
    raise AssertionError("no expert's tensor found")


def test_a_missing_expert_names_file_and_tensor(tmp_path):
    build("qwen3_moe").save_pretrained(tmp_path)
    name, file = damage(tmp_path, lambda tensors, name: tensors.pop(name))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert name in str(error.value)
    assert file in str(error.value)


def test_an_expert_of_another_shape_names_file_and_tensor(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    name, file = damage(tmp_path, lambda tensors, name: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert name in str(error.value)
    assert file in str(error.value)


def test_fewer_experts_on_disk_than_in_the_config(tmp_path):
    build("gpt_oss").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    assert f'"num_local_experts": {E}' in config
    (tmp_path / "config.json").write_text(config.replace(f'"num_local_experts": {E}', f'"num_local_experts": {E + 2}'))
    with pytest.raises(UserError, match=r"config\.json says that a layer has 10 experts"):
        load(tmp_path)
