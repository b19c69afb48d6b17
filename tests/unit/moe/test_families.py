"""Every family by the one mechanism, beyond what the sweep of dist_moe/conformance checks.

The reference is transformers' eager implementation. What a mask leaves is checked from what the experts were sent.
"""

import pytest
import torch

from dist_moe.conformance.sizes import FAMILY_CONFIGS, E, K, build
from dist_moe.errors import UserError
from dist_moe.model.model import adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.discover import require_routers
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.parallel.comm import SoloComm
from tests.tiers import by_family

CPU = SoloComm(torch.device("cpu"))
FAMILIES = sorted(FAMILY_CONFIGS)
HASH_ROUTED = {"deepseek_v4": [0]}
"""Layers that look experts up by token number: no router can be masked there."""
ADAPTED = {"dbrx", "jetmoe", "llama4_text", "longcat_flash"}
FAILS_IN_BFLOAT16 = {"inkling2_text"}
"""The plain model's own router multiplies float32 by bfloat16."""
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def trainable(family, dtype=torch.float32):
    """A model in banks whose experts all have gradient buffers."""
    model = adopt(build(family, dtype), CPU)
    train_from(model.layers, 0)
    for layer in model.layers:
        layer.grads = {e: layer.layout.views(torch.zeros(layer.layout.size)) for e in layer.local}
    return model


def masks(num_layers, num_allowed, seed=5):
    """bool [L, E] with `num_allowed` experts a layer."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(num_layers, E, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(E, generator=generator)[:num_allowed]] = True
    return mask


@pytest.mark.parametrize("family", by_family(sorted(set(FAMILIES) - ADAPTED)))
def test_experts_equal_eager_on_the_same_input(family):
    """One layer alone, so that nothing above amplifies rounding: output and gradients to 2e-6 of their largest."""
    reference, model = build(family), trainable(family)
    given = []
    for layer in model.layers:
        reference.get_submodule(model.shape.layer_names[layer.index]).register_forward_pre_hook(
            lambda m, a, kw: given.append((*a, *kw.values())), with_kwargs=True
        )
    with torch.no_grad():
        logits(reference)
    for layer, (hidden, index, weights) in zip(model.layers, given[: len(model.layers)], strict=True):
        theirs = reference.get_submodule(model.shape.layer_names[layer.index])
        results = []
        for module in (theirs, layer.module):
            x, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
            out = module(x, index, w)
            out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
            results.append([out.detach(), x.grad, w.grad])
        for name in layer.bank:
            results[0].append(getattr(theirs, name).grad)
            results[1].append(torch.stack([layer.grads[slot][name] for slot in range(E)]))
        for expected, found in zip(*results, strict=True):
            scale = expected.abs().max()
            assert scale > 0
            torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", by_family(sorted(set(FAMILIES) - FAILS_IN_BFLOAT16)))
def test_in_bfloat16_only_allowed_experts_get_tokens_and_all_stays_finite(family):
    model = trainable(family, torch.bfloat16)
    routed = [i for i in range(model.shape.num_layers) if i not in HASH_ROUTED.get(family, [])]
    for num_allowed in (0, 1, 2, 6):
        allowed = routable(masks(model.shape.num_layers, num_allowed))
        for layer in model.layers:
            layer.ended_S.zero_()
        model.route_mask.set(RoutePlan(allowed))
        out = logits(model.module)
        out.float().square().mean().backward()
        assert torch.isfinite(out).all()
        assert all(g.isfinite().all() for x in model.layers for w in x.grads.values() for g in w.values())
        sent = torch.stack([layer.received_S for layer in model.layers])
        assert not sent[~allowed].any()
        assert torch.equal(model.route_mask.applied_LE, allowed)
        assert (sent.sum(1) <= IDS.numel() * allowed.sum(1).clamp(max=K)).all()
        if num_allowed:
            assert sent[routed].any()


@pytest.mark.parametrize("family", by_family(FAMILIES))
def test_fill_best_and_bias_keep_routing_finite(family):
    model = trainable(family)
    allowed = routable(masks(model.shape.num_layers, 1))
    with torch.no_grad():
        plain = logits(model.module)
        for plan in (RoutePlan(allowed, "best"), RoutePlan(allowed, "bias", bias=3.0)):
            model.route_mask.set(plan)
            out = logits(model.module)
            assert torch.isfinite(out).all()
            # phimoe takes two experts whatever its config says, so the best four hold its own choice
            assert torch.equal(out, plain) == (family == "phimoe" and plan.fill == "best")


def test_fill_best_is_the_masks_experts_and_the_best_others_of_each_token():
    model = adopt(build("mixtral"), CPU)
    allowed = routable(masks(model.shape.num_layers, 2))
    model.route_mask.set(RoutePlan(allowed, "best"))
    seen = []
    for layer in model.layers:
        layer.module.register_forward_pre_hook(lambda m, a, kw: seen.append({**kw}), with_kwargs=True)
    with torch.no_grad():
        logits(model.module)
    for index, named in enumerate(seen):
        router = model.module.get_submodule(model.shape.layer_names[index].replace(".experts", ".gate"))
        scores = named["hidden_states"] @ router.weight.t()
        others = scores.masked_fill(allowed[index], float("-inf")).topk(K - 2).indices
        chosen = allowed[index].repeat(len(scores), 1).scatter(1, others, True)
        expected = torch.softmax(scores.masked_fill(~chosen, float("-inf")), -1)
        found = torch.zeros_like(scores).scatter_add(1, named["top_k_index"], named["top_k_weights"])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_hash_routed_layers_are_refused_for_route_masks():
    with pytest.raises(UserError, match=r"'deepseek_v4' has hash-routed layers, which train\.mode route cannot mask"):
        require_routers(build("deepseek_v4"))
    with pytest.raises(UserError, match="'deepseek_v4' has hash-routed layers, which a term has no logits of"):
        require_routers(build("deepseek_v4"), "a term has no logits of")
    require_routers(build("deepseek_v3"))
