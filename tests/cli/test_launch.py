"""launch/*.py under the real deepspeed launcher, on two ranks."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.trained import TrainedExperts
from dist_moe.workflows.status import status
from tests.checkpoint import prompt_rows, write_jsonl
from tests.forks import start_fork
from tools.soak.compare import differing_bits
from tools.soak.processes import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 280
HELD_OUT = [{**row, "prompt": f"w100 w101 {row['prompt']} w102"} for row in prompt_rows(8, per_category=4)]
PORT = str(29600 + os.getpid() % 300)


def deepspeed(script: str, *argv: object) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("deepspeed")
    return launch([program, "--num_gpus", "2", "--master_port", PORT, f"launch/{script}.py", *argv])


def launch(command: list[object]) -> subprocess.CompletedProcess:
    process = begin(command)
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def begin(command: list[object]) -> subprocess.Popen:
    words = list(map(str, command))
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def two_ranks(trained, tmp_path_factory):
    """The session's training again, on two ranks."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    done = deepspeed("train", "--config", trained.config, "--run-dir", run_dir, "--train.masks", trained.masks)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


@pytest.mark.long  # tests/ranks/test_analyze has it without a launcher
def test_an_analysis_on_two_ranks_is_that_of_one(trained, tmp_path):
    done = deepspeed("analyze", "--config", trained.config, "--run-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = MaskStore.open(trained.masks), MaskStore.open(tmp_path / "masks.zarr")
    assert np.array_equal(one.counts.prompt_counts[:], two.counts.prompt_counts[:])
    assert one.batch_ids == two.batch_ids
    assert [b.mask_hash for b in one.batches] == [b.mask_hash for b in two.batches]
    assert one.statistics.keys() == two.statistics.keys() >= {"q_value"}
    for name, values in one.statistics.items():
        assert values[:].tobytes() == two.statistics[name][:].tobytes(), name


@pytest.mark.long
def test_a_comparison_on_two_ranks_is_that_of_one(trained, tmp_path):
    """But for rounding."""
    held_out = write_jsonl(tmp_path / "held-out.jsonl", HELD_OUT)
    words = ["--config", trained.config, "--held-out", held_out, "--num-seeds", 1, "--train.mode", "update"]
    words += ["--evaluation.max_new_tokens", 1, "--variants", "router_only,train.lr=1e-2"]
    assert main([str(word) for word in ("compare", *words, "--run-dir", tmp_path / "one")]) == 0
    done = deepspeed("compare", *words, "--run-dir", tmp_path / "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Comparison: ") == 1
    one, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("one", "two"))
    assert [one[key] for key in ("num_parameters", "lrs", "data_hash")] == [
        two[key] for key in ("num_parameters", "lrs", "data_hash")
    ]
    for variant, levels in one["levels"].items():
        for measure in ("refusal loss (unsafe)", "answer loss (safe)"):
            assert two["levels"][variant][measure]["value"] == pytest.approx(levels[measure]["value"], abs=1e-4)
    assert one["levels"]["router_only,lr=1e-2"] != one["levels"]["base"]


@pytest.mark.long
def test_evaluation_on_two_ranks_is_that_of_one(trained, tmp_path):
    """But for rounding, as the launcher's ranks have fewer threads each."""
    run_dir = shutil.copytree(trained.run_dir, tmp_path / "run")
    assert main(["evaluate", str(run_dir)]) == 0
    one = json.loads((run_dir / "evaluation.json").read_text())
    done = deepspeed("evaluate", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Trained: these are the rows of the training itself") == 1
    two = json.loads((run_dir / "evaluation.json").read_text())
    assert one["facts"] == two["facts"]
    of_all = [document["groups"][0] for document in (one, two)]
    assert {group["by"] for group in of_all} == {"all"}
    for measure, times in of_all[0]["measures"].items():
        for when, estimate in times.items():
            found = of_all[1]["measures"][measure][when]
            assert (found and found["value"]) == (estimate and pytest.approx(estimate["value"], abs=1e-5))
    done = deepspeed("evaluate", run_dir, "--ep-size", "3")
    assert done.returncode == 2
    assert done.stderr.count("evaluation.ep_size is 3, but 2 rank(s) do not divide") == 1


def assert_same_training(run_dir, other_dir):
    """Metrics and trained experts of two runs, to 1e-5."""
    one, two = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run_dir, other_dir)
    )
    assert [(a["batch_id"], a["mask_hash"]) for a in one] == [(b["batch_id"], b["mask_hash"]) for b in two]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-5)
    ours, theirs = (dict(TrainedExperts.open(path / "experts").weights()) for path in (run_dir, other_dir))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_training_on_two_ranks_is_that_of_one(trained, two_ranks):
    assert_same_training(trained.run_dir, two_ranks)


def test_each_of_two_ranks_has_a_log_and_says_what_it_does(two_ranks):
    found = status(two_ranks)
    assert (found.state, found.command, found.done, found.total) == ("finished", "train", 4, 4)
    assert [(rank.rank, rank.num_ranks, rank.has_ended, rank.error) for rank in found.ranks] == [
        (0, 2, True, None),
        (1, 2, True, None),
    ]
    assert len({rank.process for rank in found.ranks}) == 2
    lines = [json.loads(line) for line in (two_ranks / "metrics.jsonl").read_text().splitlines()]
    assert sum(rank.num_tokens for rank in found.ranks) == sum(line["num_tokens"] for line in lines)
    assert 1 <= found.token_balance < 1.5
    logs = [(two_ranks / "logs" / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    for rank, text in enumerate(logs):
        assert f"train: rank {rank} of 2, process {found.ranks[rank].process} on " in text
    assert "step 4/4  batch" in logs[0]
    assert "step" not in logs[1]  # what is the same on all ranks is told by the first


def rank_of_two(rank, port, arguments):
    """A process as a launcher starts it, without the time of its imports."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update({**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    return main(["train", *map(str, arguments)])


def test_fsdp_and_replicas_are_one_process(trained, tmp_path):
    arguments = ["--config", trained.config, "--run-dir", tmp_path / "run", "--train.masks", trained.masks]
    arguments += ["--parallel.ep_size", 1, "--engine", "fsdp"]
    port, places = free_port(), [tmp_path / name for name in ("first", "second")]
    for place in places:
        place.mkdir()
    jobs = [start_fork(place, rank_of_two, rank, port, arguments) for rank, place in enumerate(places)]
    assert [job.status() for job in jobs] == [0, 0], [job.err.read_text() for job in jobs]
    assert "2 replica(s) of 1 rank(s)" in jobs[0].out.read_text()
    assert_same_training(trained.run_dir, tmp_path / "run")


FSDP = ("torchrun", "--nproc_per_node", "--engine", "fsdp")
ZERO3 = ("deepspeed", "--num_gpus", "--train.deepspeed_config", "ds_configs/stage3.json")


@pytest.mark.long  # tests/ranks trains with ZeRO-3 and replicas, and the test above with FSDP, but without a launcher
@pytest.mark.parametrize("launcher", [FSDP, ZERO3], ids=["torchrun fsdp", "deepspeed ZeRO-3"])
def test_sharded_dense_weights_and_replicas_are_one_process(trained, tmp_path, launcher):
    program, number, *settings = launcher
    command = [Path(sys.executable).with_name(program), number, 4, "--master_port", PORT, "launch/train.py"]
    inputs = ["--config", trained.config, "--run-dir", tmp_path, "--train.masks", trained.masks]
    done = launch([*command, *inputs, "--parallel.ep_size", 2, *settings])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 replica(s) of 2 rank(s)" in done.stdout
    assert_same_training(trained.run_dir, tmp_path)


def test_ranks_that_do_not_divide_into_replicas_are_one_line(trained, tmp_path, capsys):
    arguments = ["--config", str(trained.config), "--run-dir", str(tmp_path), "--parallel.ep_size", "2"]
    assert main(["train", *arguments]) == 2
    assert "parallel.ep_size is 2, but 1 rank(s) do not divide" in capsys.readouterr().err


def test_fsdp_without_a_launcher_is_one_line(trained, tmp_path, capsys):
    arguments = ["--config", str(trained.config), "--run-dir", str(tmp_path), "--engine", "fsdp"]
    assert main(["train", *arguments]) == 2
    assert "engine is 'fsdp', which a launcher must start: `torchrun" in capsys.readouterr().err


@pytest.mark.long
def test_a_job_that_was_stopped_on_two_ranks_goes_on_in_one_process(trained, tmp_path, capsys):
    arguments = ["--config", trained.config, "--run-dir", tmp_path, "--train.masks", trained.masks]
    (tmp_path / "STOP").touch()
    done = deepspeed("train", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stopped after step 1 of 4" in done.stdout
    assert len(list((tmp_path / "checkpoints" / "step-00000001").glob("*.safetensors"))) == 2
    capsys.readouterr()
    assert main(["checkpoint", "show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "engine deepspeed, 1 replica(s) of 2 rank(s), placement " in shown
    assert all(f"  rank {rank} (replica 0, ep rank {rank}) owns " in shown for rank in (0, 1))
    assert main(["train", *map(str, arguments)]) == 0
    assert "It was written by engine deepspeed, 1 replica(s) of 2 rank(s), placement " in capsys.readouterr().out
    assert_same_training(trained.run_dir, tmp_path)


def test_export_of_two_ranks_is_verified(trained, two_ranks, tmp_path):
    assert main(["export", str(two_ranks), "--out", str(tmp_path / "out")]) == 0
    assert main(["verify", str(trained.model), str(tmp_path / "out"), "--masks", str(trained.masks)]) == 0
    assert read_tensors(tmp_path / "out").keys() == read_tensors(trained.model).keys()


@pytest.mark.long
def test_bad_input_is_one_line_on_two_ranks(trained, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained.run_dir, run_dir)
    before = sorted(run_dir.rglob("*"))
    done = deepspeed("train", "--config", trained.config, "--run-dir", run_dir)
    assert done.returncode == 2
    assert done.stderr.count("dist-moe: error: ") == 1
    assert f"{run_dir / 'experts'} exists" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(run_dir.rglob("*")) == before


def program(engine: str) -> list[object]:
    """A real launcher of two ranks. Each start has a port of its own, as a dead launcher's may still be taken."""
    name, count = ("torchrun", "--nproc_per_node") if engine == "fsdp" else ("deepspeed", "--num_gpus")
    return [Path(sys.executable).with_name(name), count, "2", "--master_port", free_port(), "launch/train.py"]


@pytest.mark.long  # that ranks end without their launcher is in tests/unit/training/test_stop.py too
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("engine", "victim", "ep_size"), [("fsdp", "launcher", "auto"), ("deepspeed", "rank", "2")])
def test_a_real_launch_that_was_killed_goes_on_with_the_same_bits(trained, tmp_path, engine, victim, ep_size):
    settings = ["--config", trained.config, "--train.masks", trained.masks, "--engine", engine]
    settings += ["--parallel.ep_size", ep_size, "--train.epochs", "10", "--checkpoint.every", "2", "--run-dir"]
    undisturbed = launch([*program(engine), *settings, tmp_path / "undisturbed"])
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr

    killed = begin([*program(engine), *settings, tmp_path / "run"])
    metrics, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + LIMIT_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)
    family = psutil.Process(killed.pid).children(recursive=True)
    ranks = [process for process in family if "launch/train.py" in process.cmdline() and not process.children()]
    assert len(ranks) == 2
    (psutil.Process(killed.pid) if victim == "launcher" else ranks[1]).kill()
    if victim == "launcher":  # the next job meets the ranks of the first
        again = launch([*program(engine), *settings, tmp_path / "run"])
    out, err = killed.communicate(timeout=LIMIT_SECONDS)
    assert killed.returncode != 0
    assert not any(process.is_running() for process in ranks)
    if victim == "launcher":
        assert "as requested, with a checkpoint" in out, out + err
    else:
        again = launch([*program(engine), *settings, tmp_path / "run"])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Resuming after step" in again.stdout
    if ep_size == "auto":
        assert "parallel.ep_size auto: 1, which needs " in undisturbed.stdout
        assert "parallel.ep_size auto: 1, as the run began" in again.stdout
    assert not (tmp_path / "run" / ".lock").exists()
    assert differing_bits(tmp_path / "run", tmp_path / "undisturbed") == 0


@pytest.mark.long
def test_accelerate_with_fsdp_is_one_process(trained, tmp_path):
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    arguments = ["--config", trained.config, "--run-dir", tmp_path, "--train.masks", trained.masks, "--engine", "fsdp"]
    done = launch([*command, "--main_process_port", PORT, "launch/train.py", *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Engine: fsdp, 2 rank(s)" in done.stdout
    assert_same_training(trained.run_dir, tmp_path)
