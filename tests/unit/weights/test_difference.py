"""Which experts of any fine-tuned checkpoint moved, how far, and what else, against changes made by hand in NumPy."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dist_moe.conformance.sizes import build
from dist_moe.errors import UserError
from dist_moe.moe.layout import hub_layout
from dist_moe.report.difference import difference_lines
from dist_moe.weights.difference import difference
from tests.checkpoint import save_tokenizer
from tests.tiny import CONFIGS, tiny_model

LAYERS = "model.layers"
NAMES = {
    # family: (tensor with the down matrix of expert 3 in MoE layer 1, its row, router of MoE layer 0, attention)
    "mixtral": (f"{LAYERS}.1.block_sparse_moe.experts.3.w2.weight", None, f"{LAYERS}.0.block_sparse_moe.gate.weight"),
    "qwen3_moe": (f"{LAYERS}.1.mlp.experts.3.down_proj.weight", None, f"{LAYERS}.0.mlp.gate.weight"),
    "gpt_oss": (f"{LAYERS}.1.mlp.experts.down_proj", 3, f"{LAYERS}.0.mlp.router.bias"),
    "deepseek_v3": (f"{LAYERS}.2.mlp.experts.3.down_proj.weight", None, f"{LAYERS}.1.mlp.gate.e_score_correction_bias"),
    "llama4_text": (f"{LAYERS}.2.feed_forward.experts.down_proj", 3, f"{LAYERS}.1.feed_forward.router.weight"),
}
"""Family: the tensor with the down matrix of expert 3 of MoE layer 1, its row there, and a weight of layer 0's router;
as the families' released checkpoints call them."""


def save(path: Path, family: str, dtype: torch.dtype = torch.float32, **how) -> Path:
    model = tiny_model(family, dtype) if family in CONFIGS else build(family, dtype)
    model.save_pretrained(path, max_shard_size="60KB", **how)
    save_tokenizer(path)
    return path


def edit(path: Path, changes) -> dict:
    """Change tensors of a checkpoint by name, without our reader; returns (before, after) of each."""
    seen = {}
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in changes.keys() & tensors.keys():
            before = tensors[name].clone()
            tensors[name] = changes[name](before.clone()).contiguous()
            seen[name] = before, tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
    assert seen.keys() == changes.keys()
    return seen


def norms(before, after):
    """Relative change, largest change and number of changed values, in NumPy."""
    one, other = (tensor.float().numpy().astype(np.float64) for tensor in (before, after))
    change = np.abs(other - one)
    return np.sqrt((change**2).sum() / (one**2).sum()), change.max(), int((change > 0).sum())


def found_in(base, model):
    found = difference(hub_layout(base), hub_layout(model))
    json.dumps(asdict(found), allow_nan=False)
    lines = list(difference_lines(found, 5))
    assert lines
    return found, "\n".join(lines)


def bump(row):
    def changed(tensor):
        (tensor if row is None else tensor[row]).mul_(1.25)
        return tensor

    return changed


@pytest.mark.parametrize("family", NAMES)
def test_exactly_what_was_changed_by_hand_is_found(tmp_path, family):
    down, row, router = NAMES[family]
    base = save(tmp_path / "base", family)
    model = shutil.copytree(base, tmp_path / "model")
    attention, vector = f"{LAYERS}.0.self_attn.o_proj.weight", "model.norm.weight"
    changes = {down: bump(row), router: lambda t: t + 0.5, attention: lambda t: t - 1e-3, vector: lambda t: t * 2}
    seen = edit(model, changes)
    found, text = found_in(base, model)

    (expert,) = found.experts
    assert (expert.layer, expert.expert) == (1, 3)
    before, after = (tensor if row is None else tensor[row] for tensor in seen[down])
    _, largest, number = norms(before, after)
    assert expert.size.num_changed == number
    assert expert.size.max_abs == pytest.approx(largest)
    whole = hub_layout(base).read_expert(1, 3)
    of_all = np.sqrt(sum((weight.double().numpy() ** 2).sum() for weight in whole.values()))
    assert expert.size.relative == pytest.approx(0.25 * float(before.double().norm()) / of_all)
    assert [size.num_changed for size in found.layers] == [0, number, *[0] * (len(found.layers) - 2)]

    moved = {tensor.name: tensor for tensor in found.tensors}
    assert {name: tensor.part for name, tensor in moved.items()} == {
        router: "router",
        attention: "attention",
        vector: "norm",
    }
    for name, tensor in moved.items():
        size = tensor.size
        assert (size.relative, size.max_abs, size.num_changed) == pytest.approx(norms(*seen[name]), rel=1e-6)
    assert [found.reshaped, found.only_base, found.only_model, found.settings, found.files] == [[]] * 5
    assert not found.dtypes
    assert "Experts that have moved: 1 of" in text
    assert "L01_E03" in text


def test_a_rank_one_change_of_every_matrix_as_of_a_merged_adapter(tmp_path):
    base = save(tmp_path / "base", "qwen3_moe")
    model = shutil.copytree(base, tmp_path / "model")
    draw = torch.Generator().manual_seed(3)

    def merged(tensor):
        return tensor + 0.01 * torch.outer(*(torch.randn(size, generator=draw) for size in tensor.shape))

    names = [
        f"{LAYERS}.{layer}.mlp.experts.{e}.{m}_proj.weight" for layer in (0, 2) for e in (1, 6) for m in ("gate", "up")
    ]
    seen = edit(model, dict.fromkeys(names, merged))
    found, _ = found_in(base, model)
    assert [(moved.layer, moved.expert) for moved in found.experts] == [(0, 1), (0, 6), (2, 1), (2, 6)]
    assert not found.tensors
    for moved in found.experts:
        pairs = [pair for name, pair in seen.items() if f".{moved.layer}.mlp.experts.{moved.expert}." in name]
        assert moved.size.max_abs == pytest.approx(max(norms(*pair)[1] for pair in pairs))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3", "llama4_text"])
def test_experts_in_one_tensor_are_those_in_many_in_other_shards_and_types(tmp_path, family):
    """A bfloat16 base against a float32 model that a trainer has saved under the names that weights have in memory."""
    base = save(tmp_path / "base", family, torch.bfloat16)
    model = tmp_path / "model"
    plain = tiny_model(family, torch.bfloat16) if family in CONFIGS else build(family, torch.bfloat16)
    plain = plain.float()
    experts = plain.get_submodule(f"{LAYERS}.1.{'feed_forward' if family == 'llama4_text' else 'mlp'}.experts")
    with torch.no_grad():
        before = experts.down_proj[5].clone()
        experts.down_proj[5] *= 1 + 1e-4  # less than what bfloat16 can tell: a float32 trainer's small step
    plain.save_pretrained(model, save_original_format=False)
    save_tokenizer(model)
    found, text = found_in(base, model)
    layer = 0 if family in ("deepseek_v3", "llama4_text") else 1  # their first layer is dense
    assert [(moved.layer, moved.expert) for moved in found.experts] == [(layer, 5)]
    assert found.experts[0].size.max_abs == pytest.approx(norms(before, experts.down_proj[5].detach())[1])
    assert not found.tensors
    assert not found.only_base + found.only_model
    assert set(found.dtypes) == {"BF16 -> F32"}
    assert ("config.json", "dtype", "bfloat16", "float32") in [
        (each.file, each.key, each.before, each.after) for each in found.settings
    ]
    assert "Other data type: BF16 -> F32" in text
    back, _ = found_in(model, base)  # rounding to bfloat16 takes the change away again, and adds none
    assert back.experts == []
    assert back.tensors == []


def test_added_tokens_an_untied_output_layer_and_other_files(tmp_path):
    base, model = tmp_path / "base", tmp_path / "model"
    plain = tiny_model("qwen3_moe")
    plain.config.tie_word_embeddings = True
    plain.tie_weights()
    plain.save_pretrained(base)
    save_tokenizer(base)
    with torch.no_grad():
        plain.config.tie_word_embeddings = False
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
        plain.resize_token_embeddings(131)
        plain.lm_head.weight[7] += 1
    plain.save_pretrained(model)
    save_tokenizer(model)
    (model / "chat_template.jinja").write_text("another")
    found, text = found_in(base, model)
    assert [(each.name, each.part, each.num_compared) for each in found.reshaped] == [
        ("lm_head.weight", "output layer", 128),
        ("model.embed_tokens.weight", "embedding", 128),
    ]
    assert [(moved.name, moved.size.num_changed) for moved in found.tensors] == [("lm_head.weight", 32)]
    assert not found.experts
    assert not found.only_base + found.only_model
    changed = {each.key: (each.before, each.after) for each in found.settings}
    assert changed["vocab_size"] == (128, 131)
    assert changed["tie_word_embeddings"] == (True, False)
    assert found.files == ["chat_template.jinja"]
    assert "F32 [128, 32] -> F32 [131, 32]; the first 128 rows were compared" in text


def test_a_value_that_is_not_a_number_is_a_change_without_a_size(tmp_path):
    base = save(tmp_path / "base", "qwen3_moe")
    model = shutil.copytree(base, tmp_path / "model")

    def broken(tensor):
        tensor[3, 4] = torch.nan
        return tensor

    edit(model, {f"{LAYERS}.1.mlp.experts.3.up_proj.weight": broken})
    found, _ = found_in(base, model)
    (expert,) = found.experts
    assert (expert.size.relative, expert.size.max_abs, expert.size.num_changed) == (None, None, 1)


def test_another_model_is_no_fine_tuned_base(tmp_path):
    base = save(tmp_path / "base", "qwen3_moe")
    config = CONFIGS["qwen3_moe"]()
    config.num_experts = 4
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    other = tmp_path / "other"
    with pytest.raises(UserError, match="is no fine-tuned") as error:
        difference(hub_layout(base), hub_layout(other))
    assert "experts in a layer: 4, expected 8" in str(error.value)


@pytest.mark.parametrize("is_base", [False, True])
def test_weights_that_a_model_has_as_one_and_a_checkpoint_as_three_are_compared(tmp_path, is_base):
    save(tmp_path / "three", "kimi_linear")
    model = build("kimi_linear", torch.float32)
    model.save_pretrained(tmp_path / "one", save_original_format=False)
    shutil.copy(tmp_path / "three" / "config.json", tmp_path / "one")
    names = [f"{LAYERS}.0.self_attn.{part}_conv1d.weight" for part in "qkv"]
    seen = edit(tmp_path / "three", {names[1]: bump(None)})
    places = (tmp_path / "three", tmp_path / "one")
    found = difference(*map(hub_layout, places if is_base else places[::-1]))
    assert [found.only_base, found.only_model, found.experts] == [[], [], []]
    (moved,) = found.tensors
    before, after = seen[names[1]]
    relative, largest, changed = norms(*((after, before) if is_base else (before, after)))
    assert moved.name == names[1]
    assert (moved.size.max_abs, moved.size.num_changed) == (pytest.approx(largest), changed)
    assert moved.size.relative == pytest.approx(relative)
