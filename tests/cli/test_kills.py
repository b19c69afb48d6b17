"""Runs that are killed at random moments go on with the same bits: tools/soak in its short form, judged here."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dist_moe.workflows.status import status
from tools.soak.compare import differing_bits

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 600
"""Ten times what it takes on a quiet machine. A hang ends long before, with its stacks: each wait has a limit."""
TIMES = ("seconds", "tokens_per_second")
ONE = ("one-killed", "one-stopped", "one-killed-asynchronous")
RANKS = ("fsdp-rank", "fsdp-asynchronous-rank", "fsdp-launcher", "deepspeed-rank", "deepspeed-launcher")

pytestmark = [pytest.mark.long, pytest.mark.timeout(LIMIT_S + 300)]  # never before the limit within


def soak(trained, out, kills, jobs):
    """What it says, line by line."""
    options = ["--kills", str(kills), "--seed", "0", "--out", str(out), "--jobs", *jobs]
    inputs = ["--config", str(trained.config), "--masks", str(trained.masks)]
    command = [sys.executable, "-m", "tools.soak", *options, *inputs]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def one(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    return out, soak(trained, out, 20, ONE)


@pytest.fixture(scope="module")
def ranks(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    return out, soak(trained, out, 4, RANKS)


def result(run_dir):
    """Trained experts and metrics of a finished run, without times."""
    files = sorted((run_dir / "experts").glob("*.safetensors"))
    experts = {key: w.numpy().tobytes() for file in files for key, w in load_file(file).items()}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return experts, [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def judge(out, name, num_kills, num_steps):
    """The killed run is the undisturbed one, and nothing else lies about. Returns what each killed start printed."""
    experts, metrics = result(out / name)
    expected_experts, expected_metrics = result(out / f"{name.split('-')[0].replace('one', 'local')}-undisturbed")
    assert experts == expected_experts
    assert experts
    assert metrics == expected_metrics
    assert [line["step"] for line in metrics] == list(range(1, num_steps + 1))
    names = sorted(path.name for path in (out / name).iterdir())
    assert names == ["checkpoints", "experts", "logs", "metrics.jsonl", "train.yaml"]
    assert status(out / name).state == "finished"
    assert len(list((out / name / "checkpoints").iterdir())) == 2
    logs = [(out / f"{name}-{i:03}.log").read_text() for i in range(num_kills)]
    assert sum(bool(re.search("Resuming after step [1-9]", log)) for log in logs) >= num_kills // 2, logs
    assert not any("Traceback" in log for log in logs), logs
    return logs


@pytest.mark.parametrize("name", ONE)
def test_one_process_killed_twenty_times(one, name):
    out, said = one
    logs = judge(out, name, 20, 130)
    ends = [line for line in said if line.startswith(f"{name}: SIG")]
    status = r"-9" if name != "one-stopped" else r"(0|130|-15)"  # saved; interrupted; before it could heed a signal
    assert sum(bool(re.search(rf"ranks ended with \[{status}\] after", line)) for line in ends) == 20, said
    for where in ("in a step", "while it set up", "in a checkpoint write"):
        assert sum(where in line for line in ends) >= 6, ends
    if name == "one-stopped":
        assert sum("as requested, with a checkpoint" in log for log in logs) >= 12


@pytest.mark.parametrize("name", [name for name in RANKS if name.endswith("rank")])
def test_one_rank_of_two_killed(ranks, name):
    out, said = ranks
    for log in judge(out, name, 4, 34):
        assert log.count("dist-moe: error: ") == 1, log
        assert re.search(r"error: rank [01]: another rank has ended before its work was done", log), log
    assert sum(bool(re.search(rf"{name}: SIG.* ended with \[(1, -9|-9, 1)\]", line)) for line in said) == 4, said


@pytest.mark.parametrize("name", [name for name in RANKS if name.endswith("launcher")])
def test_ranks_without_their_launcher_save_and_end(ranks, name):
    out, said = ranks
    for log in judge(out, name, 4, 34):
        assert "as requested, with a checkpoint" in log, log
    assert sum(bool(re.search(rf"{name}: SIG.* ended with \[0, 0\]", line)) for line in said) == 4, said


def test_differing_bits_are_counted(trained, tmp_path):
    shutil.copytree(trained.run_dir, tmp_path / "run")
    assert differing_bits(trained.run_dir, tmp_path / "run") == 0
    file = tmp_path / "run" / "experts" / "experts-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0b101
    data[-9] ^= 0b1
    file.write_bytes(data)
    assert differing_bits(trained.run_dir, tmp_path / "run") == 3
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert differing_bits(trained.run_dir, tmp_path / "run") > 100


HANG = """
import faulthandler, sys, time
from pathlib import Path
from tools.soak import processes

def stuck_in_the_mud(arguments):
    time.sleep(60)

processes.main, processes.LIMIT_S = stuck_in_the_mud, 0.3
faulthandler.register(processes.DUMP, all_threads=True)
processes.start("local", 1, [], Path(sys.argv[1])).statuses()
"""


def test_what_hangs_is_ended_and_shows_where(tmp_path):
    environment = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "PATH": ""}
    command = [sys.executable, "-c", HANG, str(tmp_path / "log")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert "HungError" in done.stderr
    assert "in stuck_in_the_mud" in done.stderr
