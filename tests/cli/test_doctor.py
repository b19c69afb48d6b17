"""`dist-moe doctor` as a person calls it."""

import os

from dist_moe.cli.main import main
from dist_moe.doctor.examine import CHECKS  # importing it registers them


def test_a_block_with_a_line_for_each_check_and_a_remedy_for_what_failed(tmp_path, monkeypatch, capsys):
    """The exchange and the GPUs, which import torch, have tests of their own."""
    for name in ("exchange", "gpus"):
        monkeypatch.delitem(CHECKS, name)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.delenv("RANK", raising=False)
    assert main(["doctor", "--run-dir", str(tmp_path / "run")]) == 1
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Machine {os.uname().nodename}, dist_moe ")
    marks = [line[:4].strip() for line in lines]
    failed = marks.index("FAIL")
    assert lines[failed].split()[1] == "environment"
    assert lines[failed + 1].strip() == "-> unset OMP_NUM_THREADS, or set it to a rank's share of the cores"
    assert len([mark for mark in marks if mark]) == len(CHECKS) == 11
    assert last == f"11 checks: {marks.count('FAIL')} failed"
    assert [line[6:19].strip() for line in lines if line[:4].strip()][:3] == ["versions", "compiler", "extensions"]
    assert list(tmp_path.iterdir()) == []
