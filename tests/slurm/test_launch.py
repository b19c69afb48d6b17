"""What the jobs do with nodes, ranks, arguments, exit statuses and parts, seen by a program in place of dist_moe."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from dist_moe.cli.main import main
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Chain, submit

LIMIT_S = 280

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PROGRAM = """
import json, os, pathlib, sys, time

if "--analysis.part" in sys.argv:
    part = sys.argv[sys.argv.index("--analysis.part") + 1]
    pathlib.Path(part.replace("/", "-of-")).touch()
    if part == "2/3":
        sys.exit("dist-moe: error: prompts.jsonl:7: no label")
    sys.exit()

import torch, torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor(2.0 ** dist.get_rank())
dist.all_reduce(total)
names = ("SLURM_NODEID", "LOCAL_RANK", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR", "MASTER_PORT")
seen = dict(argv=sys.argv[1:], rank=dist.get_rank(), world=dist.get_world_size(), sum=total.item())
pathlib.Path(f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen | {name: os.environ[name] for name in names}))
dist.barrier()
dist.destroy_process_group()
what = sys.argv[sys.argv.index("--data.refusal") + 1]
if what == "fail" and seen["rank"] == 0:
    sys.exit(3)
if what in ("fail", "sleep"):
    time.sleep(200)
if what == "killed" and seen["rank"] == seen["world"] - 1:
    os.kill(os.getpid(), 9)
if what == "ends":
    pathlib.Path("run/experts").mkdir()
"""


@pytest.fixture
def workplace(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with run.yaml, and a site in which dist_moe is the program above. Its path has a space in it."""
    workplace = tmp_path / "my place"
    stand_in = workplace / "standin" / "dist_moe" / "cli"
    stand_in.mkdir(parents=True)
    (stand_in / "main.py").write_text(PROGRAM)
    for package in (stand_in, stand_in.parent):
        (package / "__init__.py").touch()
    (workplace / "run.yaml").write_text("run_dir: run\nmodel: {path: m}\ndata: {paths: [d]}\n")
    (workplace / "site.yaml").write_text(f"setup: ['export PYTHONPATH=\"{workplace}/standin\"']\n")
    monkeypatch.chdir(workplace)
    return workplace


def train(what: str, *resources: str) -> Chain:
    words = ("--stages", "train", "--data.refusal", what)
    return submit(Path("run"), "--site", "site.yaml", *words, *(("--resources", *resources) if resources else ()))


@pytest.mark.parametrize(("launcher", "nodes", "ranks"), [("deepspeed", 2, 2), ("torchrun", 2, 1)])
def test_every_rank_on_every_node_meets_the_others(
    cluster: Cluster, workplace: Path, launcher: str, nodes: int, ranks: int
) -> None:
    threads = 2 // ranks
    given = (f"launcher={launcher}", f"nodes={nodes}", f"ranks_per_node={ranks}", f"cpus_per_rank={threads}")
    (workplace / "run").mkdir()
    words = ("--site", "site.yaml", "--stages", "train", "--data.refusal", 'I\'m $HOME; "no"', "--resources", *given)
    job_id = submit(Path("run"), *words).jobs["train"]
    job = cluster.wait(job_id, LIMIT_S)
    assert (job.state, job.exit_code) == ("FAILED", "75:0"), job.log  # it has not finished training

    seen = [json.loads((workplace / f"rank-{rank}.json").read_text()) for rank in range(nodes * ranks)]
    assert len(list(workplace.glob("rank-*.json"))) == nodes * ranks
    for rank, one in enumerate(seen):
        node, local_rank = divmod(rank, ranks)
        assert (one["rank"], one["world"], one["sum"]) == (rank, nodes * ranks, 2.0 ** (nodes * ranks) - 1)
        assert (one["SLURM_NODEID"], one["LOCAL_RANK"]) == (str(node), str(local_rank))
        settings = ["--run_dir", "run", "--data.refusal", 'I\'m $HOME; "no"']
        assert one["argv"] == ["train", "--config", "run.yaml", *settings]
        assert one["OMP_NUM_THREADS"] == str(threads)
        assert one["DS_ACCELERATOR"] == "cpu"
        assert one["MASTER_PORT"] == str(10000 + int(job_id))
        assert one["TORCH_EXTENSIONS_DIR"] == f"/tmp/dist-moe-{job_id}"


@pytest.mark.parametrize(
    ("launcher", "nodes", "ranks", "status"),
    [("deepspeed", 1, 2, 3), ("deepspeed", 2, 1, 3), ("torchrun", 2, 1, 1)],
)
def test_exit_status_of_the_job_is_that_of_the_rank_that_failed(
    cluster: Cluster, workplace: Path, launcher: str, nodes: int, ranks: int, status: int
) -> None:
    # The other rank would sleep for 200 s, so this also shows that it is ended.
    chain = train("fail", f"launcher={launcher}", f"nodes={nodes}", f"ranks_per_node={ranks}")
    job = cluster.wait(chain.jobs["train"], LIMIT_S)
    assert (job.state, job.exit_code) == ("FAILED", f"{status}:0"), job.log


def test_killed_rank_fails_the_job(cluster: Cluster, workplace: Path) -> None:
    job = cluster.wait(train("killed", "ranks_per_node=2").jobs["train"], LIMIT_S)
    # DeepSpeed's launcher ends with -9, which is 247.
    assert (job.state, job.exit_code) == ("FAILED", "247:0"), job.log


def test_cancelling_a_run_cancels_its_jobs_only_and_leaves_no_process(
    cluster: Cluster, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--site", "site.yaml", "--stages", "train", "evaluate", "--data.refusal", "sleep")
    jobs = submit(Path("run"), *words, "--resources", "train.nodes=2").jobs
    other = cluster.submit("--job-name=dist-moe-train", seconds=100, cwd=workplace)
    deadline = time.monotonic() + LIMIT_S
    while len(list(workplace.glob("rank-*.json"))) < 2:
        assert time.monotonic() < deadline, cluster.record(jobs["train"])
        time.sleep(0.2)
    assert main(["slurm", "submit", "--config", "run.yaml"]) == 2
    assert f"run has jobs that have not ended: {jobs['train']} (dist-moe-train, RUNNING)" in capsys.readouterr().err
    assert main(["slurm", "cancel", "run"]) == 0
    said = capsys.readouterr().out
    assert f"Cancelled job {jobs['train']} (dist-moe-train, RUNNING)" in said
    assert f"Cancelled job {jobs['evaluate']} (dist-moe-evaluate, PENDING)" in said
    assert [cluster.wait(job, LIMIT_S).state for job in jobs.values()] == ["CANCELLED", "CANCELLED"]
    assert cluster.record(other)["JobState"] in ("PENDING", "RUNNING")
    cluster.call("scancel", other)
    script = str(workplace / "standin" / "dist_moe" / "cli" / "main.py")
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if script in (process.info["cmdline"] or [])]
    assert left == []
    assert main(["slurm", "cancel", "run"]) == 0
    assert "No job of this run is left in the queue" in capsys.readouterr().out


def test_a_part_that_fails_ends_what_depends_on_it_and_status_says_why(
    cluster: Cluster, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--site", "site.yaml", "--resources", "launcher=torchrun", "--parts", "3")
    jobs = submit(Path("run"), *words).jobs
    assert cluster.wait(jobs["report"], LIMIT_S).state == "CANCELLED"
    assert sorted(path.name for path in workplace.glob("*-of-*")) == ["1-of-3", "2-of-3", "3-of-3"]
    capsys.readouterr()
    assert main(["slurm", "status", "run"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == f"count {jobs['count']} 2 completed, 1 failed of 3"
    befores = ("count", "select", "train", "evaluate")
    for line, stage, before in zip(lines[2:], ("select", "train", "evaluate", "report"), befores, strict=False):
        assert line.startswith(f"{stage} {jobs[stage]} cancelled: {before} has not succeeded"), line
    log = workplace / "run" / "slurm" / f"count-{jobs['count']}_2.log"
    assert lines[6] == f"count part 2: dist-moe: error: prompts.jsonl:7: no label ({log})"
