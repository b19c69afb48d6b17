"""Ranks that were not started as one job, or were given different things, all end with one line, within seconds."""

import json
import shutil
import socket
import subprocess
import sys
from contextlib import chdir, closing
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.checkpoint import prompt_rows, write_jsonl
from tools.soak.__main__ import SINGLE_THREADED

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 50
"""For one start; it takes one or two on a quiet machine, and torch's own limit is 1800."""

# Real processes of a real group, as forks, so that only the work takes time. Rank 1 is another node: `directory` is
# what is at this node's place there, `environment` what its launcher says.
STARTS = """
import datetime, json, os, sys, time
from pathlib import Path
import dist_moe.cli.main, dist_moe.cli.ranks, dist_moe.workflows.analyze
from dist_moe.parallel import rendezvous
from tools.soak import processes

launched_main = dist_moe.cli.main.launched_main

def changed(command):
    here = here_too if os.environ["RANK"] == "0" else other
    sys.argv = [sys.argv[0], *sys.argv[3:], *here.get("arguments", [])]  # without --engine
    os.environ.update(here.get("environment", {}))
    os.chdir(here.get("directory", root))
    dist_moe.cli.ranks.versions = lambda: {"transformers": here.get("version", "1")}
    return launched_main(here.get("command", command))

root, starts = json.loads(sys.argv[1])
rendezvous.ANSWER, rendezvous.STRAY_S = datetime.timedelta(seconds=4), 4.0
processes.launched_main, processes.LIMIT_S = changed, float(sys.argv[2])
os.chdir(root)
processes.prepare(Path("run.yaml"), {"fsdp"})
free_port = processes.free_port
for here_too, other, arguments, log in starts:
    processes.free_port = lambda: here_too.get("port") or free_port()
    began = time.monotonic()
    statuses = processes.start("fsdp", other.get("processes", 2), arguments, Path(log)).statuses()
    print(json.dumps([statuses, time.monotonic() - began]), flush=True)
"""


def start(root, cases):
    """Each case's (statuses, seconds, log)."""
    command = [sys.executable, "-c", STARTS, json.dumps([str(root), cases]), str(SECONDS)]
    environment = {"PATH": "", "PYTHONPATH": str(REPOSITORY), **SINGLE_THREADED}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return [(*answer, Path(case[-1]).read_text()) for answer, case in zip(answers, cases, strict=True)]


@pytest.fixture(scope="module")
def nodes(trained, tmp_path_factory):
    """Two nodes' local files, the same at first: run.yaml, prompts.jsonl, model/, masks.zarr, template.jinja."""
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(trained.model, root / "model")
    shutil.copytree(trained.masks, root / "masks.zarr")
    shutil.copy(trained.data, root / "prompts.jsonl")
    text = trained.config.read_text()
    for path, name in ((trained.model, "model"), (trained.data, "prompts.jsonl"), (trained.run_dir, root / "run")):
        assert str(path) in text
        text = text.replace(str(path), str(name))
    (root / "run.yaml").write_text(text)
    (root / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return root


def other_node(nodes, out, change):
    shutil.copytree(nodes, out, ignore=shutil.ignore_patterns("run", "*.log"))
    change(out)
    return {"directory": str(out)}


def row_more(node):
    write_jsonl(node / "prompts.jsonl", [*prompt_rows(), {"prompt": "one more", "label": "safe", "response": "yes"}])


def other_row(node):
    path = node / "prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prompt"] += " indeed"
    write_jsonl(path, rows)


def broken_row(node):
    path = node / "prompts.jsonl"
    path.write_text(path.read_text() + "{\n")


def other_weight(node):
    path = min((node / "model").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_store(node):
    with chdir(node):
        assert main(["analyze", "--config", "run.yaml", "--run-dir", "new", "--analysis.top_k", "2"]) == 0
    shutil.rmtree(node / "masks.zarr")
    (node / "new" / "masks.zarr").rename(node / "masks.zarr")


def other_template(node):
    (node / "template.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")


def edited_file(node):
    path = node / "run.yaml"
    path.write_text(path.read_text() + "\nseed: 7\n")


def argued(*words):
    return lambda nodes, out: {"arguments": list(words)}


def node(change):
    return lambda nodes, out: other_node(nodes, out, change)


MASKS = ["--train.masks", "masks.zarr"]
DIFFERENCES = {
    "learning-rate": (argued("--train.lr", "0.002"), (), "train.lr is 0.001 on rank 0, 0.002 on rank 1"),
    "epochs": (argued("--train.epochs", "9"), (), "train.epochs is 2 on rank 0, 9 on rank 1"),
    "mode": (argued("--train.mode", "update"), (), "train.mode is 'route' on rank 0, 'update' on rank 1"),
    "replicas": (argued("--parallel.ep_size", "1"), (), "parallel.ep_size is None on rank 0, 1 on rank 1"),
    "overwrite": (argued("--overwrite"), (), "overwrite is False on rank 0, True on rank 1"),
    "edited-file": (node(edited_file), (), "seed is 0 on rank 0, 7 on rank 1"),
    "command": (lambda nodes, out: {"command": "analyze"}, (), "command is 'train' on rank 0, 'analyze' on rank 1"),
    "version": (lambda nodes, out: {"version": "5.0"}, (), "transformers is '1' on rank 0, '5.0' on rank 1"),
    "row-more": (node(row_more), (), "the number of rows is 32 on rank 0, 33 on rank 1"),
    "other-row": (node(other_row), (), "the data's hash is"),
    "broken-row": (node(broken_row), (), "rank 1: prompts.jsonl:33"),
    "weight": (node(other_weight), (), "the model's hash is"),
    "store": (node(other_store), (), "the digest of each mask store is"),
    "template": (node(other_template), ("--data.chat_template", "template.jinja"), "the tokenizer's hash is"),
}
IN_ANALYSIS = ("row-more", "other-row", "weight", "edited-file")


def differing(nodes, out):
    """What is started, by the case's name."""
    plan = {}
    for name, (change, arguments, _) in DIFFERENCES.items():
        other = change(nodes, out / name)
        plan[name] = [{}, other, ["--config", "run.yaml", *MASKS, *arguments], str(out / f"{name}.log")]
        if name in IN_ANALYSIS:
            analyze = {"command": "analyze"}
            arguments = ["--config", "run.yaml", *arguments]
            plan[f"{name}, analysis"] = [analyze, other | analyze, arguments, str(out / f"{name}-analysis.log")]
    return plan


def assert_one_line(answer, *parts, times=1):
    statuses, seconds, log = answer
    assert set(statuses) == {2}, log
    errors = [line for line in log.splitlines() if line.startswith("dist-moe: error: ")]
    assert len(errors) == times, log
    for error in errors:
        assert all(part in error for part in parts), errors
    assert "Traceback" not in log, log
    assert seconds < SECONDS, (seconds, log)


@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", [*DIFFERENCES, *(f"{name}, analysis" for name in IN_ANALYSIS)])
def test_ranks_that_were_given_different_things(started, nodes, name):
    part = DIFFERENCES[name.removesuffix(", analysis")][-1]
    assert_one_line(started[name], part, *(() if part.startswith("rank 1: ") else ("ranks differ", "on rank 1")))
    assert not (nodes / "run").exists()


NO_JOB = {
    "beyond": ({}, {"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    "larger-world": ({}, {"WORLD_SIZE": "3"}, "WORLD_SIZE is 2 on rank 0, 3 on rank 1"),
    "smaller-world": ({"WORLD_SIZE": "3"}, {}, "WORLD_SIZE is 3 on rank 0, 2 on rank 1"),
    "same-rank": ({}, {"RANK": "1"}, "two processes have RANK 1"),
}
"""What the launcher says to the first process, to each other one (there are two with `same-rank`), the line."""


def no_job(out):
    """What is started, by the case's name."""
    arguments = ["--config", "run.yaml", *MASKS]
    return {
        name: [
            {"environment": first},
            {"environment": second, "processes": 3 if name == "same-rank" else 2},
            arguments,
            str(out / f"{name}.log"),
        ]
        for name, (first, second, _) in NO_JOB.items()
    }


@pytest.fixture(scope="module")
def port():
    """One at which another program listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def started(nodes, port, tmp_path_factory):
    """All starts of this file, of one process that has imported what they need."""
    out = tmp_path_factory.mktemp("other")
    plan = differing(nodes, out) | no_job(out)
    plan["port"] = [{"port": port}, {}, ["--config", "run.yaml", *MASKS], str(out / "port.log")]
    return dict(zip(plan, start(nodes, list(plan.values())), strict=True))


@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", NO_JOB)
def test_ranks_differ_in_what_their_launcher_says(started, name):
    assert_one_line(started[name], NO_JOB[name][-1], times=len(started[name][0]))


@pytest.mark.timeout(700)
def test_a_port_that_is_in_use(started, port):
    assert_one_line(started["port"], f"MASTER_PORT {port}", times=2)
