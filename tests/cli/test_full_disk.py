"""What one rank cannot write ends all ranks with one message and status 2, and the run goes on when it is mended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.soak.__main__ import SINGLE_THREADED
from tools.soak.compare import differing_bits

pytestmark = [pytest.mark.long, pytest.mark.timeout(800)]  # quick: unit/training/test_saving, bad_inputs/test_outputs

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 20

# A limit on the size of files makes a write fail as a full disk does, at a place of our choice.
STARTS = """
import json, os, resource, sys
from pathlib import Path
from dist_moe.training.saving import CheckpointSaver
from tools.soak import processes

train, save = processes.launched_main, CheckpointSaver.save

def limited(command):
    if limits and int(os.environ["RANK"]) == limits["rank"]:
        def fill():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits["bytes"], resource.RLIM_INFINITY))
        if limits.get("when") == "first checkpoint":
            def filled(saver, state):
                fill()
                save(saver, state)
            CheckpointSaver.save = filled
        else:
            fill()
    return train(command)

processes.launched_main = limited
processes.prepare(Path(sys.argv[1]), {"fsdp"})
for limits, arguments, log in json.loads(sys.argv[2]):
    print(json.dumps(processes.start("fsdp", 2, arguments, Path(log)).statuses()), flush=True)
"""

EVERY_2 = ("--checkpoint.every", "2")
CASES = {
    # bytes: the log at first 2,300, the resolved configuration 2,800, the first checkpoint's index 2,800, a line of
    # metrics 570, the rows that are kept 8,400, a rank's part 100,000
    "first-checkpoint": ({"rank": 0, "bytes": 2600, "when": "first checkpoint"}, EVERY_2, ".step-00000000"),
    "metrics": ({"rank": 0, "bytes": 9000}, (), "metrics.jsonl"),
    "first-rank": ({"rank": 0, "bytes": 20000}, EVERY_2, "experts-00000.safetensors"),
    "second-rank": ({"rank": 1, "bytes": 20000}, EVERY_2, "experts-00001.safetensors"),
    "asynchronous": ({"rank": 1, "bytes": 20000}, (*EVERY_2, "--checkpoint.asynchronous"), "experts-00001.safetensors"),
    "trained-experts": ({"rank": 1, "bytes": 20000}, (), "experts-00001.safetensors"),
}


@pytest.fixture(scope="module")
def starts(trained, tmp_path_factory):
    """Each case under its limit and then without, and a run without a limit: (directory, statuses by name)."""
    out = tmp_path_factory.mktemp("full")
    settings = ["--config", str(trained.config), "--train.masks", str(trained.masks), "--train.epochs", str(STEPS // 2)]
    plan = {"free": (None, [*settings, "--run-dir", str(out / "free")], str(out / "free.log"))}
    for name, (limits, more, _) in CASES.items():
        arguments = [*settings, "--run-dir", str(out / name), *more]
        plan[name] = (limits, arguments, str(out / f"{name}.log"))
        plan[f"{name} again"] = (None, arguments, str(out / f"{name}-again.log"))
    (out / "file").touch()
    plan["no-directory"] = (None, [*settings, "--run-dir", str(out / "file" / "run")], str(out / "no-directory.log"))
    command = [sys.executable, "-c", STARTS, str(trained.config), json.dumps(list(plan.values()))]
    environment = {"PATH": "", **SINGLE_THREADED}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return out, dict(zip(plan, map(json.loads, done.stdout.splitlines()), strict=True))


def assert_one_message(log, *parts):
    errors = [line for line in log.splitlines() if line.startswith("dist-moe: error: ")]
    assert len(errors) == 1, log
    assert all(part in errors[0] for part in parts), errors
    assert "Traceback" not in log, log


@pytest.mark.parametrize("name", CASES)
def test_one_message_and_the_same_bits_when_it_is_mended(starts, name):
    out, statuses = starts
    assert statuses["free"] == [0, 0]
    assert statuses[name] == [2, 2]
    assert_one_message((out / f"{name}.log").read_text(), "cannot write", CASES[name][2], "File too large")
    if name in ("metrics", "trained-experts"):  # without checkpoints there is nothing to go on from, and that is said
        assert statuses[f"{name} again"] == [2, 2]
        assert_one_message((out / f"{name}-again.log").read_text(), "metrics.jsonl exists")
        return
    assert statuses[f"{name} again"] == [0, 0], (out / f"{name}-again.log").read_text()
    assert differing_bits(out / name, out / "free") == 0
    assert not list((out / name / "checkpoints").glob(".*"))


def test_no_place_for_the_run_directory(starts):
    out, statuses = starts
    assert statuses["no-directory"] == [2, 2]
    assert_one_message((out / "no-directory.log").read_text(), "cannot write", "file", "Not a directory")
