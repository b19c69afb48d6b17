"""One step under each fill and scope, in every family: who gets tokens, who gets gradients, whose bits move."""

from itertools import product
from typing import get_args

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import FAMILY_CONFIGS, E, build
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.moe.route_mask import Fill, Scope
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep
from tests.tiers import by_family

CPU = SoloComm(torch.device("cpu"))
LEFT_OUT = {"deepseek_v4"}
"""Hash-routed, so refused for route masks."""
FEW = {"zaya": 1, "phimoe": 2}
"""Families that take fewer experts a token than the others' four."""


def rows(labels):
    ids = torch.randint(3, 120, (len(labels), 9), generator=torch.Generator().manual_seed(4)).tolist()
    return [
        Encoded(tuple(i[:4]), tuple(i[4 : 9 - n]), bool(label))
        for n, (i, label) in enumerate(zip(ids, labels, strict=True))
    ]


class Stepped:
    def __init__(self, family):
        self.model = adopt(build(family), CPU)
        shape = (self.model.shape.num_layers, E)
        self.mask = torch.rand(shape, generator=torch.Generator().manual_seed(7)).argsort(1) < 2
        for layer in self.model.layers:
            layer.module.register_forward_pre_hook(self._count(layer), with_kwargs=True)
        optimizer = SelectiveAdamW(self.model.layers, self.mask, Mesh.one_replica(CPU), lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        engine = LocalEngine(self.model.module, optimizer, schedule)
        self.settings = TrainConfig(route_bias=1.0)
        self.step = MaskedStep(self.model, optimizer, engine, CPU, self.settings, lambda batch_id: self.promise)

    def _count(self, layer):
        def hook(module, args, kwargs):
            named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
            self.buffers[layer.index] = set(layer.grads)
            unsafe_T = self.batch.is_unsafe.flatten()
            for label in (False, True):
                chosen = self.batch.live.flatten() & (unsafe_T == label)
                index, weights = named["top_k_index"][chosen], named["top_k_weights"][chosen]
                used = index[(weights != 0) & (index < E)]
                self.sent[label][layer.index] += torch.bincount(used, minlength=E)

        return hook

    def run(self, labels, fill="shrink", scope="unsafe"):
        """Which experts a step has moved, bool [L, E]."""
        self.settings.fill, self.settings.scope = fill, scope
        self.promise = Promise.of(self.mask.numpy(), labels)
        self.buffers = {}
        self.sent = {label: torch.zeros(self.mask.shape) for label in (False, True)}
        self.batch = collate(rows(labels), pad_id=0)
        before = [{n: w.clone() for n, w in layer.bank.items()} for layer in self.model.layers]
        self.step("the batch", self.mask, [self.batch])
        moved = torch.zeros_like(self.mask)
        for layer, old in zip(self.model.layers, before, strict=True):
            for name, weight in layer.bank.items():
                moved[layer.index] |= (weight != old[name]).flatten(1).any(1)
        return moved


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_nothing_of_the_step_before_is_in_the_gradients(family):
    """The buffer is kept from step to step, and the first gradient is written where the others are added: experts
    without a token, which nothing is written for, have none either."""
    fresh, kept = Stepped(family), Stepped(family)
    kept.step.optimizer._grad_buffer = torch.full((100, kept.model.layers[0].layout.size), float("nan"))
    for stepped in (fresh, kept):
        stepped.run([False])
    assert kept.step.optimizer.num_stepped < len(kept.step.optimizer.active)
    assert torch.equal(kept.step.optimizer.grad_AN, fresh.step.optimizer.grad_AN)
    for one, other in zip(fresh.model.layers, kept.model.layers, strict=True):
        assert torch.equal(one.flat_SN, other.flat_SN)


@pytest.mark.parametrize("family", by_family(sorted(set(FAMILY_CONFIGS) - LEFT_OUT)))
def test_only_the_masks_experts_have_gradients_and_move(family):
    stepped = Stepped(family)
    mask = stepped.mask
    for fill, scope in product(get_args(Fill), get_args(Scope)):
        moved = stepped.run([False, True], fill, scope)
        assert moved.any()
        assert not moved[~mask].any()
        for layer in stepped.model.layers:
            assert stepped.buffers[layer.index] == set(torch.nonzero(mask[layer.index]).flatten().tolist())
        safe_outside, unsafe_outside = stepped.sent[False][~mask].any(), stepped.sent[True][~mask].any()
        k = FEW.get(family, 4)
        if fill == "shrink":
            assert not unsafe_outside
        if k > 2 and fill in ("best", "bias"):  # frozen experts help, and have not moved
            assert unsafe_outside
        assert safe_outside or scope == "all" or family == "zaya"
        assert not (safe_outside and scope == "all" and fill == "shrink")
