"""Every family's routing, with each fill and scope, against the rule of its paper over the experts that are left."""

from functools import partial
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from dist_moe.conformance.sizes import FAMILY_CONFIGS, E, build
from dist_moe.model.model import adopt
from dist_moe.moe.route_mask import Fill, RoutePlan, Scope
from dist_moe.parallel.comm import SoloComm
from tests.tiers import by_family
from tests.unit.moe.routing_rules import (
    scores_then_top_k,
    sigmoid,
    softmax,
    sparse_mixer,
    sqrt_softplus,
    take_best,
    top_k_then_scores,
    top_two,
    with_null,
    with_shared,
)

CPU = SoloComm(torch.device("cpu"))
IDS = torch.randint(3, 120, (2, 8), generator=torch.Generator().manual_seed(1))
UNSAFE = torch.tensor([[False] * 8, [True] * 8])
BIAS = 1.5
SPREAD = 2.0
"""Standard deviation of the logits: decisions are clear, and no weight is close to 0."""
FLOAT32_ONLY = {"inkling2_text"}
"""The plain model's own router multiplies float32 by bfloat16."""
HASH_ROUTED = {"deepseek_v4": [0]}
HAVE_NULL = {"longcat_flash", "zaya"}
"""They may send a token to nothing but experts without weights."""
MOST_NULL = 4

softmax_top_k = partial(scores_then_top_k, score=softmax)
sigmoid_top_k = partial(scores_then_top_k, score=sigmoid)
top_k_softmax = partial(top_k_then_scores, score=softmax)


def renormalised(c, b):
    return {"renormalise": True}


def as_configured(c, b):
    return {"renormalise": c.norm_topk_prob}


def plain(c, b):
    return {}


def corrected(c, b):
    return {"renormalise": True, "bias": bias_of(b)}


def deepseek_v2(c, b):
    groups = {"num_groups": c.n_group, "topk_group": c.topk_group, "group_score": max}
    return {"scale": c.routed_scaling_factor} | ({"groups": groups} if "group" in c.topk_method else {})


def deepseek_v3(c, b, losers=None):
    groups = {"num_groups": c.n_group, "topk_group": c.topk_group, "group_score": top_two, "losers": losers}
    return {
        "bias": bias_of(b),
        "renormalise": c.norm_topk_prob,
        "scale": c.routed_scaling_factor,
        "groups": groups,
    }


def ernie(c, b):
    return corrected(c, b) | {"floor": c.moe_norm_min}


def cohere2(x, allowed, k, *, sigmoids, **weighing):
    return top_k_then_scores(x, allowed, k, sigmoid if sigmoids else softmax, **weighing)


def laguna(x, allowed, k, *, cap, **weighing):
    return sigmoid_top_k(cap * np.tanh(x / cap) if cap else x, allowed, k, renormalise=True, **weighing)


def gemma4(x, allowed, k, *, expert_scale, keep=None):
    routed = softmax_top_k(x, allowed, k, renormalise=True, keep=keep)
    routed.weights_E *= expert_scale
    return routed


RULES = {
    "afmoe": (sigmoid_top_k, lambda c, b: corrected(c, b) | {"scale": c.route_scale}),
    "aria_text": (top_k_softmax, plain),
    "axk1": (sigmoid_top_k, deepseek_v3),
    "axk2": (sigmoid_top_k, partial(deepseek_v3, losers=0.0)),
    "bailing_hybrid": (sigmoid_top_k, deepseek_v3),
    "beam": (sigmoid_top_k, lambda c, b: deepseek_v3(c, b) | {"scale": 1.0}),  # the block scales the experts' sum
    "cohere2_moe": (
        cohere2,
        lambda c, b: {
            "sigmoids": c.expert_selection_fn == "sigmoid",
            "renormalise": c.norm_topk_prob and c.expert_selection_fn == "sigmoid",
        },
    ),
    "dbrx": (softmax_top_k, lambda c, b: {"renormalise": c.ffn_config.moe_normalize_expert_weights == 1}),
    "deepseek_v2": (softmax_top_k, deepseek_v2),
    "deepseek_v3": (sigmoid_top_k, deepseek_v3),
    "deepseek_v32": (sigmoid_top_k, deepseek_v3),
    "deepseek_v4": (
        partial(scores_then_top_k, score=sqrt_softplus),
        lambda c, b: corrected(c, b) | {"scale": c.routed_scaling_factor},
    ),
    "dots1": (sigmoid_top_k, deepseek_v3),
    "dots3_note_text": (sigmoid_top_k, deepseek_v3),
    "ernie4_5_moe": (softmax_top_k, ernie),
    "exaone_moe": (sigmoid_top_k, deepseek_v3),
    "flex_olmo": (softmax_top_k, as_configured),
    "flint": (sigmoid_top_k, as_configured),
    "gemma4_text": (gemma4, lambda c, b: {"expert_scale": array(b.router.per_expert_scale)}),
    "glm4_moe": (sigmoid_top_k, deepseek_v3),
    "glm4_moe_lite": (sigmoid_top_k, deepseek_v3),
    "glm_moe_dsa": (sigmoid_top_k, deepseek_v3),
    "gpt_oss": (top_k_softmax, plain),
    "granitemoe": (top_k_softmax, plain),
    "granitemoe_swa": (top_k_softmax, plain),
    "granitemoehybrid": (top_k_softmax, plain),
    "granitemoeshared": (top_k_softmax, plain),
    "hunyuan_v1_moe": (softmax_top_k, renormalised),
    "hy_v3": (sigmoid_top_k, lambda c, b: corrected(c, b) | {"scale": c.router_scaling_factor}),
    "hy_v4": (sigmoid_top_k, deepseek_v3),
    "inkling2_text": (
        lambda x, allowed, k, *, of, **rest: scores_then_top_k(x, allowed, k, of, **rest),
        lambda c, b: (
            corrected(c, b)
            | {"scale": c.routed_scaling_factor, "of": sigmoid if c.scoring_func == "sigmoid" else sqrt_softplus}
        ),
    ),
    "inkling_text": (
        partial(with_shared, num_experts=E),
        lambda c, b: {"bias": bias_of(b), "scale": c.route_scale * float(b.gate.global_scale)},
    ),
    "jamba": (softmax_top_k, plain),
    "jetmoe": (top_k_softmax, plain),
    "kimi_linear": (sigmoid_top_k, deepseek_v3),
    "kolibri1": (
        partial(top_k_then_scores, score=sigmoid),
        lambda c, b: {"bias": bias_of(b), "renormalise": c.norm_topk_prob},
    ),
    "laguna": (laguna, lambda c, b: {"cap": c.moe_router_logit_softcapping, "bias": bias_of(b)}),
    "lfm2_moe": (
        sigmoid_top_k,
        lambda c, b: {
            "bias": bias_of(b) if c.use_expert_bias else None,
            "renormalise": c.norm_topk_prob,
            "epsilon": 1e-6,
            "scale": c.routed_scaling_factor,
        },
    ),
    "llama4_text": (partial(top_k_then_scores, score=sigmoid), plain),
    "longcat_flash": (
        partial(with_null, num_experts=E),
        lambda c, b: {"bias": bias_of(b), "scale": c.routed_scaling_factor},
    ),
    "mellum": (softmax_top_k, as_configured),
    "mimo_v2_flash": (sigmoid_top_k, deepseek_v3),
    "minimax": (softmax_top_k, renormalised),
    "minimax_m2": (sigmoid_top_k, corrected),
    "minimax_m3_vl_text": (sigmoid_top_k, corrected),
    "mixtral": (softmax_top_k, renormalised),
    "nemotron_h": (sigmoid_top_k, deepseek_v3),
    "olmoe": (softmax_top_k, as_configured),
    "phimoe": (sparse_mixer, lambda c, b: {"jitter": c.router_jitter_noise}),
    "qwen2_moe": (softmax_top_k, as_configured),
    "qwen3_5_moe_text": (softmax_top_k, renormalised),
    "qwen3_moe": (softmax_top_k, as_configured),
    "qwen3_next": (softmax_top_k, as_configured),
    "qwen4_exp_text": (softmax_top_k, as_configured),
    "solar_open": (sigmoid_top_k, deepseek_v3),
    "zaya": (partial(with_null, num_experts=E), lambda c, b: {"bias": bias_of(b)}),
}
"""Family -> its rule and the numbers that it takes from the config and the MoE block. No family is left out."""

ROUTERS = {
    "afmoe": "router.gate",
    "dbrx": "router.layer",
    "gemma4_text": "router.proj",
    "hunyuan_v1_moe": "gate.wg",
    "jetmoe": "router.layer",
    "zaya": "gate.router_mlp.out_proj",
}
"""The module that holds the router's weight, where it is not the block's `gate` or `router` itself."""

FOUR_GROUPS = {"n_group": 4}
ALL_VARIANTS = [
    *((family, {}) for family in sorted(FAMILY_CONFIGS)),
    ("axk2", FOUR_GROUPS | {"topk_group": 2}),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    ("cohere2_moe", {"expert_selection_fn": "sigmoid", "norm_topk_prob": False}),
    ("deepseek_v2", {"topk_method": "group_limited_greedy"}),
    ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 1}),
    *(("deepseek_v2", {"topk_method": "group_limited_greedy", "topk_group": n} | FOUR_GROUPS) for n in (2, 3, 4)),
    ("deepseek_v3", {"n_group": 1}),
    ("deepseek_v3", {"topk_group": 2, "norm_topk_prob": False}),
    *(("deepseek_v3", FOUR_GROUPS | {"topk_group": n}) for n in (2, 3, 4)),
    ("deepseek_v3", FOUR_GROUPS | {"topk_group": 1, "num_experts_per_tok": 2}),
    ("flint", {"norm_topk_prob": False}),
    ("glm4_moe", {"n_group": 1}),
    ("glm4_moe", FOUR_GROUPS | {"topk_group": 2}),
    ("inkling2_text", {"scoring_func": "sqrtsoftplus"}),
    ("laguna", {"moe_router_logit_softcapping": 2.0}),
    ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False}),
    ("olmoe", {"norm_topk_prob": True}),
    ("phimoe", {"router_jitter_noise": 0.3}),
    ("qwen2_moe", {"norm_topk_prob": True}),
    # the shared expert's weights have the router's shape, as in the published Qwen3-Next (512 experts, 512 wide)
    ("qwen3_next", {"shared_expert_intermediate_size": E}),
]
VARIANTS = [variant for variant in ALL_VARIANTS if variant[0] in FAMILY_CONFIGS]  # an older transformers has fewer


def array(tensor):
    return tensor.detach().double().flatten().numpy()


def bias_of(block):
    names = ("e_score_correction_bias", "expert_bias", "balancing_biases")
    tensors = dict(block.named_parameters()) | dict(block.named_buffers())
    (found,) = [tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in names]
    return array(found)


def name_of(variant):
    family, changes = variant
    return "-".join([family, *(f"{key}={value}" for key, value in changes.items())])


def matrix_of(router):
    """longcat_flash's router multiplies by a part's weight without calling the part."""
    return getattr(router, "classifier", router)


class Watched:
    """A model of a family, and what its routers are given and its experts get."""

    def __init__(self, family, changes, dtype):
        self.model = adopt(build(family, dtype, **changes), CPU)
        self.config, self.family = self.model.module.config, family
        modules = dict(self.model.module.named_modules())
        self.blocks = [modules[name.rpartition(".")[0]] for name in self.model.shape.layer_names]
        self.routers, self.inputs, self.sent = [], [], []
        for layer, block in enumerate(self.blocks):
            path = ROUTERS.get(family, "gate" if hasattr(block, "gate") else "router")
            self.routers.append(block.get_submodule(path))
            self.routers[-1].register_forward_pre_hook(lambda m, a: self.inputs.append(a[0]))
            self.model.layers[layer].module.register_forward_pre_hook(self._see_experts, with_kwargs=True)
        for router, x in zip(self.routers, self.run(None)[0], strict=True):
            matrix_of(router).weight *= SPREAD / x.std()

    def _see_experts(self, module, args, kwargs):
        named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
        weights = torch.zeros(len(named["top_k_index"]), E + MOST_NULL, dtype=torch.float64)
        weights.scatter_add_(1, named["top_k_index"], named["top_k_weights"].double())
        self.sent.append(weights[:, :E].numpy())

    def run(self, plan):
        """Per MoE layer the router's logits float64 [T, W] and the weights that the experts got [T, E].

        `read` are the logits as the product reads them.
        """
        self.inputs.clear()
        self.sent.clear()
        with torch.no_grad(), self.model.batch(route=plan):
            if plan is not None and plan.scope == "unsafe":
                self.model.next_pass(None, UNSAFE)
            with self.model.route_mask.reading() as self.read:
                assert self.model.module(input_ids=IDS, use_cache=False).logits.isfinite().all()
        logits = []
        for router, given in zip(self.routers, self.inputs, strict=True):
            x = given.detach().double().reshape(IDS.numel(), -1) @ matrix_of(router).weight.detach().double().t()
            bias = getattr(matrix_of(router), "bias", None)
            logits.append((x if bias is None else x + bias.double()).numpy())
        return logits, self.sent


def expected(rule, numbers, k, x, allowed, plan, is_masked):
    """The rule over what a plan leaves to one token."""
    everything, missing, margin = list(range(E)), k - len(allowed), float("inf")
    if not is_masked:
        allowed = everything
    elif plan.fill == "natural":
        own = rule(x, everything, k, **numbers)
        if own.weights_E[allowed].any():
            own = rule(x, everything, k, keep={*allowed, *range(E, len(x))}, **numbers)
        return own.weights_E, own.margin
    elif plan.fill == "bias":
        x, allowed = x.copy(), allowed if len(allowed) < E else []
        x[allowed] += plan.bias
        allowed = everything
    elif plan.fill == "best" and missing > 0:
        added, margin = take_best({e: x[e] for e in everything if e not in allowed}, missing)
        allowed = sorted(allowed + added)
    routed = rule(x, allowed, k, **numbers)
    return routed.weights_E, min(routed.margin, margin)


def masks(num_layers, num_allowed, seed):
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(E, generator=generator)[:num_allowed] for _ in range(num_layers)]
    return torch.stack([torch.zeros(E, dtype=torch.bool).index_fill(0, index, True) for index in chosen])


def check(watched, plan, rounding):
    rule, numbers_of = RULES[watched.family]
    logits, sent = watched.run(plan)
    for x, read in zip(logits, watched.read, strict=True):
        np.testing.assert_allclose(read.double(), x, rtol=rounding, atol=10 * rounding)
    skipped = HASH_ROUTED.get(watched.family, [])
    k, clear, total = watched.model.shape.top_k, 0, 0
    for layer in set(range(len(sent))) - set(skipped):
        numbers = numbers_of(watched.config, watched.blocks[layer])
        allowed = list(range(E)) if plan is None else torch.nonzero(plan.allowed_LE[layer]).flatten().tolist()
        for token, (x, found) in enumerate(zip(logits[layer], sent[layer], strict=True)):
            is_masked = plan is not None and (plan.scope == "all" or bool(UNSAFE.flatten()[token]))
            weights, margin = expected(rule, numbers, k, x, allowed, plan, is_masked)
            total += 1
            if margin > rounding:
                clear += 1
                np.testing.assert_allclose(found, weights, rtol=rounding, atol=rounding)
                assert not found[weights == 0].any()
            if is_masked and plan.fill == "natural" and found[allowed].any():
                assert not np.delete(found, allowed).any()
            if is_masked and plan.fill == "shrink":
                assert not np.delete(found, allowed).any()
                assert watched.family in HAVE_NULL or found.any()
    return np.array([clear, total])


def test_every_family_has_a_rule():
    assert set(FAMILY_CONFIGS) <= set(RULES)


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_weights_are_the_familys_rule_over_what_the_plan_leaves(variant):
    watched = Watched(*variant, torch.float32)
    num_layers = watched.model.shape.num_layers
    plans = [None, *(RoutePlan(masks(num_layers, n, seed=n)) for n in (1, 2, 3, 6))]
    for fill, scope in product(get_args(Fill), get_args(Scope)):
        plans.append(RoutePlan(masks(num_layers, 2, seed=9), fill, BIAS, scope))
    clear, total = sum(check(watched, plan, 1e-5) for plan in plans)
    assert clear > 0.7 * total  # axk2 leaves experts of losing groups at one value, a tie


@pytest.mark.parametrize("family", by_family(sorted(set(FAMILY_CONFIGS) - FLOAT32_ONLY)))
def test_weights_in_bfloat16(family):
    watched = Watched(family, {}, torch.bfloat16)
    num_layers = watched.model.shape.num_layers
    plans = [
        None,
        RoutePlan(masks(num_layers, 1, seed=1)),
        RoutePlan(masks(num_layers, 5, seed=5)),
        RoutePlan(masks(num_layers, 2, seed=9), "best", scope="unsafe"),
        RoutePlan(masks(num_layers, 3, seed=9), "natural", scope="unsafe"),
    ]
    clear, total = sum(check(watched, plan, 2e-2) for plan in plans)
    assert clear > 0.4 * total
