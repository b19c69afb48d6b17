"""A process group of one process: it has nobody to exchange with."""

import pytest
import torch
import torch.distributed as dist

from dist_moe.parallel.comm import GroupComm


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield GroupComm(dist.group.WORLD, torch.device("cpu"))
    dist.destroy_process_group()


def test_nothing_is_sent_to_oneself(alone, monkeypatch):
    for name in ("all_reduce", "all_to_all_single"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: pytest.fail(f"{name} of one process"))
    rows = torch.randn(3, 4)
    for found in (
        alone.sum_(rows),
        alone.swap_rows(rows, [3], [3]),
        alone.reduce_rows(rows, [3]),
        alone.gather_rows(rows, [3]),
    ):
        assert torch.equal(found, rows)
    assert alone.swap_counts(torch.tensor([[3, 1]])).tolist() == [[3, 1]]
