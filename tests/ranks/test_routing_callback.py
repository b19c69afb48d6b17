"""RoutingCallback, and counting from routes, write on several ranks what they write on one, byte for byte."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import dist_moe
from dist_moe.cli.main import main
from dist_moe.parallel.comm import SoloComm
from dist_moe.store import Counts
from dist_moe.workflows.count_routes import count_routes
from tests.cli.conftest import new_run
from tests.ranks.harness import run_ranks
from tests.recorded import as_npy, write_lines
from tests.tiny import E, K, L


def counted(comm, model, config, out):
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    counting = dist_moe.RoutingCallback(config, f"{out}-{comm.size}", steps=[7])
    for step in (6, 7):
        counting.on_step_end(SimpleNamespace(device=comm.device), SimpleNamespace(global_step=step), None, model=module)
    assert all(each.training for each in module.modules())


def test_ranks_count_what_one_counts(tmp_path):
    run = new_run(tmp_path)
    digests = []
    for number in (1, 2):
        if number == 1:
            counted(SoloComm(torch.device("cpu")), run.model, run.config, tmp_path / "routing")
        else:
            run_ranks(number, counted, run.model, run.config, tmp_path / "routing")
        counts = Counts.open_whole(tmp_path / f"routing-{number}" / "step-000007" / "counts.zarr")
        assert counts.prompt_counts[:].any()
        assert counts.tables["gates"][:].any()
        digests.append(counts.digest)
    assert digests[0] == digests[1]


def counted_from_routes(comm, config, out, files):
    settings = ["--run-dir", f"{out}-{comm.size}", "--analysis.tokens", "all"]
    count_routes(dist_moe.load_config(config, settings), comm, files)


@pytest.mark.long
def test_ranks_count_routes_as_one_does(tmp_path):
    """Made-up routes, as only the ranks matter here."""
    run, generator, lines = new_run(tmp_path), np.random.default_rng(0), []
    assert main(["count", "--config", str(run.config), "--requests", str(tmp_path / "requests.jsonl")]) == 0
    for request in map(json.loads, (tmp_path / "requests.jsonl").read_text().splitlines()):
        routes = np.tile(np.arange(E), (len(request["prompt_token_ids"]), L, 1))
        found = {"prompt": request["prompt_token_ids"], "answer": [9]}
        lines.append(as_npy(request["id"], found | {"routes": generator.permuted(routes, axis=2)[:, :, :K]}))
    files = [write_lines(tmp_path / f"{part}.jsonl", lines[part::2]) for part in range(2)]
    counted_from_routes(SoloComm(torch.device("cpu")), run.config, tmp_path / "counts", files)
    run_ranks(2, counted_from_routes, run.config, tmp_path / "counts", files)
    digests = [Counts.open_whole(tmp_path / f"counts-{number}" / "counts.zarr").digest for number in (1, 2)]
    assert digests[0] == digests[1]
