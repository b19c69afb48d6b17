"""The experts function against transformers' own eager experts, in one process."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import train_from
from dist_moe.parallel.comm import SoloComm
from tests.tiny import FAMILIES, E, L, tiny_model, token_ids

WEIGHTS = ("gate_up_proj", "down_proj")
CPU = SoloComm(torch.device("cpu"))


def adopted(family: str, dtype: torch.dtype = torch.float32) -> MoEModel:
    return adopt(tiny_model(family, dtype), CPU)


def collect_gradients(model: MoEModel, active: dict[int, list[int]]) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Give each active expert a gradient buffer; (layer, expert) -> weight name -> gradient."""
    for layer in model.layers:
        layer.grads = {e: layer.layout.views(torch.zeros(layer.layout.size)) for e in active.get(layer.index, [])}
    return {(layer.index, e): layer.grads[e] for layer in model.layers for e in layer.grads}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_eager(family):
    reference, ids = tiny_model(family), token_ids(1)
    expected = reference(input_ids=ids, labels=ids)
    expected.loss.backward()
    model = adopted(family)
    train_from(model.layers, 0)
    gradients = collect_gradients(model, {layer: [0, 3, 5] for layer in range(L)})
    out = model.module(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=2e-6)
    assert len(gradients) == 3 * L
    for (layer, expert), weights in gradients.items():
        experts = reference.get_submodule(model.shape.layer_names[layer])
        for name in WEIGHTS:
            torch.testing.assert_close(weights[name], getattr(experts, name).grad[expert], rtol=1e-5, atol=1e-6)
    assert max(float(w.abs().max()) for weights in gradients.values() for w in weights.values()) > 1e-3


def test_expert_weights_are_out_of_every_engines_sight():
    model = adopted("qwen3_moe")
    assert not [name for name, _ in model.module.named_parameters() if ".experts." in name]
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.num_parameters == tiny_model("qwen3_moe").num_parameters()


def test_autograd_starts_at_the_first_trained_layer():
    model, ids = adopted("qwen3_moe"), token_ids(1)
    calls = []
    for layer in model.layers:
        layer.module.register_forward_hook(lambda m, a, out: calls.append(out.requires_grad))
    train_from(model.layers, 2)
    model.module(input_ids=ids, use_cache=False)
    assert calls == [False, False, True]


def test_padding_is_not_sent_to_experts_and_changes_nothing_else():
    model, ids = adopted("mixtral"), token_ids(1, rows=2)
    alone = model.module(input_ids=ids[:1, :7], use_cache=False).logits
    sent_alone = torch.stack([layer.received_S for layer in model.layers]).clone()
    for layer in model.layers:
        layer.ended_S.zero_()
    padded = ids[:1].clone()
    live = torch.arange(12)[None] < 7
    with model.batch(live):
        out = model.module(input_ids=padded, attention_mask=live.long(), use_cache=False).logits
    torch.testing.assert_close(out[:, :7], alone, rtol=0, atol=2e-6)
    assert torch.equal(torch.stack([layer.received_S for layer in model.layers]), sent_alone)


def test_no_live_token_gives_zeros_and_a_graph():
    model, ids = adopted("olmoe"), token_ids(1)
    with model.batch(torch.zeros(ids.shape, dtype=torch.bool), first_layer=0):
        gradients = collect_gradients(model, {0: [1], 1: [2], 2: [3]})
        loss = model.module(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    assert torch.isfinite(loss)
    assert all(not w.any() for weights in gradients.values() for w in weights.values())


def test_activation_checkpointing_gives_the_same_gradients_once():
    ids, found = token_ids(2), []
    for checkpointing in (False, True):
        model = adopted("qwen3_moe")
        if checkpointing:
            model.checkpoint_activations()
        train_from(model.layers, 1)
        gradients = collect_gradients(model, {1: [0, 1, 2], 2: list(range(E))})
        model.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append({key: {n: w.clone() for n, w in weights.items()} for key, weights in gradients.items()})
    for key, weights in found[0].items():
        for name in WEIGHTS:
            assert torch.equal(weights[name], found[1][key][name])


def test_only_the_trained_experts_inputs_are_kept():
    model, ids = adopted("qwen3_moe"), token_ids(1)
    kept = {}
    for name, trained in (("one", [0]), ("all", list(range(E)))):
        sizes = {}
        train_from(model.layers, 0)
        collect_gradients(model, dict.fromkeys(range(L), trained))
        module = model.layers[1].module
        hidden = torch.randn(ids.numel(), 32, requires_grad=True)
        index = torch.arange(ids.numel())[:, None].expand(-1, 2) % E

        def keep(x, sizes=sizes):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()  # views keep all that they are of
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            module(hidden, index, torch.ones(index.shape))
        kept[name] = sum(sizes.values())
    rows = 2 * ids.numel() * 32 * 4
    assert kept["all"] - kept["one"] >= rows * (1 - 1 / E)


def test_bfloat16_gradients_are_summed_in_float32():
    model, ids = adopted("qwen3_moe", torch.bfloat16), token_ids(1)
    train_from(model.layers, 0)
    gradients = collect_gradients(model, {0: [0, 1]})
    model.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    once = gradients[0, 0]["down_proj"].clone()
    model.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert gradients[0, 0]["down_proj"].dtype == torch.float32
    assert once.any()
    assert torch.equal(gradients[0, 0]["down_proj"], 2 * once)
