"""The shipped batch files with the real launch scripts: a small model is analyzed on one node, then trained on two."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import transformers

from dist_moe.cli.main import main
from dist_moe.demo.base_model import train_tokenizer
from dist_moe.demo.corpus import build_corpus, write_rows
from tests.slurm.cluster import Cluster
from tests.tiny import CONFIGS
from tools.soak.compare import differing_bits

pytestmark = pytest.mark.long

SLURM = Path(__file__).resolve().parents[2] / "slurm"
LIMIT_S = 280

CONFIG = """
run_dir: run
model: {path: model}
data: {paths: [prompts.jsonl]}
analysis: {threshold: 0.01}
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with a model, prompts and run.yaml, all named by relative paths."""
    corpus = build_corpus(0, num_pretraining=60, batches_per_category=1)
    write_rows(corpus.prompts, tmp_path / "prompts.jsonl")
    tokenizer = train_tokenizer(corpus.pretraining)
    config = CONFIGS["qwen3_moe"]()
    config.vocab_size = len(tokenizer)
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.timeout(600)
def test_analysis_on_one_node_then_training_on_two(cluster: Cluster, workplace: Path) -> None:
    analysis = cluster.submit(["--ntasks-per-node=2"], SLURM / "analyze.sbatch", "--config", "run.yaml", cwd=workplace)
    training = cluster.submit(
        ["--nodes=2", f"--dependency=afterok:{analysis}"],
        SLURM / "train.sbatch",
        *("--config", "run.yaml", "--train.mode", "update"),
        cwd=workplace,
    )
    analyzed = cluster.wait(analysis, LIMIT_S)
    assert (analyzed.state, analyzed.exit_code) == ("COMPLETED", "0:0"), analyzed.log
    trained = cluster.wait(training, LIMIT_S)
    assert (trained.state, trained.exit_code) == ("COMPLETED", "0:0"), trained.log
    assert "Engine: deepspeed, 2 rank(s)" in trained.log
    steps = [json.loads(line) for line in (workplace / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3, steps


@pytest.mark.timeout(900)
def test_a_job_that_is_told_of_its_time_limit_is_requeued_and_goes_on(
    cluster: Cluster, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    assert main(["analyze", "--config", "run.yaml"]) == 0
    settings = ("--config", "run.yaml", "--train.masks", "run/masks.zarr", "--train.epochs", "40", "--run-dir")

    def submit(name: str) -> str:
        return cluster.submit(["--ntasks-per-node=2"], SLURM / "train.sbatch", *settings, name, cwd=workplace)

    told = submit("told")
    metrics, limit = workplace / "told" / "metrics.jsonl", time.monotonic() + LIMIT_S
    while not metrics.exists() or metrics.read_text().count("\n") < 2:
        assert time.monotonic() < limit, cluster.wait(told, 1)
        time.sleep(0.05)
    cluster.call("scancel", "--signal=USR1", "--batch", told)
    job = cluster.wait(told, LIMIT_S)
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.log
    assert cluster.record(told)["Restarts"] == "1"
    assert "as requested, with a checkpoint" in job.log
    assert "Resuming after step" in job.log
    assert not (workplace / "told" / "REQUEUE").exists()

    undisturbed = cluster.wait(submit("undisturbed"), LIMIT_S)
    assert undisturbed.state == "COMPLETED", undisturbed.log
    assert differing_bits(workplace / "told", workplace / "undisturbed") == 0


@pytest.mark.parametrize("nodes", [1, 2])
def test_bad_configuration_fails_the_job_with_one_line(cluster: Cluster, workplace: Path, nodes: int) -> None:
    job_id = cluster.submit(
        [f"--nodes={nodes}", f"--ntasks-per-node={2 // nodes}"],
        SLURM / "train.sbatch",
        *("--config", "absent.yaml"),
        cwd=workplace,
    )
    job = cluster.wait(job_id, LIMIT_S)
    assert (job.state, job.exit_code) == ("FAILED", "2:0"), job.log
    errors = [line for line in job.log.splitlines() if line.startswith("dist-moe: error: ")]
    assert len(errors) == 1, job.log
    assert "absent.yaml" in errors[0]
    assert "Traceback" not in job.log
