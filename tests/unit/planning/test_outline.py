"""Known models have the sizes that their publishers say, and a model directory with the same shapes is recognised."""

import json
from dataclasses import replace
from math import ceil

import pytest

from dist_moe.errors import UserError
from dist_moe.planning.memory import Setup, training_memory
from dist_moe.planning.outline import known_model, known_names, recognised
from dist_moe.planning.share import Share, assumed

PUBLISHED = {
    "deepseek-v3": (671_026_404_352, 37.5e9, 58, 256),
    "gpt-oss-120b": (116_829_156_672, 5.13e9 + 201_088 * 2880, 36, 128),  # its card leaves the embedding out
    "kimi-k2": (1_026_408_209_408, 32.9e9, 60, 384),
    "olmoe-1b-7b": (6_919_161_856, 1.28e9, 16, 64),
    "qwen3-235b-a22b": (235_093_634_560, 22.2e9, 94, 128),
    "qwen3-30b-a3b": (30_532_122_624, 3.35e9, 48, 128),
}
"""Parameters in all and for one token, MoE layers, experts of a layer: of their cards and configurations. Correction
biases, which are buffers, are not counted."""


def test_every_known_model_is_compared():
    assert sorted(PUBLISHED) == known_names()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_its_published_size(name):
    parameters, active, num_layers, num_experts = PUBLISHED[name]
    outline = known_model(name).outline
    assert (outline.num_parameters, outline.num_layers, outline.num_experts) == (parameters, num_layers, num_experts)
    of_experts = num_layers * num_experts * outline.expert_parameters
    used = outline.dense_bytes / 2 + num_layers * outline.top_k * outline.expert_parameters
    assert used == pytest.approx(active, rel=0.02)
    assert outline.dense_bytes / 2 + of_experts == pytest.approx(parameters, rel=1e-6)
    assert sum(each.number for each in outline.layers if each.is_moe) == num_layers


def test_qwen3_30b_is_as_counted_by_hand():
    outline = known_model("qwen3-30b-a3b").outline
    hidden, layers, vocabulary, head = 2048, 48, 151936, 128
    attention = hidden * head * (32 + 4 + 4) + 32 * head * hidden + 2 * head + 2 * hidden
    dense = layers * (attention + hidden * 128) + 2 * vocabulary * hidden + hidden
    assert outline.expert_parameters == 3 * hidden * 768
    assert outline.dense_bytes == 2 * dense
    assert outline.outside_bytes == 2 * (2 * vocabulary * hidden + hidden)
    assert outline.router_parameters == layers * hidden * 128


def test_memory_of_weights_gradients_and_state_is_as_counted_by_hand():
    outline = known_model("qwen3-30b-a3b").outline
    expert, trained = 3 * 2048 * 768, 614
    setup = Setup(num_ranks=8, ep_size=4, row_tokens=512, answer_tokens=64)
    share = assumed(48, 128, trained, 50, 8, 4)
    memory = training_memory(outline, setup, share)
    assert memory.weights == outline.dense_bytes + 2 * expert * 48 * 128 // 4
    assert memory.gradients == 4 * expert * ceil(50 / 4)
    assert memory.state == 12 * expert * ceil(ceil(trained / 4) / 2)
    single = replace(outline, dtype="float32")  # whose weights are their own master weights, but not on another device
    assert training_memory(single, setup, share).state == memory.state * 8 // 12
    assert training_memory(single, replace(setup, offloads=True), share).host == 2 * memory.host + memory.state


def test_offloaded_state_is_in_the_hosts_memory():
    outline, share = known_model("olmoe-1b-7b").outline, assumed(16, 64, 100, 10, 1, 1)
    alone = Setup(num_ranks=1, ep_size=1, row_tokens=64, answer_tokens=8)
    there, here = (training_memory(outline, replace(alone, offloads=each), share) for each in (True, False))
    assert (there.state, there.host - here.host) == (0, here.state)
    assert there.total == here.total - here.state


def test_layers_below_the_first_trained_one_keep_nothing():
    outline = known_model("deepseek-v3").outline
    setup = Setup(num_ranks=16, ep_size=16, row_tokens=512, answer_tokens=64)
    active = (0,) * 57 + (1,)
    first, last = (
        training_memory(outline, setup, Share(held=928, trained=1, owned=1, active=active, first_layer=layer))
        for layer in (0, 57)
    )
    assert last.activations < 0.2 * first.activations


def test_a_configuration_with_the_shapes_of_a_known_model_is_that_model(tmp_path):
    known = known_model("qwen3-30b-a3b")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(known.config | {"rope_theta": 1e6}))
    assert recognised(file) == known
    file.write_text(json.dumps(known.config | {"num_experts": 64}))
    assert recognised(file) is None


def test_a_family_whose_sizes_are_values_cannot_be_planned():
    from tests.planned import traced

    with pytest.raises(UserError, match="model type 'jetmoe' cannot be planned: its code needs values"):
        traced("jetmoe", "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_is_what_its_configuration_gives(name):
    from dist_moe.planning.trace import outline_of_config

    known, found = known_model(name).outline, outline_of_config(known_model(name).config)
    sizes = {"layers": [], "before": None, "spare": [], "spare_forward": 0}
    assert replace(found, **sizes) == replace(known, **sizes)
    runs = [[(each.number, each.is_moe) for each in of.layers] for of in (known, found)]
    assert runs[0] == runs[1]
    costs = [[*(each.kept for each in of.layers), of.before, *of.spare] for of in (known, found)]
    for one, other in zip(*costs, strict=True):
        assert one(4, 512) == pytest.approx(other(4, 512), rel=0.01)
