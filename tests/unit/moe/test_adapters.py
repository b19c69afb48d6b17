"""Families outside transformers' experts interface, and configurations that hold a text model among others."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dist_moe.conformance.sizes import ALL_CONFIGS, COMPOSITES, FAMILY_CONFIGS, SETTINGS, E, build, randomize
from dist_moe.errors import UserError
from dist_moe.model.model import adopt
from dist_moe.moe.adapters.adapt import adapt
from dist_moe.moe.bank import train_from
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.layout import hub_layout
from dist_moe.moe.load import empty_model, fill
from dist_moe.moe.route_mask import RoutePlan
from dist_moe.parallel.comm import SoloComm
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.verify import verify_checkpoint
from tests.fused import fused_experts, gradient
from tests.round_trip import IDS, flip, logits, plain, round_trip

CPU = SoloComm(torch.device("cpu"))
ADAPTED = ("dbrx", "jetmoe", "llama4_text", "longcat_flash")
CONDITIONAL = {
    "dots3_note": "Dots3NoteForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}
"""The class of released checkpoints, where AutoModelForCausalLM gives another."""


def loaded(path):
    """The whole model in memory, as a rank that owns all experts reads it."""
    model = empty_model(path)
    layers = find_moe_layers(model)
    fill(model, layers, path, [range(E)] * len(layers))
    return model, layers


@pytest.mark.parametrize("family", ADAPTED)
def test_logits_and_gradients_equal_the_familys_own(family):
    reference, model = build(family), adopt(build(family), CPU)
    train_from(model.layers, 0)
    for layer in model.layers:
        layer.grads = {slot: layer.layout.views(torch.zeros(layer.layout.size)) for slot in range(E)}
    expected, found = (module(input_ids=IDS, use_cache=False).logits for module in (reference, model.module))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    expected.square().mean().backward()
    found.square().mean().backward()
    for layer in model.layers:
        right = fused_experts(reference, model.shape.layer_names[layer.index], gradient)
        for name in layer.bank:
            ours = torch.stack([layer.grads[slot][name] for slot in range(E)])
            scale = right[name].abs().max()
            torch.testing.assert_close(ours / scale, right[name] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in (*ADAPTED, "beam") if f in FAMILY_CONFIGS])
def test_load_train_export_verify(family, tmp_path):
    build(family).save_pretrained(tmp_path / "base", max_shard_size="100KB")
    round_trip(tmp_path / "base", tmp_path)


@pytest.mark.parametrize("family", sorted(COMPOSITES.keys() & ALL_CONFIGS.keys()))
def test_a_text_model_saved_with_a_composite_config(family, tmp_path):
    config = ALL_CONFIGS[family]()
    model = randomize(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    config.save_pretrained(tmp_path / "base")
    round_trip(tmp_path / "base", tmp_path)


@pytest.mark.parametrize("family", sorted(CONDITIONAL.keys() & ALL_CONFIGS.keys()))
def test_a_checkpoint_with_vision_tensors(family, tmp_path):
    model = randomize(
        getattr(transformers, CONDITIONAL[family])._from_config(ALL_CONFIGS[family](), dtype=torch.float32)
    )
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    names = read_tensors(tmp_path / "base").keys()
    assert [name for name in names if "visi" in name or "visual" in name]
    round_trip(tmp_path / "base", tmp_path)


@pytest.mark.parametrize("family", ADAPTED)
def test_a_family_is_known_only_by_its_adapter(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(FAMILY_CONFIGS[family]())
    with pytest.raises(UserError, match="no mixture-of-experts layer"):
        find_moe_layers(model)
    adapt(model)
    assert len(find_moe_layers(model)) in (2, 3)


@pytest.mark.parametrize("family", ADAPTED)
def test_padding_is_not_sent_to_experts_and_changes_nothing_else(family):
    model = adopt(build(family), CPU)
    with torch.no_grad():
        alone = model.module(input_ids=IDS[:1, :7], use_cache=False).logits
        sent_alone = torch.stack([layer.received_S for layer in model.layers]).clone()
        for layer in model.layers:
            layer.ended_S.zero_()
        live = torch.arange(12)[None] < 7
        with model.batch(live):
            out = model.module(input_ids=IDS[:1], attention_mask=live.long(), use_cache=False).logits
    torch.testing.assert_close(out[:, :7], alone, rtol=0, atol=1e-5)
    assert torch.equal(torch.stack([layer.received_S for layer in model.layers]), sent_alone)


def test_llama4_as_released_routes_to_one_expert(tmp_path):
    reference = build("llama4_text", num_experts_per_tok=1)
    model = adopt(build("llama4_text", num_experts_per_tok=1), CPU)
    torch.testing.assert_close(logits(model.module), logits(reference), rtol=0, atol=1e-5)
    assert [int(layer.received_S.sum()) for layer in model.layers] == [IDS.numel()] * 2


def test_jetmoe_attention_experts_are_neither_found_nor_masked():
    reference, seen = build("jetmoe"), []
    model = adopt(build("jetmoe"), CPU)
    assert model.shape.layer_names == tuple(f"model.layers.{i}.mlp.experts" for i in range(3))
    names = [name for name, _ in reference.named_parameters() if ".self_attention." in name]
    assert names
    assert all(model.module.get_parameter(n).equal(reference.get_parameter(n)) for n in names)
    router = "model.layers.0.self_attention.experts.router"  # comes before the first mask
    for module in (reference, model.module):
        module.get_submodule(router).register_forward_hook(lambda m, args, out: seen.append(out))
    allowed = torch.zeros(3, E, dtype=torch.bool)
    allowed[:, 0] = True
    model.route_mask.set(RoutePlan(allowed))
    unmasked, masked = logits(reference), logits(model.module)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*seen, strict=True))
    assert not torch.allclose(unmasked, masked, atol=1e-3)


def drop_zero_experts(path, num_experts):
    """What transformers writes for the zero experts, taken out: released checkpoints have none."""
    dropped = 0
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        kept = {n: t for n, t in tensors.items() if not any(f".experts.{e}." in n for e in range(E, E + num_experts))}
        dropped += len(tensors) - len(kept)
        save_file(kept, file, metadata={"format": "pt"})
    assert dropped == 3 * 2 * num_experts


def test_longcat_flash_as_released_holds_only_the_routed_experts(tmp_path):
    reference = build("longcat_flash")
    reference.save_pretrained(tmp_path)
    drop_zero_experts(tmp_path, 4)
    _, layers = loaded(tmp_path)
    assert len(layers) == 3
    for layer in layers:
        for name, expected in fused_experts(reference, layer.name).items():
            assert torch.equal(layer.experts.get_parameter(name), expected)
    assert all(t.expert < E for t in hub_layout(tmp_path).tensors.values())


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_on_disk_for_zero_experts_is_never_an_experts(fused, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    for path in (base, out):
        build("longcat_flash").save_pretrained(path, save_original_format=not fused)
    model, layers = loaded(base)
    assert layers[0].experts.gate_up_proj.shape[0] == E
    torch.testing.assert_close(logits(adopt(model, CPU).module), logits(plain(base)), rtol=0, atol=1e-5)
    name = "model.layers.1.mlp.experts." + ("gate_up_proj" if fused else f"{E}.gate_proj.weight")
    stored = read_tensors(out)[name]
    flip(stored, stored.stop - stored.start - 1)
    (violation,) = verify_checkpoint(hub_layout(base), out, torch.ones(3, E, dtype=torch.bool).numpy()).violations
    assert violation.startswith(f"{name} row ")
    assert "not an expert's" in violation


def test_more_zero_experts_than_experts_still_have_a_router():
    model = adopt(build("longcat_flash", zero_expert_num=3 * E), CPU)
    torch.testing.assert_close(
        logits(model.module), logits(build("longcat_flash", zero_expert_num=3 * E)), rtol=0, atol=1e-5
    )


def edit_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_number_of_experts_than_a_flat_tensor_has(tmp_path):
    build("dbrx").save_pretrained(tmp_path)
    ffn = json.loads((tmp_path / "config.json").read_text())["ffn_config"]
    edit_config(tmp_path, ffn_config=ffn | {"moe_num_experts": E - 1})
    with pytest.raises(UserError, match=rf"config\.json says that a layer has {E - 1} experts"):
        loaded(tmp_path)


def test_a_rank_reads_only_its_experts_of_a_flat_tensor(tmp_path, monkeypatch):
    build("dbrx").save_pretrained(tmp_path)
    read = []

    class Spy:
        def __init__(self, file, *args):
            self.stream = safe_open(file, *args)

        def __enter__(self):
            self.stream.__enter__()
            return self

        def __exit__(self, *error):
            return self.stream.__exit__(*error)

        def get_slice(self, name):
            lazy = self.stream.get_slice(name)
            if "experts" not in name:
                return lazy
            return SpySlice(name, lazy)

    class SpySlice:
        def __init__(self, name, lazy):
            self.name, self.lazy = name, lazy

        def __getitem__(self, rows):
            read.append((self.name.rpartition(".")[2], rows))
            return self.lazy[rows]

    monkeypatch.setattr("dist_moe.moe.load.safe_open", Spy)
    model = empty_model(tmp_path)
    fill(model, find_moe_layers(model), tmp_path, [[1, 4], [], [7]])
    size = SETTINGS["dbrx"]["ffn_config"]["ffn_hidden_size"]
    expected = [(name, slice(e * size, (e + 1) * size)) for name in ("w1", "v1", "w2") for e in (1, 4, 7)]
    assert sorted(map(str, read)) == sorted(map(str, expected))


def test_activation_checkpointing_where_the_family_has_none_is_refused_by_name():
    with pytest.raises(UserError, match=r"train\.activation_checkpointing.*'jetmoe'"):
        adopt(build("jetmoe"), CPU).checkpoint_activations()


def test_doge_is_refused_by_name(tmp_path):
    build("doge").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'doge' is not supported.*product keys"):
        empty_model(tmp_path)


def test_a_type_without_a_causal_language_model_is_refused_by_name(tmp_path):
    CONFIG_MAPPING["t5"]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'t5' is not supported"):
        empty_model(tmp_path)


def test_experts_with_a_norm_of_their_own_are_refused_by_name():
    model = build("qwen3_moe")
    for layer in find_moe_layers(model):
        layer.experts.has_post_expert_norm = True
    with pytest.raises(UserError, match="'qwen3_moe' is not supported: it normalises each expert's output"):
        find_moe_layers(model)


@pytest.mark.parametrize(
    ("family", "method", "expected"),
    [
        ("gpt_oss", "mxfp4", r"MXFP4.*Mxfp4Config\(dequantize=True\).*save_pretrained"),
        ("deepseek_v3", "fp8", "FP8 cannot be trained"),
    ],
)
def test_quantized_weights_are_refused_by_name(family, method, expected, tmp_path):
    build(family).save_pretrained(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=expected):
        empty_model(tmp_path)
