"""What a rank writes last when it ends beside its work, because another is lost."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dist_moe.parallel.comm import SoloComm
from dist_moe.trackers.rank_state import read_state
from dist_moe.workflows.rank_log import RankLog

LINE = "rank 0: rank 1 is lost (process 7 on host1)"


def test_stacks_exchanges_and_the_reason_are_written(tmp_path: Path) -> None:
    comm = SoloComm(torch.device("cpu"))
    with RankLog(tmp_path, comm, "train", "steps") as told:
        told.begin(3, 9)
        assert comm.heartbeat.done == "3 of 9 steps done"
        assert comm.heartbeat.last_words is not None
        comm.heartbeat.last_words(LINE)
        log = (tmp_path / "logs" / "rank-0.log").read_text()
        state = read_state(tmp_path / "logs" / "rank-0.json")
    assert f'File "{__file__}", line' in log.partition("stacks:\n")[2]
    assert log.rstrip().endswith(f"ended: {LINE}")
    assert (state.has_ended, state.error) == (True, LINE)
    assert "pg_status" in json.loads((tmp_path / "logs" / "exchanges-rank-0.json").read_text())
    assert comm.heartbeat.last_words is None


def test_a_job_that_has_written_nothing_yet_writes_nothing_then(tmp_path: Path) -> None:
    comm = SoloComm(torch.device("cpu"))
    with RankLog(tmp_path, comm, "train", "steps"):
        assert comm.heartbeat.last_words is not None
        comm.heartbeat.last_words(LINE)
    assert list(tmp_path.iterdir()) == []
