"""RoutingCallback on several ranks writes what it writes on one, byte for byte."""

from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

import dist_moe
from dist_moe.parallel.comm import SoloComm
from dist_moe.store import Counts
from tests.cli.conftest import new_run
from tests.ranks.harness import run_ranks


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
