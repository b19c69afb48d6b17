"""Routing masks against a reference written from the definition, with plain torch, from the router's own weight."""

from types import SimpleNamespace

import pytest
import torch

from dist_moe.conformance.sizes import build
from dist_moe.model.model import adopt
from dist_moe.moe.natural import Natural
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.parallel.comm import SoloComm
from tests.tiny import CONFIGS, FAMILIES, E, K, L, random_masks, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))


def routed(model, ids, dtype=torch.float32):
    """What every experts module is given: [(hidden [T, H], index [T, k], weights [T, k])]."""
    seen = []
    hooks = [
        layer.module.register_forward_pre_hook(lambda m, args, kw: seen.append((*args, *kw.values())), with_kwargs=True)
        for layer in model.layers
    ]
    with torch.no_grad():
        out = model.module(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return out, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_all_true_mask_is_the_unmasked_model_bit_for_bit(family):
    model, ids = adopt(tiny_model(family), CPU), token_ids(1)
    plain, _ = routed(model, ids)
    model.route_mask.set(RoutePlan(torch.ones(L, E, dtype=torch.bool)))
    masked, _ = routed(model, ids)
    assert torch.equal(plain, masked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_allowed", [0, 1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_the_familys_rule_over_the_allowed_experts(family, num_allowed, dtype):
    model, ids = adopt(tiny_model(family, dtype), CPU), token_ids(1)
    mask = torch.zeros(L, E, dtype=torch.bool)
    for layer in range(L):
        mask[layer, torch.randperm(E, generator=torch.Generator().manual_seed(layer))[:num_allowed]] = True
    allowed = routable(mask)
    model.route_mask.set(RoutePlan(allowed))
    logits, seen = routed(model, ids)
    assert torch.isfinite(logits).all()
    assert torch.equal(model.route_mask.applied_LE, allowed)
    config = CONFIGS[family]()
    renormalise = family == "mixtral" or config.norm_topk_prob
    for layer, (hidden, index, weights) in enumerate(seen):
        router = model.module.get_submodule(model.shape.layer_names[layer].replace(".experts", ".gate"))
        scores = torch.softmax((hidden @ router.weight.t()).float()[:, allowed[layer]], dim=-1)
        best, which = scores.topk(min(K, int(allowed[layer].sum())))
        if renormalise:
            best = best / best.sum(-1, keepdim=True)
        expected = torch.zeros(len(hidden), E).scatter(1, torch.nonzero(allowed[layer]).squeeze(1)[which], best)
        actual = torch.zeros(len(hidden), E).scatter_add(1, index, weights.float())
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)
        assert not actual[:, ~allowed[layer]].any()


def test_experts_outside_the_mask_receive_no_token():
    model, ids = adopt(tiny_model("olmoe"), CPU), token_ids(1)
    allowed = routable(random_masks(1)[0])
    model.route_mask.set(RoutePlan(allowed))
    routed(model, ids)
    sent = torch.stack([layer.received_S for layer in model.layers])
    assert not sent[~allowed].any()
    assert sent.sum(1).tolist() == [ids.numel() * min(K, n) for n in allowed.sum(1).tolist()]


def test_mask_leaves_with_none():
    model, ids = adopt(tiny_model("mixtral"), CPU), token_ids(1)
    plain, _ = routed(model, ids)
    model.route_mask.set(RoutePlan(routable(random_masks(1)[0])))
    masked, _ = routed(model, ids)
    model.route_mask.set(None)
    again, _ = routed(model, ids)
    assert not torch.equal(plain, masked)
    assert torch.equal(plain, again)
    assert model.route_mask.applied_LE.all()


def test_mask_leaves_when_the_router_fails():
    model, ids = adopt(tiny_model("mixtral"), CPU), token_ids(1)
    router = model.module.get_submodule(model.shape.layer_names[0].replace(".experts", ".gate"))
    weight = router.weight
    model.route_mask.set(RoutePlan(routable(random_masks(1)[0])))
    router.weight = torch.nn.Parameter(torch.zeros(1, 1), requires_grad=False)
    with pytest.raises(RuntimeError):
        model.module(input_ids=ids)
    assert torch._C._len_torch_function_stack() == 0
    router.weight = weight
    model.route_mask.set(None)
    model.module(input_ids=ids)


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_few_tokens_route_as_among_many(num_tokens):
    """Four tokens' scores of two groups are as many as the experts."""
    model = adopt(build("deepseek_v3", n_group=2, topk_group=1), CPU)
    allowed = torch.zeros(model.shape.num_layers, E, dtype=torch.bool)
    allowed[:, [0, 2, 5]] = True
    model.route_mask.set(RoutePlan(allowed))
    ids = token_ids(1, rows=1, length=12)
    (_, many), (_, few) = routed(model, ids), routed(model, ids[:, :num_tokens])
    for (_, index, weights), (_, index_few, weights_few) in zip(many, few, strict=True):
        dense = torch.zeros(12, E).scatter_add(1, index, weights)
        torch.testing.assert_close(
            torch.zeros(num_tokens, E).scatter_add(1, index_few, weights_few), dense[:num_tokens]
        )


def test_a_choice_that_lies_where_another_has_lain_is_looked_up_anew():
    mask = torch.zeros(1, E, dtype=torch.bool)
    mask[0, 0] = True
    layer = SimpleNamespace(router_shape=(E, 4), num_experts=E, index=0)
    natural = Natural(layer, RoutePlan(mask, "natural").on(CPU.device, E), None)
    num_tokens = 100_000  # of so much memory, the next tensor gets what the last one has given back
    place = torch.empty(num_tokens, 2, dtype=torch.int64)
    for made in (torch.Tensor.contiguous, place.copy_):
        for expert in range(E):
            chosen = torch.tensor([expert, (expert + 1) % E])
            dropped = natural.enforce(made(chosen.repeat(num_tokens, 1)), torch.ones(num_tokens, 2)) == 0
            assert (dropped == ((chosen == 0).any() & (chosen != 0))).all()
