"""The monitor sees every fault of tests/faults.py on two ranks that share the experts, and on two replicas."""

import pytest

from tests.faults import FAULTS, LATE_FAULTS, audited_fault, seen_fault
from tests.ranks.harness import run_ranks


def see_all(comm):
    seen = {(ep_size, name): seen_fault(comm, ep_size, name) for ep_size in (2, 1) for name in FAULTS}
    return seen | {(ep_size, name): audited_fault(comm, ep_size, name) for ep_size in (2, 1) for name in LATE_FAULTS}


@pytest.fixture(scope="module")
def answers():
    return run_ranks(2, see_all)


@pytest.mark.parametrize("ep_size", [2, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_on_all_ranks_before_any_weight_moves(answers, name, ep_size):
    (words, moved), (words_there, moved_there) = (answer[ep_size, name] for answer in answers)
    assert FAULTS[name].says in words
    assert words == words_there
    assert not moved
    assert not moved_there


@pytest.mark.parametrize("ep_size", [2, 1])
@pytest.mark.parametrize("name", LATE_FAULTS)
def test_an_audit_by_the_monitor_s_promises_sees_what_one_rank_has_changed_on_all(answers, name, ep_size):
    (quiet, audited), (_, audited_there) = (answer[ep_size, name] for answer in answers)
    assert quiet == ""
    assert LATE_FAULTS[name].says in audited
    assert audited == audited_there
