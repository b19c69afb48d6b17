"""What the batch files do with nodes, ranks, arguments and exit statuses, seen by a program in place of training.

A copy of slurm/ lies beside a stand-in for launch/, as the batch files run the launch/ that is next to them.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120

pytestmark = pytest.mark.long

PROGRAM = """
import json, os, pathlib, sys, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(2.0 ** dist.get_rank())
dist.all_reduce(total)
names = ("SLURM_NODEID", "LOCAL_RANK", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR", "MASTER_PORT")
seen = dict(argv=sys.argv, rank=dist.get_rank(), world=dist.get_world_size(), sum=total.item())
pathlib.Path(f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen | {name: os.environ[name] for name in names}))
dist.barrier()
dist.destroy_process_group()
if "--fail" in sys.argv and seen["rank"] == 0:
    sys.exit(3)
if "--fail" in sys.argv or "--sleep" in sys.argv:
    time.sleep(200)
if "--killed" in sys.argv and seen["rank"] == seen["world"] - 1:
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout whose launch scripts are the program above. Its path has a space and a second `slurm` in it."""
    repository = tmp_path / "slurm" / "my checkout"
    shutil.copytree(ROOT / "slurm", repository / "slurm")
    (repository / ".venv").symlink_to(sys.prefix)
    (repository / "launch").mkdir()
    for name in ("train.py", "analyze.py", "evaluate.py"):
        (repository / "launch" / name).write_text(PROGRAM)
    return repository


def submit(cluster: Cluster, repository: Path, nodes: int, ranks: int, *arguments: str, name: str = "train") -> str:
    options = [f"--nodes={nodes}", f"--ntasks-per-node={ranks}", f"--cpus-per-task={2 // ranks}"]
    script = Path("..") / repository.name / "slurm" / f"{name}.sbatch"
    return cluster.submit(options, script, *arguments, cwd=repository)


@pytest.mark.parametrize(
    ("name", "nodes", "ranks"), [("train", 1, 2), ("train", 2, 2), ("analyze", 2, 1), ("evaluate", 1, 2)]
)
def test_every_rank_on_every_node_meets_the_others(
    cluster: Cluster, repository: Path, name: str, nodes: int, ranks: int
) -> None:
    arguments = ("--config", "a b.yaml", "--data.refusal", 'I\'m $HOME; "no"')
    job_id = submit(cluster, repository, nodes, ranks, *arguments, name=name)
    job = cluster.wait(job_id, LIMIT_S)
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.log

    seen = [json.loads((repository / f"rank-{rank}.json").read_text()) for rank in range(nodes * ranks)]
    assert len(list(repository.glob("rank-*.json"))) == nodes * ranks
    for rank, one in enumerate(seen):
        node, local_rank = divmod(rank, ranks)
        assert (one["rank"], one["world"], one["sum"]) == (rank, nodes * ranks, 2.0 ** (nodes * ranks) - 1)
        assert (one["SLURM_NODEID"], one["LOCAL_RANK"]) == (str(node), str(local_rank))
        script = str(repository / "launch" / f"{name}.py")
        assert one["argv"] == [script, f"--local_rank={local_rank}", *arguments]
        assert one["OMP_NUM_THREADS"] == str(2 // ranks)
        assert one["DS_ACCELERATOR"] == "cpu"
        assert one["MASTER_PORT"] == str(10000 + int(job_id))
        assert one["TORCH_EXTENSIONS_DIR"] == str(repository / ".cache" / "torch_extensions")


@pytest.mark.parametrize(("nodes", "ranks"), [(1, 2), (2, 1)])
def test_exit_status_of_the_job_is_that_of_the_rank_that_failed(
    cluster: Cluster, repository: Path, nodes: int, ranks: int
) -> None:
    # The other rank would sleep for 200 s, so this also shows that it is ended.
    job = cluster.wait(submit(cluster, repository, nodes, ranks, "--fail"), LIMIT_S)
    assert (job.state, job.exit_code) == ("FAILED", "3:0"), job.log


def test_killed_rank_fails_the_job(cluster: Cluster, repository: Path) -> None:
    job = cluster.wait(submit(cluster, repository, 1, 2, "--killed"), LIMIT_S)
    # DeepSpeed's launcher ends with -9, which is 247.
    assert (job.state, job.exit_code) == ("FAILED", "247:0"), job.log


def test_cancelled_job_is_cancelled_and_leaves_no_process(cluster: Cluster, repository: Path) -> None:
    job_id = submit(cluster, repository, 2, 1, "--sleep")
    deadline = time.monotonic() + LIMIT_S
    while len(list(repository.glob("rank-*.json"))) < 2:
        assert time.monotonic() < deadline, cluster.record(job_id)
        time.sleep(0.2)
    cluster.call("scancel", job_id)
    assert cluster.wait(job_id, LIMIT_S).state == "CANCELLED"
    script = str(repository / "launch" / "train.py")
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if script in (process.info["cmdline"] or [])]
    assert left == []
