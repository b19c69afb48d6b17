"""The monitor sees every fault of tests/faults.py in one process, before a weight moves, the audit those of a step."""

from itertools import product
from typing import get_args

import pytest
import torch

from dist_moe.moe.route_mask import Fill, Scope
from dist_moe.parallel.comm import SoloComm
from dist_moe.stats.masks import mask_hash
from tests.faults import FAULTS, LATE_FAULTS, MASK, Trial, audited_fault, seen_fault

CPU = SoloComm(torch.device("cpu"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_before_any_weight_moves(name):
    words, moved = seen_fault(CPU, None, name)
    assert FAULTS[name].says in words
    assert not moved


@pytest.mark.parametrize(("mode", "fill", "scope"), [*product(("route", "update"), get_args(Fill), get_args(Scope))])
def test_a_right_step_is_let_through(mode, fill, scope):
    trial = Trial(CPU, None, {"mode": mode, "fill": fill, "scope": scope})
    before = trial.bits()
    assert trial.run(audited=True) == mask_hash(MASK.numpy())
    assert not all(map(torch.equal, before, trial.bits()))


@pytest.mark.parametrize("name", LATE_FAULTS)
def test_an_audit_by_the_monitor_s_promises_sees_what_a_step_has_changed(name):
    quiet, audited = audited_fault(CPU, None, name)
    assert quiet == ""
    assert LATE_FAULTS[name].says in audited


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_digest_sees_each_bit_each_pair_of_bits_of_a_kind_and_the_order(dtype):
    audit = Trial(CPU, None, {}).step.audit
    values = torch.arange(1, 12).to(dtype)
    bits = values.view(torch.uint8)
    first = int(audit._digest(values))
    assert int(audit._digest(torch.stack([values, values], 1)[:, 0])) == first
    assert int(audit._digest(values.flip(0))) != first
    for byte, bit in product(range(len(bits)), range(8)):
        bits[byte] ^= 1 << bit
        assert int(audit._digest(values)) != first
        bits[byte - 8] ^= 1 << bit  # of another word
        assert int(audit._digest(values)) != first
        bits[[byte, byte - 8]] ^= 1 << bit


def test_a_digest_of_a_long_tensor_sees_all_its_parts(monkeypatch):
    monkeypatch.setattr("dist_moe.training.audit.CHUNK", 4)
    audit = Trial(CPU, None, {}).step.audit
    values = torch.arange(18)
    changed = [torch.where(torch.arange(18) == i, -1, values) for i in range(18)]
    swapped = torch.cat([values[4:8], values[:4], values[8:]])
    assert len({int(audit._digest(tensor)) for tensor in (values, swapped, *changed)}) == 20
