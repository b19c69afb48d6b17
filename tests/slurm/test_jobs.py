"""A small model through the whole chain of jobs, and a training that Slurm disturbs in three ways."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from dist_moe.cli.main import main
from dist_moe.demo.base_model import train_tokenizer
from dist_moe.demo.corpus import build_corpus, write_rows
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Chain, submit
from tests.tiny import CONFIGS
from tools.soak.compare import differing_bits

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

LIMIT_S = 280

CONFIG = """
run_dir: run
model: {path: model}
data: {paths: [prompts.jsonl]}
analysis: {threshold: 0.01}
evaluation: {max_new_tokens: 4, resamples: 200}
"""
SITE = "launcher: torchrun\ncount: {ranks_per_node: 2}\ntrain: {nodes: 2}\n"
LOGIN_NODE = """
import sys
from dist_moe.cli.main import main
for words in (["submit", "--config", "run.yaml", "--site", "site.yaml", "--parts", "2"], ["status", "run"]):
    assert main(["slurm", *words]) == 0
print([name for name in ("torch", "transformers", "deepspeed", "zarr") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, prompts, run.yaml and site.yaml, all named by relative paths."""
    place = tmp_path_factory.mktemp("workplace")
    corpus = build_corpus(0, num_pretraining=60, batches_per_category=1)
    write_rows(corpus.prompts, place / "prompts.jsonl")
    tokenizer = train_tokenizer(corpus.pretraining)
    config = CONFIGS["qwen3_moe"]()
    config.vocab_size = len(tokenizer)
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "run.yaml").write_text(CONFIG)
    (place / "site.yaml").write_text(SITE)
    return place


@pytest.fixture
def workplace(cluster: Cluster, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


def test_the_whole_chain(cluster: Cluster, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Submitted as on a login node, where no torch is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOGIN_NODE], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done
    assert "select" in done.stdout
    run = workplace / "run"
    jobs = Chain(run).jobs
    assert list(jobs) == ["count", "select", "train", "evaluate", "report"]
    report = cluster.wait(jobs["report"], 3 * LIMIT_S)
    logs = {path.name: path.read_text()[-2000:] for path in sorted((run / "slurm").glob("*.log"))}
    assert report.state == "COMPLETED", logs
    assert {f"count-{jobs['count']}_{part}.log" for part in (1, 2)} < logs.keys()
    assert "Engine: deepspeed, 2 rank(s)" in (run / "slurm" / f"train-{jobs['train']}.log").read_text()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert all((run / name).exists() for name in ("masks.zarr", "experts", "evaluation.json", "report.html"))
    capsys.readouterr()
    assert main(["slurm", "status", "run"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == f"count {jobs['count']} 2 completed of 2"
    for line, stage in zip(lines[2:], ("select", "train", "evaluate", "report"), strict=False):
        assert re.fullmatch(rf"{stage} {jobs[stage]} completed [0-9]+:[0-9]+ n(1|\[1-2\])", line), line
    assert lines[6].startswith("run: training finished: step 3 of 3")


def test_a_disturbed_training_has_the_bits_of_an_undisturbed_one(
    cluster: Cluster, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told of its time limit, then loses its nodes to a more urgent job, then one of them goes down."""
    if not (workplace / "run" / "masks.zarr").exists():
        assert main(["analyze", "--config", "run.yaml"]) == 0
    settings = ("--train.masks", "run/masks.zarr", "--train.epochs", "40", "--checkpoint.every", "5")
    words = ("--site", "site.yaml", "--stages", "train", "report", *settings)
    told = workplace / "told"
    jobs = submit(Path("told"), *words).jobs
    job = jobs["train"]
    metrics, limit = told / "metrics.jsonl", time.monotonic() + 3 * LIMIT_S

    def wait_until(holds: Callable[[], bool]) -> None:
        while not holds():
            record = cluster.record(job)
            assert record["JobState"] != "FAILED", cluster.wait(job, 1).log
            assert time.monotonic() < limit, (record, cluster.wait(job, 1).log)
            time.sleep(0.05)

    def steps() -> int:
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def goes_on(restarts: int) -> Callable[[], bool]:
        """Whether a job that has been requeued so often has done a step since."""
        before = steps()
        return lambda: cluster.record(job)["Restarts"] == str(restarts) and steps() > before

    wait_until(lambda: steps() >= 2)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: cluster.record(job)["Restarts"] == "1")
    assert "as requested, with a checkpoint" in (told / "slurm" / f"train-{job}.log").read_text()
    assert not (told / "REQUEUE").exists()
    wait_until(goes_on(1))

    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--cpus-per-task=2", seconds=1, cwd=workplace)
    assert cluster.wait(urgent, LIMIT_S).state == "COMPLETED"
    wait_until(goes_on(2))

    cluster.call("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    assert cluster.wait(job, LIMIT_S).state == "COMPLETED"
    assert cluster.record(job)["Restarts"] == "3"
    assert cluster.wait(jobs["report"], LIMIT_S).state == "COMPLETED"  # it has waited for the end
    log = (told / "slurm" / f"train-{job}.log").read_text()
    assert log.count("Resuming after step") == 3, log

    undisturbed = cluster.wait(submit(Path("undisturbed"), *words[:4], *words[5:]).jobs["train"], LIMIT_S)
    assert undisturbed.state == "COMPLETED", undisturbed.log
    assert differing_bits(told, workplace / "undisturbed") == 0


def test_bad_input_fails_the_job_with_one_line_and_status_shows_it(
    cluster: Cluster, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = submit(Path("bad"), "--site", "site.yaml", "--stages", "train", "--resources", "launcher=deepspeed")
    job = cluster.wait(chain.jobs["train"], LIMIT_S)
    assert (job.state, job.exit_code) == ("FAILED", "2:0"), job.log
    errors = [line for line in job.log.splitlines() if line.startswith("dist-moe: error: ")]
    assert len(errors) == 1, job.log
    assert "bad/masks.zarr" in errors[0]
    assert "Traceback" not in job.log
    capsys.readouterr()
    assert main(["slurm", "status", "bad"]) == 0
    assert f"train: {errors[0]} (" in capsys.readouterr().out
