"""`parallel.ep_size: auto`: as few ranks share experts as there is room for, and a run keeps what it began with."""

import logging
from types import SimpleNamespace

import pytest

from dist_moe.config.load import load_config
from dist_moe.errors import UserError
from dist_moe.planning.fit import FREE, Trained, smallest_ep_size
from dist_moe.planning.outline import known_model
from dist_moe.workflows import ep_size as workflow
from dist_moe.workflows.plan import setup_of
from dist_moe.workflows.run_dir import RunDir
from tools.growth.threads import on_threads

RANKS = 4


QWEN, TRAINED = known_model("qwen3-30b-a3b").outline, Trained(in_all=614, in_batch=50)


@pytest.fixture
def tiny(trained):
    """Of a model and masks that are there."""
    return load_config(trained.config, ["--train.masks", str(trained.masks), "--parallel.ep_size", "auto"])


@pytest.fixture
def config(tiny, monkeypatch):
    """As if it were of a large model."""
    monkeypatch.setattr(workflow, "outline_of_model", lambda config: QWEN)
    monkeypatch.setattr(workflow, "trained_by_masks", lambda config, outline: (TRAINED, 2))
    return tiny


@pytest.fixture
def needs(tiny):
    """Bytes that a rank needs, by ep_size."""
    length = tiny.data.max_length
    setup = setup_of(tiny, QWEN, RANKS, 1, row_tokens=length, answer_tokens=length)
    return smallest_ep_size(QWEN, setup, TRAINED, 0)[1]


def chosen(config, path, monkeypatch, device, num_ranks=RANKS):
    """What each rank is told; `device` says the memory of a rank: a name, and bytes."""
    monkeypatch.setattr(workflow, "_device", lambda comm: device(comm.rank))
    return on_threads(
        num_ranks, num_ranks, lambda mesh, calls, sent: workflow.resolved_ep_size(config, RunDir(path), mesh.world)
    )


def with_room_for(size):
    return -int(-size // (1 - FREE)) + 2


def test_the_fewest_ranks_with_room_share_experts(config, needs, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert needs[1] > needs[2] > needs[4]
    for size, expected in ((needs[1], 1), (needs[1] - 9, 2), (needs[2], 2), (needs[2] - 9, 4), (0, 4)):
        found = chosen(config, tmp_path, monkeypatch, lambda rank, size=size: (f"gpu {rank}", with_room_for(size)))
        assert found == [expected] * RANKS
    said = [line for line in caplog.messages if line.startswith("parallel.ep_size auto: ")]
    assert f"auto: 1, which needs {needs[1] / 1e9:.1f} GB on each rank" in said[0]
    assert f"; 1 needs {needs[1] / 1e9:.1f} GB" in said[RANKS]
    assert "auto: 4, which needs least, but by the plan" in said[-1]


def test_the_smallest_memory_counts_and_ranks_of_a_host_share_one(config, needs, tmp_path, monkeypatch):
    room = with_room_for(needs[1])
    assert chosen(config, tmp_path, monkeypatch, lambda rank: (f"gpu {rank}", room - 9 * (rank == 3)))[0] == 2
    assert chosen(config, tmp_path, monkeypatch, lambda rank: ("host", RANKS * room + RANKS))[0] == 1
    assert chosen(config, tmp_path, monkeypatch, lambda rank: ("host", RANKS * room - 99))[0] == 2


def test_a_run_keeps_what_it_began_with(config, tmp_path, monkeypatch):
    layout = SimpleNamespace(ep_size=4, num_ranks=RANKS)

    def read_index(path):
        if path == "damaged":
            raise UserError("damaged")
        return SimpleNamespace(layout=layout)

    monkeypatch.setattr(workflow, "checkpoint_directories", lambda root: ["whole", "damaged"])
    monkeypatch.setattr(workflow, "read_index", read_index)
    large = 10**12
    assert chosen(config, tmp_path, monkeypatch, lambda rank: (f"gpu {rank}", large)) == [4] * RANKS
    assert chosen(config, tmp_path, monkeypatch, lambda rank: (f"gpu {rank}", large), num_ranks=2) == [1, 1]


def test_the_model_and_its_masks_are_read(tiny, tmp_path, monkeypatch):
    assert chosen(tiny, tmp_path, monkeypatch, lambda rank: (f"gpu {rank}", 10**9)) == [1] * RANKS


def test_what_is_set_is_not_chosen(trained, tmp_path, monkeypatch):
    for words, expected in ((["--parallel.ep_size", "2"], 2), ([], None)):
        assert chosen(load_config(trained.config, words), tmp_path, monkeypatch, None) == [expected] * RANKS


def test_masks_that_are_missing_are_one_line_on_all_ranks(trained, tmp_path, monkeypatch):
    config = load_config(trained.config, ["--run_dir", str(tmp_path / "new"), "--parallel.ep_size", "auto"])
    with pytest.raises(UserError, match=r"masks\.zarr"):
        chosen(config, tmp_path, monkeypatch, lambda rank: ("host", 10**9))
