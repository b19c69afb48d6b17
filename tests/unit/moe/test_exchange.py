"""Tokens go once to each rank with experts of theirs: against loops over tokens, and against transformers' experts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dist_moe.model.model import adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.exchange import Exchange
from dist_moe.parallel.placement import Placement
from tests.tiny import E, L, tiny_model
from tools.growth.threads import on_threads

RANKS, TOKENS, K, H = 3, (9, 0, 14), 4, 16
"""One rank has no token."""


def keys_of(rank: int, num_slots: int) -> torch.Tensor:
    """[T, K] on all ranks, a quarter of them nowhere, one token everywhere twice, and one nowhere."""
    random = torch.Generator().manual_seed(rank)
    keys = torch.stack([torch.randperm(RANKS * num_slots, generator=random)[:K] for _ in range(20)])[: TOKENS[rank]]
    keys = keys.where(torch.rand(keys.shape, generator=random) < 0.75, RANKS * num_slots)
    keys[1:2] = torch.tensor([2 * num_slots, 0, 1, 2 * num_slots + 1])
    keys[2:3] = RANKS * num_slots
    return keys


def tokens_to(rank: int, num_slots: int) -> list[tuple[int, int]]:
    """(source, token) of each token that has an expert on a rank."""
    owners = {source: keys_of(source, num_slots).numpy() // num_slots for source in range(RANKS)}
    return [(source, int(t)) for source in range(RANKS) for t in np.flatnonzero((owners[source] == rank).any(1))]


@pytest.mark.parametrize(("dtype", "num_slots"), [(torch.bfloat16, 300), (torch.float32, 2), (torch.float64, 5)])
def test_a_token_arrives_once_with_its_weights_and_slots(dtype, num_slots):
    def values(source, width, seed):
        return torch.randn(TOKENS[source], width, generator=torch.Generator().manual_seed(seed + source)).to(dtype)

    def work(mesh, calls, sent):
        rank = mesh.ep.rank
        exchange = Exchange(keys_of(rank, num_slots), SimpleNamespace(comm=mesh.ep, num_slots=num_slots))
        arrived = exchange.there(values(rank, H, 10), values(rank, K, 20).float())
        doubled = exchange.back(2 * arrived[0], 3 * arrived[1])
        return exchange, arrived, exchange.grads_there(values(rank, H, 30)), doubled, dict(calls), dict(sent)

    for rank, (exchange, arrived, grads, back, calls, sent) in enumerate(on_threads(RANKS, RANKS, work)):
        theirs = tokens_to(rank, num_slots)
        keys = torch.stack([keys_of(source, num_slots)[token] for source, token in theirs])
        is_here = keys // num_slots == rank
        assert (exchange.most_tokens, exchange.most_pairs) == (len(theirs), int(is_here.sum()))
        hidden, weights, dout = (
            torch.stack([values(source, width, seed)[token] for source, token in theirs])
            for width, seed in ((H, 10), (K, 20), (H, 30))
        )
        assert torch.equal(arrived[0], hidden)
        assert torch.equal(arrived[1], weights * is_here)
        assert torch.equal(arrived[2], (keys - rank * num_slots).where(is_here, num_slots))
        assert torch.equal(grads, dout)
        # a token is doubled by each rank that it went to, and each of its weights tripled by the expert's
        owners = [set(row) - {RANKS} for row in (keys_of(rank, num_slots) // num_slots).tolist()]
        times = torch.tensor([2 * len(each) for each in owners], dtype=dtype)[:, None]
        torch.testing.assert_close(back[0], values(rank, H, 10) * times)
        torch.testing.assert_close(back[1], values(rank, K, 20) * 3 * (keys_of(rank, num_slots) < RANKS * num_slots))
        # one exchange of counts; the others send a row for each (token, other rank)
        away = sum(len(each - {rank}) for each in owners)
        guests = sum(source != rank for source, _ in theirs)
        num_values = away * (H + 2 * K) + guests * (H + K) + away * H
        assert calls == {"counts": 1, "rows": 3}
        assert sent == {"counts": RANKS * 2 * 8, "rows": num_values * dtype.itemsize}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_ranks_compute_what_transformers_experts_do(family):
    def inputs(rank):
        random = torch.Generator().manual_seed(40 + rank)
        hidden = torch.randn(TOKENS[rank], 32, generator=random)
        index = torch.stack([torch.randperm(E, generator=random)[:K] for _ in range(20)])[: TOKENS[rank]]
        weights = torch.rand(index.shape, generator=random)
        weights[torch.rand(index.shape, generator=random) < 0.3] = 0
        weights[3:4] = 0
        return hidden, index, weights, torch.randn(hidden.shape, generator=random)

    placement = Placement.from_owners(torch.tensor([1, 0, 1, 2, 0, 1, 2, 1]).expand(L, E).contiguous(), RANKS)
    trained = [0, 2, 3]
    models = [tiny_model(family) for _ in range(RANKS)]  # not in the threads, which share one random generator

    def work(mesh, calls, sent):
        model = adopt(models[mesh.ep.rank], mesh.ep, placement)
        train_from(model.layers, 0)
        layer, (hidden, index, weights, dout) = model.layers[1], inputs(mesh.ep.rank)
        slots = {expert: layer.local.index(expert) for expert in trained if expert in layer.local}
        layer.grads = {slot: layer.layout.views(torch.zeros(layer.layout.size)) for slot in slots.values()}
        _ = hidden.requires_grad_(), weights.requires_grad_()
        out = layer.module(hidden, index, weights)
        out.backward(dout)
        return out.detach(), hidden.grad, weights.grad, {e: layer.grads[slot] for e, slot in slots.items()}

    found = on_threads(RANKS, RANKS, work)
    reference = tiny_model(family)
    experts = reference.model.layers[1].mlp.experts
    hidden, index, weights, dout = (torch.cat(each) for each in zip(*map(inputs, range(RANKS)), strict=True))
    _ = hidden.requires_grad_(), weights.requires_grad_()
    out = experts(hidden, index, weights)
    out.backward(dout)
    for expected, ours in zip(
        (out, hidden.grad, weights.grad * (weights != 0)), [*zip(*found, strict=True)][:3], strict=True
    ):
        torch.testing.assert_close(torch.cat(ours), expected, rtol=1e-5, atol=1e-6)
    grads = {e: views for *_, each in found for e, views in each.items()}
    assert set(grads) == set(trained)
    for expert, views in grads.items():
        for name, grad in views.items():
            torch.testing.assert_close(grad, getattr(experts, name).grad[expert], rtol=1e-5, atol=1e-6)
