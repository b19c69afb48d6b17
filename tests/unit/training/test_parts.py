"""Losses in parts against all at once, bit for bit, and how much autograd keeps for them."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dist_moe.objective import Inputs
from dist_moe.objective.cross_entropy import CrossEntropy
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.planning.live import LiveBytes
from dist_moe.training import parts

M, V = 23, 64


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    logits, base = (torch.randn(M, V, generator=generator).to(dtype) for _ in range(2))
    target = torch.randint(V, (M,), generator=generator)
    return Inputs(logits_mV=logits.requires_grad_(), target_m=target, base_logits_mV=base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("term", [CrossEntropy(), KLToBase()])
def test_the_same_bits_and_less_is_kept(term, dtype, monkeypatch):
    results = []
    for limit in (M * V, 5 * V):
        monkeypatch.setattr(parts, "LIMIT", limit)
        given, kept, seen = inputs(dtype), [], []
        with saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            losses = parts.in_parts(lambda part, seen=seen: seen.append(len(part.target_m)) or term.losses(part), given)
        weights = torch.linspace(-1, 1, M)
        (losses * weights).sum().backward()
        results.append((losses.detach(), given.logits_mV.grad, sum(kept), seen))
    (losses, grad, kept, seen), (again, grad_again, kept_again, seen_again) = results
    assert grad.any()
    assert torch.equal(losses, again)
    assert torch.equal(grad, grad_again)
    assert (seen, seen_again[:5]) == ([M], [5, 5, 5, 5, 3])
    assert kept >= M * V
    assert kept_again < M * V / 4


def test_a_part_is_there_at_a_time(monkeypatch):
    """Beside the logits: three values of four bytes for each, or for those of a part, and gradients in two bytes, of
    parts and of all."""
    peaks = []
    for limit in (M * V, 2 * V):
        monkeypatch.setattr(parts, "LIMIT", limit)
        given = inputs(torch.bfloat16)
        with LiveBytes() as live:
            parts.in_parts(CrossEntropy().losses, given).sum().backward()
        peaks.append(live.peak)
    assert 12 * M * V <= peaks[0] <= 12.5 * M * V
    assert 4 * M * V <= peaks[1] <= 4.5 * M * V
