"""Every family of transformers' experts interface, by the one mechanism: experts, tap and mask.

The reference is transformers' eager implementation. What a mask leaves is checked from what the experts were sent.
"""

import pytest
import torch

from dist_moe.errors import UserError
from dist_moe.families.sizes import FAMILY_CONFIGS, E, K, build
from dist_moe.moe.discover import require_routers
from dist_moe.moe.model import adopt
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.parallel.comm import SoloComm
from tests.fused import fused_experts, gradient

CPU = SoloComm(torch.device("cpu"))
FAMILIES = sorted(FAMILY_CONFIGS)
HASH_ROUTED = {"deepseek_v4": [0]}
"""Layers that look experts up by token number: no router can be masked there."""
FAILS_IN_TRANSFORMERS = ("inkling2_text", torch.bfloat16)
"""The plain model's own router multiplies float32 by bfloat16."""
IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def trainable(family, dtype=torch.float32):
    """A model in banks whose experts all have gradient buffers."""
    model = adopt(build(family, dtype), CPU)
    model.train_from(0)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_eager(family):
    reference, model = build(family), trainable(family)
    expected, found = logits(reference), logits(model.module)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    expected.square().mean().backward()
    found.square().mean().backward()
    for layer in model.layers:
        grads = fused_experts(reference, model.shape.layer_names[layer.index], gradient)
        assert grads.keys() >= layer.bank.keys()
        for name in layer.bank:
            grad = grads[name]
            ours = torch.stack([layer.grads[e][name] for e in range(E)])
            scale = grad.abs().max().clamp(min=1e-6)
            torch.testing.assert_close(ours / scale, grad / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_true_mask_is_the_unmasked_model_bit_for_bit(family):
    model = adopt(build(family), CPU)
    with torch.no_grad():
        plain = logits(model.module)
        model.route_mask.set(RoutePlan(torch.ones(model.shape.num_layers, E, dtype=torch.bool)))
        assert torch.equal(logits(model.module), plain)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(f, d) for f in FAMILIES for d in (torch.float32, torch.bfloat16) if (f, d) != FAILS_IN_TRANSFORMERS],
)
def test_only_allowed_experts_get_tokens_and_all_stays_finite(family, dtype):
    model = trainable(family, dtype)
    routed = [i for i in range(model.shape.num_layers) if i not in HASH_ROUTED.get(family, [])]
    for num_allowed in (0, 1, 2, 6):
        allowed = routable(masks(model.shape.num_layers, num_allowed))
        for layer in model.layers:
            layer.dispatched_E.zero_()
        model.route_mask.set(RoutePlan(allowed))
        out = logits(model.module)
        out.float().square().mean().backward()
        assert torch.isfinite(out).all()
        assert all(g.isfinite().all() for x in model.layers for w in x.grads.values() for g in w.values())
        sent = torch.stack([layer.dispatched_E for layer in model.layers])
        assert not sent[~allowed].any()
        assert torch.equal(model.route_mask.applied_LE, allowed)
        assert (sent.sum(1) <= IDS.numel() * allowed.sum(1).clamp(max=K)).all()
        if num_allowed:
            assert sent[routed].any()


@pytest.mark.parametrize("family", FAMILIES)
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
    with pytest.raises(UserError, match="'deepseek_v4' has hash-routed layers"):
        require_routers(build("deepseek_v4"))
    require_routers(build("deepseek_v3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_the_models_own_top_k(family):
    model = adopt(build(family), CPU)
    counted = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = torch.zeros(2, model.shape.num_layers, E, dtype=torch.long)

    def count(layer):
        def hook(module, args, kwargs):
            named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
            rows = torch.arange(2).repeat_interleave(IDS.shape[1])
            for token in torch.nonzero(counted.reshape(-1)).flatten().tolist():
                for expert, weight in zip(named["top_k_index"][token], named["top_k_weights"][token], strict=True):
                    if expert < E and weight != 0:
                        expected[rows[token], layer.index, expert] += 1

        return hook

    for layer in model.layers:
        layer.module.register_forward_pre_hook(count(layer), with_kwargs=True)
    with torch.no_grad(), model.tap.count(counted) as counts:
        logits(model.module)
    assert torch.equal(counts, expected)
    assert counts.any()
