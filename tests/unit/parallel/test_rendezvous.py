"""Who waits long for the other processes of a job says for whom."""

import datetime

import pytest
import torch.distributed as dist

from dist_moe.parallel import rendezvous
from dist_moe.parallel.rendezvous import Launch


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE_S", 0.05)
    monkeypatch.setattr(rendezvous, "TIMEOUT", datetime.timedelta(seconds=0.3))


def test_rank_0_names_those_that_have_not_come(impatient, caplog):
    store = dist.HashStore()
    for number, rank in enumerate((0, 2), start=1):
        store.set(f"come/{number}", f"{rank} 4")
    verdict = rendezvous._judge(store, 4)
    assert verdict == "of 4 ranks these have not come in 0:00:00.300000: [1, 3]"
    (line,) = caplog.messages
    assert line == "rank 0 waits for these of 4 ranks: [1, 3]; it gives up after 0:00:00"


def test_another_rank_names_the_place_where_rank_0_is_not(impatient, caplog):
    assert not rendezvous._listens(Launch(1, 2, "127.0.0.1", 1), 0.3)
    (line,) = caplog.messages
    assert line.startswith("rank 1 waits for rank 0 at MASTER_ADDR 127.0.0.1, MASTER_PORT 1; ")


def test_ranks_that_come_at_once_are_waited_for_without_a_word(impatient, caplog):
    store = dist.HashStore()
    for rank in range(3):
        store.set(f"come/{rank + 1}", f"{rank} 3")
    assert rendezvous._judge(store, 3) == ""
    assert not caplog.messages
