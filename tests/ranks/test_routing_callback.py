"""RoutingCallback, and counting from routes, write on several ranks what they write on one, byte for byte."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
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
from tests.trainer_rows import Rows


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


class Whole(transformers.TrainerCallback):
    """Keeps the weights after each step, put together from all ranks."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert all(isinstance(each, DTensor) for each in model.parameters()), "nothing is sharded"
        found = {name: each.full_tensor().numpy().copy() for name, each in model.state_dict().items()}
        self.weights[state.global_step] = found


class Sharded(transformers.Trainer):
    """With FSDP2, which accelerate itself turns on for GPUs only."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state, layers = self.accelerator.state, ["Qwen3MoeDecoderLayer"]
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=layers
        )
        state.distributed_type, self.is_fsdp_enabled = DistributedType.FSDP, True


def trained_in_shards(comm, model, config, out):
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": str(comm.size)}
    os.environ.update(launched)  # accelerate looks for it, and then uses the processes' group that there is
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    arguments = transformers.TrainingArguments(
        output_dir=f"{out}-hf", max_steps=2, per_device_train_batch_size=2, learning_rate=3e-2, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, ddp_backend="gloo",
    )  # fmt: skip
    whole, counting = Whole(), dist_moe.RoutingCallback(config, out, steps=[1, 2])
    Sharded(module, arguments, train_dataset=Rows(), callbacks=[whole, counting]).train()
    return whole.weights


@pytest.mark.long
def test_weights_in_shards_count_what_whole_ones_count(tmp_path):
    """transformers' own Trainer under FSDP2 on two ranks, and one process with the weights of the same step."""
    run, out, counts = new_run(tmp_path), tmp_path / "sharded", []
    weights, _ = run_ranks(2, trained_in_shards, run.model, run.config, out)
    for step, state in weights.items():
        module = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
        module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        counting = dist_moe.RoutingCallback(run.config, tmp_path / "whole", steps=[step])
        here = SimpleNamespace(device=torch.device("cpu"))
        counting.on_step_end(here, SimpleNamespace(global_step=step), None, model=module)
        found, expected = (
            Counts.open_whole(place / f"step-{step:06d}/counts.zarr") for place in (out, tmp_path / "whole")
        )
        assert found.digest == expected.digest, step
        counts.append(found.prompt_counts[:])
    assert len(counts) == 2
    assert (counts[0] != counts[1]).any(), "a step has changed no route: the test would not see stale weights"


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
