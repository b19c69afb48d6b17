"""Mean |gradient| per expert, against plain transformers; one layer's buffer at a time; nothing left behind."""

import pytest
import torch
import torch.nn.functional as F

from dist_moe.conformance.specimen import Specimen
from dist_moe.data.tokens import Encoded
from dist_moe.measure.gradients import expert_gradients, gradient_table
from dist_moe.model.model import adopt
from dist_moe.moe import gate
from dist_moe.moe.bank import train_from
from dist_moe.parallel.comm import SoloComm
from tests.reference import WEIGHTS
from tests.tiny import CONFIGS, E, L, tiny_model, token_ids

COMM = SoloComm(torch.device("cpu"))
ROW = Encoded(tuple(token_ids(5)[0].tolist()), tuple(token_ids(6)[0, :5].tolist()), unsafe=True)


def plain_loss(model, row):
    ids = torch.tensor([row.prompt_ids + row.response_ids])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(row.prompt_ids), -100)
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1].float(), labels[0, 1:])


def reference(family, row):
    """[L, E] by the definition, from the autograd of transformers' own experts."""
    model = tiny_model(family)
    plain_loss(model, row).backward()
    modules = [module for name, module in model.named_modules() if name.endswith(".experts")]
    means_LE = torch.zeros(L, E)
    for layer, module in enumerate(modules):
        names = [name for name in WEIGHTS if hasattr(module, name)]
        assert len(names) == len(list(module.parameters()))
        for expert in range(E):
            flat = torch.cat([getattr(module, name).grad[expert].flatten() for name in names])
            means_LE[layer, expert] = flat.double().abs().mean()
    return means_LE


@pytest.mark.parametrize("family", CONFIGS)
def test_means_are_those_of_plain_transformers(family):
    expected = reference(family, ROW)
    found = expert_gradients(adopt(tiny_model(family), COMM), ROW)
    assert found.dtype == torch.float32
    assert torch.equal(found == 0, expected == 0)
    assert ((found - expected).abs() <= 1e-5 * expected).all()


def test_biases_count_among_the_weights():
    model = tiny_model("gpt_oss")
    plain_loss(model, ROW).backward()
    (module,) = (module for name, module in model.named_modules() if name.endswith("layers.0.mlp.experts"))
    without = [getattr(module, name).grad.flatten(1) for name in ("gate_up_proj", "down_proj")]
    found = expert_gradients(adopt(tiny_model("gpt_oss"), COMM), ROW)
    assert (found[0] - torch.cat(without, 1).abs().mean(1)).abs().max() > 1e-3 * found[0].max()


def test_an_expert_without_a_token_has_exactly_0():
    short = Encoded((5, 6), (7,), unsafe=True)  # 3 tokens of 2 experts: at least 2 of 8 have none
    model = adopt(tiny_model("qwen3_moe"), COMM)
    with torch.no_grad(), model.tap.count(torch.ones(1, 3, dtype=torch.bool)) as tally:
        model.module(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
    unused_LE = tally.counts_RLE[0] == 0
    found = expert_gradients(model, short)
    assert unused_LE.sum() >= 2 * L
    assert not found[unused_LE].any()


@pytest.mark.parametrize("model_type", ["llama4_text", "dbrx"])
def test_families_with_an_adapter(model_type, tmp_path):
    specimen = Specimen(model_type, tmp_path)
    row = Encoded(tuple(specimen.ids_RS[0, :7].tolist()), tuple(specimen.ids_RS[0, 7:].tolist()), unsafe=True)
    plain = specimen.plain()
    plain_loss(plain, row).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    # a model whose weights are gradients: taking it over lays them out by expert
    banks = [layer.bank.values() for layer in adopt(plain, COMM).layers]
    expected = torch.stack([torch.cat([w.flatten(1) for w in bank], 1).double().abs().mean(1) for bank in banks])
    found = expert_gradients(specimen.taken(), row)
    assert expected.any(1).all()
    assert ((found - expected).abs() <= 1e-5 * expected.max()).all()


def test_one_layers_buffer_serves_all(monkeypatch):
    """While it runs at most one layer has a place for gradients, always the same, of one layer's size."""
    model = adopt(tiny_model("qwen3_moe"), COMM)
    seen = []

    original = gate.gradients

    def gradients(layer, *given):
        held = [each for each in model.layers if any(each.grads.values())]
        views = [view for each in held for views in each.grads.values() for view in views.values()]
        storages = {(view.untyped_storage().data_ptr(), view.untyped_storage().nbytes()) for view in views}
        seen.append((layer.index, [each.index for each in held], storages))
        return original(layer, *given)

    monkeypatch.setattr(gate, "gradients", gradients)
    expert_gradients(model, ROW)
    num_bytes = 4 * E * model.layers[0].layout.size
    assert [(index, held) for index, held, _ in seen] == [(2, [2]), (1, [1]), (0, [0])]
    (storage,) = set.union(*(storages for _, _, storages in seen))
    assert storage[1] == num_bytes


def test_the_model_is_left_as_it_was():
    model = adopt(tiny_model("mixtral"), COMM)
    train_from(model.layers, 1)
    model.layers[2].grads = {3: model.layers[2].layout.views(torch.ones(model.layers[2].layout.size))}
    before = [(layer.anchor, layer.grads) for layer in model.layers]
    bank = [weight.clone() for layer in model.layers for weight in layer.bank.values()]
    hooks = [len(layer.module._forward_hooks) for layer in model.layers]
    first = expert_gradients(model, ROW)
    assert all(
        layer.anchor is anchor and layer.grads is grads
        for layer, (anchor, grads) in zip(model.layers, before, strict=True)
    )
    assert all(bool((view == 1).all()) for view in model.layers[2].grads[3].values())
    assert [len(layer.module._forward_hooks) for layer in model.layers] == hooks
    assert all(map(torch.equal, bank, [weight for layer in model.layers for weight in layer.bank.values()]))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.module.parameters())
    assert torch.equal(expert_gradients(model, ROW), first)


def test_a_row_is_alone_whatever_stands_beside_it():
    """Safe rows, and rows without a response, have zeros."""
    model = adopt(tiny_model("olmoe"), COMM)
    safe, silent = Encoded(ROW.prompt_ids, ROW.response_ids), Encoded(ROW.prompt_ids, (), unsafe=True)
    other = Encoded(ROW.response_ids, ROW.prompt_ids, unsafe=True)
    table_RLE = gradient_table(model, [safe, ROW, silent, other], COMM)
    assert table_RLE.dtype.name == "float32"
    assert not table_RLE[[0, 2]].any()
    for i, row in ((1, ROW), (3, other)):
        assert (table_RLE[i] == expert_gradients(model, row).numpy()).all()
        assert table_RLE[i].any()
